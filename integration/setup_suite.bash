# shellcheck shell=bash
# What all suites share: the program under test, an unprivileged user, the fixtures' directory and two registries.
# Everything that is made here lies below the run's own temporary directory, except the user, and the fixtures where
# OSTREE_IMAGE_FIXTURES names a directory to keep them in.

setup_suite() {
    local here
    here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
    umask 022
    # The unprivileged user must get to the files below it.
    chmod 711 -- "$BATS_RUN_TMPDIR"
    local dir=$BATS_RUN_TMPDIR
    while [[ $dir != / ]]; do
        dir=$(dirname -- "$dir")
        [[ -x $dir && $(stat -c %A -- "$dir") == *[xt] ]] || echo "# warning: others cannot enter $dir" >&2
    done

    # A copy, so that a build while the tests run changes nothing.
    export SUITE_DIR=$BATS_RUN_TMPDIR/ostree-image-suite
    mkdir -p -- "$SUITE_DIR/bin"
    local program=${OSTREE_IMAGE:-$here/../bin/ostree-image}
    if [[ ! -x $program ]]; then
        echo "no program at $program: run make build" >&2
        return 1
    fi
    cp -- "$program" "$SUITE_DIR/bin/ostree-image"
    export OI=$SUITE_DIR/bin/ostree-image
    export INTEGRATION=$SUITE_DIR/integration # readable for the unprivileged user, wherever the checkout is
    mkdir -p -- "$INTEGRATION"
    cp -- "$here"/*.py "$INTEGRATION/"
    cp -r -- "$here/hostile" "$INTEGRATION/"

    # What the caller has set must not decide what the program does.
    unset OSTREE_REPO OSTREE_IMAGE_LOG OSTREE_IMAGE_OSTREE OSTREE_IMAGE_TAR SOURCE_DATE_EPOCH REGISTRY_AUTH_FILE \
        XDG_DATA_HOME TAR_OPTIONS http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY
    export XDG_RUNTIME_DIR=$SUITE_DIR/run XDG_CACHE_HOME=$SUITE_DIR/cache LC_ALL=C.UTF-8
    mkdir -p -- "$XDG_RUNTIME_DIR"

    export FIXTURES=$SUITE_DIR/fixtures
    if [[ -n ${OSTREE_IMAGE_FIXTURES-} ]]; then # kept ones are good as long as what makes them is the same
        FIXTURES=$OSTREE_IMAGE_FIXTURES/$(cat -- "$here/helpers.bash" "$here/image.py" | sha256sum | cut -c 1-12)
    fi
    mkdir -p -- "$FIXTURES"

    suite_scratch
    suite_user
    suite_registries
}

# suite_scratch settles where the large repositories go: into memory where there is enough, since creating many files
# is most of a test's time on some disks. OSTREE_IMAGE_SCRATCH names another place.
suite_scratch() {
    local base=${OSTREE_IMAGE_SCRATCH:-/dev/shm}
    if [[ -z ${OSTREE_IMAGE_SCRATCH-} ]] && ! { [[ -w $base && $(df --output=avail -k -- "$base" | tail -n 1) -gt 4000000 ]] &&
        python3 "$INTEGRATION/image.py" xattrs "$base"; }; then
        base=$SUITE_DIR
    fi
    SCRATCH=$(mktemp -d -- "$base/ostree-image-tests.XXXXXX")
    export SCRATCH
    chmod 711 -- "$SCRATCH"
}

# suite_user settles who the unprivileged user is: the caller, or for root one that is made for the suite.
suite_user() {
    export UNPRIVILEGED='' UNPRIVILEGED_HOME=$SUITE_DIR/home
    mkdir -p -- "$UNPRIVILEGED_HOME"
    if ((EUID != 0)); then
        UNPRIVILEGED=$(id -un)
        return
    fi
    UNPRIVILEGED=${OSTREE_IMAGE_TEST_USER:-oi-tester}
    if ! id -- "$UNPRIVILEGED" >/dev/null 2>&1; then
        useradd --no-create-home --shell /bin/sh -- "$UNPRIVILEGED"
        : >"$SUITE_DIR/user-was-made"
    fi
    chown -- "$UNPRIVILEGED" "$UNPRIVILEGED_HOME"
}

# suite_registries starts docker-registry twice, each on a port that the kernel chooses: plain HTTP, and TLS with a
# password. Without the program the tests that need it say so.
suite_registries() {
    export REGISTRY='' TLS_REGISTRY='' TLS_DIR=$SUITE_DIR/tls
    command -v docker-registry >/dev/null || return 0
    registry plain ''
    REGISTRY=127.0.0.1:$registry_port
    if command -v htpasswd >/dev/null && command -v openssl >/dev/null; then
        mkdir -p -- "$TLS_DIR/client"
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1 \
            -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:TRUE \
            -keyout "$TLS_DIR/key.pem" -out "$TLS_DIR/cert.pem" 2>"$TLS_DIR/openssl.log" ||
            { cat -- "$TLS_DIR/openssl.log" >&2; return 1; }
        cp -- "$TLS_DIR/cert.pem" "$TLS_DIR/client/ca.crt"
        chmod 755 "$TLS_DIR" "$TLS_DIR/client"
        htpasswd -Bbn -C 4 importer 's3cr3t-Passw0rd' >"$TLS_DIR/htpasswd"
        registry tls "
  tls:
    certificate: $TLS_DIR/cert.pem
    key: $TLS_DIR/key.pem
auth:
  htpasswd:
    realm: test
    path: $TLS_DIR/htpasswd"
        TLS_REGISTRY=127.0.0.1:$registry_port
    fi
}

# registry NAME CONFIGURATION starts one and sets registry_port.
registry() {
    local dir=$SUITE_DIR/registry-$1 i
    mkdir -p -- "$dir/storage"
    cat >"$dir/config.yml" <<END
version: 0.1
log: {level: info, formatter: json}
storage: {filesystem: {rootdirectory: $dir/storage}}
http:
  addr: 127.0.0.1:0$2
END
    docker-registry serve "$dir/config.yml" >"$dir/log" 2>&1 3>&- &
    echo "$!" >"$dir/pid"
    registry_port=''
    for ((i = 0; i < 100; i++)); do
        registry_port=$(sed -n 's/.*listening on 127\.0\.0\.1:\([0-9]*\).*/\1/p' "$dir/log" | head -n 1)
        [[ -z $registry_port ]] || return 0
        sleep 0.1
    done
    echo "docker-registry did not start:" >&2
    cat -- "$dir/log" >&2
    return 1
}

teardown_suite() {
    local pid
    rm -rf -- "${SCRATCH:?}"
    for pid in "$SUITE_DIR"/registry-*/pid; do
        [[ -e $pid ]] && kill "$(cat -- "$pid")"
    done
    if [[ -e $SUITE_DIR/user-was-made ]]; then
        userdel -- "$UNPRIVILEGED"
    fi
}
