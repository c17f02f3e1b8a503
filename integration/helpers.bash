# shellcheck shell=bash
# What the suites share. setup_suite.bash sets SUITE_DIR, OI, INTEGRATION, FIXTURES, UNPRIVILEGED and the registries.

MODES=(bare bare-user bare-user-only archive)

# --- running things -------------------------------------------------------------------------------------------------

# as_user COMMAND… runs a command as the unprivileged user, without a login's environment.
as_user() {
    local env=(env -u OSTREE_REPO "HOME=$UNPRIVILEGED_HOME" "XDG_RUNTIME_DIR=$UNPRIVILEGED_HOME" "PATH=/usr/bin:/bin:/usr/sbin:/sbin")
    if ((EUID == 0)); then
        setpriv --reuid="$UNPRIVILEGED" --regid="$(id -g -- "$UNPRIVILEGED")" --clear-groups -- "${env[@]}" "$@"
    else
        "${env[@]}" "$@"
    fi
}

# oi [-STATUS] ARGUMENT… runs the program, as the unprivileged user where OI_USER=user is set, and fails unless it ends
# with STATUS (0). Any image is accepted; OI_POLICY says otherwise. It sets output, stderr, lines, stderr_lines.
oi() {
    local want=0
    if [[ ${1-} =~ ^-[0-9]+$ ]]; then
        want=${1#-}
        shift
    fi
    local command=(timeout --kill-after=10 "${OI_TIMEOUT:-120}" "$OI" "${OI_POLICY---insecure-policy}" "$@")
    [[ -n ${OI_POLICY-x} ]] || command=(timeout --kill-after=10 "${OI_TIMEOUT:-120}" "$OI" "$@")
    if [[ ${OI_USER-} == user ]]; then
        command=(as_user "${command[@]}")
    fi
    run --separate-stderr "${command[@]}"
    echo "\$ ${OI_USER:-root}: ostree-image ${*@Q}"
    echo "--- stdout"
    echo "$output"
    echo "--- stderr"
    echo "${stderr-}"
    echo "--- status $status"
    if ((status != want)); then
        fail "status $status instead of $want"
    fi
}

fail() {
    echo "FAILED: $*"
    return 1
}

# must COMMAND… runs a command of a test's preparation, quiet unless it fails.
must() {
    local out status=0
    out=$("$@" 2>&1) || status=$?
    ((status == 0)) || fail "status $status of ${*@Q}: $out"
}

assert_stdout() {
    [[ $output == "$1" ]] || fail "stdout is not: $1"
}

assert_stdout_has() {
    [[ $output == *"$1"* ]] || fail "stdout lacks: $1"
}

assert_stderr() {
    [[ $stderr == "$1" ]] || fail "stderr is not: $1"
}

assert_stderr_has() {
    [[ $stderr == *"$1"* ]] || fail "stderr lacks: $1"
}

assert_stderr_lacks() {
    [[ $stderr != *"$1"* ]] || fail "stderr has: $1"
}

# assert_error TEXT wants one line on stderr that is an error of the program and holds TEXT.
assert_error() {
    local errors
    errors=$(grep '^ostree-image: ' <<<"$stderr" | grep -v '^ostree-image: warning: ' || :)
    [[ -n $errors && $(wc -l <<<"$errors") == 1 ]] || fail "not one error line on stderr"
    [[ $(tail -n 1 <<<"$stderr") == "$errors" ]] || fail "the error is not the last line"
    [[ $errors == *"$1"* ]] || fail "the error lacks: $1"
    [[ -z $output ]] || fail "something is on stdout"
}

assert_equal() {
    [[ $1 == "$2" ]] || { diff <(echo "$1") <(echo "$2") || :; fail "${3:-not equal}"; }
}

# --- what a test needs ----------------------------------------------------------------------------------------------

# unmet WHY skips the test, or fails it where nothing may be skipped.
unmet() {
    if [[ ${REQUIRE_TOOLS-} == 1 ]]; then
        fail "$1 (REQUIRE_TOOLS=1)"
    else
        skip "$1"
    fi
}

requires() {
    case $1 in
    root) ((EUID == 0)) || unmet "must be root" ;;
    user) [[ -n $UNPRIVILEGED ]] || unmet "no unprivileged user" ;;
    registry) [[ -n $REGISTRY ]] || unmet "docker-registry is not installed" ;;
    tls-registry) [[ -n $TLS_REGISTRY ]] || unmet "docker-registry, htpasswd or openssl is not installed" ;;
    *) fail "requires $1?" ;;
    esac
}

requires_tool() {
    local tool
    for tool in "$@"; do
        command -v "$tool" >/dev/null || unmet "$tool is not installed"
    done
}

# --- repositories ---------------------------------------------------------------------------------------------------

# new_scratch sets REPO to where a test's repository is to be; drop_scratch, for teardown, removes it.
new_scratch() {
    SCRATCH_DIR=$(mktemp -d -- "$SCRATCH/XXXXXX")
    chmod 755 -- "$SCRATCH_DIR"
    REPO=$SCRATCH_DIR/repo
}

drop_scratch() {
    [[ -z ${SCRATCH_DIR-} ]] || rm -rf -- "$SCRATCH_DIR"
}

# new_repo PATH MODE makes a repository of OI_USER's.
new_repo() {
    if [[ ${OI_USER-} == user ]]; then
        mkdir -p -- "$1"
        ((EUID != 0)) || chown -- "$UNPRIVILEGED" "$1"
        must as_user ostree init "--repo=$1" "--mode=$2"
    else
        must ostree init "--repo=$1" "--mode=$2"
    fi
    # Half of an import's time here is compression, and its level changes no checksum.
    [[ $2 != archive ]] || printf '[archive]\nzlib-level=1\n' >>"$1/config"
}

# refs REPO prints `checksum ref` for each ref but those under a directory that PATTERN excludes, sorted by ref.
refs() {
    (cd -- "$1/refs/heads" && find . -type f | LC_ALL=C sort | while read -r ref; do
        printf '%s %s\n' "$(cat -- "$ref")" "${ref#./}"
    done)
}

assert_fsck() {
    run --separate-stderr ostree fsck "--repo=$1"
    [[ $status == 0 && $output != *"partial commits not verified"* ]] || fail "fsck of $1: $output $stderr"
}

# assert_clean REPO: nothing of ours is left in tmp/, and nothing of ostree's but what it keeps between runs.
assert_clean() {
    local left
    left=$(find "$1/tmp" -mindepth 1 -maxdepth 1 ! -name cache -printf '%f ')
    [[ -z $left ]] || fail "$1/tmp holds: $left"
}

# children prints the processes of ostree and tar whose arguments name PATH.
children() {
    local file args
    for file in $(grep -alsF -- "$1" /proc/[0-9]*/cmdline || :); do
        args=$(tr '\0' ' ' 2>/dev/null <"$file") || continue
        if [[ $args =~ ^([^ ]*/)?(ostree|tar)\  ]]; then
            echo "${file//[^0-9]/} $args"
        fi
    done 2>/dev/null
}

assert_no_children() {
    local left
    left=$(children "$1")
    [[ -z $left ]] || fail "still running: $left"
}

# assert_untouched REPO BEFORE: the refs are those before, and nothing of a failed run is left.
assert_untouched() {
    assert_equal "$(refs "$1")" "$2" "the refs changed"
    assert_clean "$1"
    assert_no_children "$1"
}

# manifest_layers OCI-LAYOUT TAG prints the hex digests of an image's layers.
manifest_layers() { python3 "$INTEGRATION/image.py" layers "$1" "$2"; }

manifest_digest() { python3 "$INTEGRATION/image.py" digest "$1" "$2"; }

# check_layer REPO MODE REF TARFILE holds the commit's tree against the layer.
check_layer() {
    local own=()
    [[ ${OI_USER-} != user ]] || own=("--own=$(id -u -- "$UNPRIVILEGED"):$(id -g -- "$UNPRIVILEGED")")
    run python3 "$INTEGRATION/treecheck.py" "${own[@]}" "--repo=$1" "--mode=$2" "$3" "$4"
    [[ $status == 0 ]] || fail "$3 is not $4 in $1: $output"
}

# --- fixtures -------------------------------------------------------------------------------------------------------

# fixture NAME makes the images in FIXTURES/NAME unless they are there. Safe for suites that run side by side.
fixture() {
    (
        flock 9
        [[ -e $FIXTURES/$1/done ]] && exit 0
        rm -rf -- "${FIXTURES:?}/$1"
        mkdir -p -- "$FIXTURES/$1"
        cd -- "$FIXTURES/$1" || exit 1
        "make_$1" >"$FIXTURES/$1/log" 2>&1 </dev/null || {
            cat -- "$FIXTURES/$1/log"
            exit 1
        }
        chmod -R a+rX -- "$FIXTURES/$1"
        : >"$FIXTURES/$1/done"
    ) 9>"$FIXTURES/$1.lock" 3>&- || fail "making the fixture $1"
}

# make_debian: a Debian of two layers, as every transport has it.
make_debian() {
    set -ex
    mmdebstrap --variant=minbase --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' "${DEBIAN_SUITE:-bookworm}" base.tar
    make_second_layer second second.tar
    umoci init --layout oci
    umoci new --image oci:debian
    umoci raw add-layer --image oci:debian base.tar
    umoci raw add-layer --image oci:debian second.tar
    umoci config --image oci:debian --created 2024-05-06T07:08:09Z --config.cmd /bin/bash --author 'Zoë "Q" O'\''Hara'
    umoci gc --layout oci
    skopeo --insecure-policy copy -q oci:oci:debian oci-archive:oci.tar:debian
    skopeo --insecure-policy copy -q oci:oci:debian docker-archive:docker.tar:example.com/debian:12
    skopeo --insecure-policy copy -q oci:oci:debian dir:dir
}

# make_second_layer DIR TARFILE: whiteouts, an opaque directory, hard links, devices, setuid files, capabilities.
make_second_layer() {
    mkdir -p "$1"/etc "$1"/var/log "$1"/usr/local/{bin,lib} "$1"/srv/{sticky,private} "$1"/dev
    : >"$1/etc/.wh.motd"
    : >"$1/etc/.wh.issue"
    : >"$1/var/log/.wh..wh..opq"
    echo new >"$1/var/log/new"
    echo one file, three names >"$1/usr/local/lib/a"
    ln "$1/usr/local/lib/a" "$1/usr/local/lib/b"
    ln "$1/usr/local/lib/a" "$1/usr/local/bin/c"
    ln -s ../lib/a "$1/usr/local/bin/link"
    ln -s /nowhere/at/all "$1/usr/local/bin/dangling"
    local f
    for f in setuid setgid capable unreadable executable foreign; do
        echo "$f" >"$1/usr/local/bin/$f"
    done
    chown 1000:1000 "$1/usr/local/bin/foreign"
    chown 0:42 "$1/usr/local/bin/setgid"
    chown -h 65534:65534 "$1/usr/local/bin/dangling"
    chmod 4755 "$1/usr/local/bin/setuid"
    chmod 2755 "$1/usr/local/bin/setgid"
    chmod 0000 "$1/usr/local/bin/unreadable"
    chmod 0111 "$1/usr/local/bin/executable"
    chmod 1777 "$1/srv/sticky"
    chmod 0700 "$1/srv/private"
    chown 100000:100001 "$1/srv/private"
    setcap cap_net_raw,cap_net_bind_service+ep "$1/usr/local/bin/capable"
    mknod "$1/dev/zero-too" c 1 5
    mknod "$1/dev/loop-too" b 7 0
    mkfifo "$1/dev/fifo"
    echo odd >"$1/srv/with blank, 'quote', \"double\", \$dollar and \\ backslash"
    echo odd >"$1/srv/-dash"
    echo odd >"$1/srv/žluťoučký kůň 馬"
    echo odd >"$1/srv/new"$'\n'"line"
    head -c 300000 /dev/urandom >"$1/srv/random"
    tar --create --file="$2" --directory="$1" --numeric-owner --sort=name --mtime=@1700000000 --format=pax \
        --pax-option=delete=atime,delete=ctime --xattrs --xattrs-include='*' .
    rm -rf -- "$1"
}

# make_small: the second layer alone, and one more, for what needs no Debian.
make_small() {
    set -ex
    make_second_layer second second.tar
    mkdir third
    echo third >third/third
    tar --create --file=third.tar --directory=third --owner=0 --group=0 --mtime=@1700000000 third
    rm -r third
    python3 "$INTEGRATION/image.py" oci oci small second.tar third.tar
}

# make_odd: an image of many odd layers, see image.py.
make_odd() {
    set -ex
    mkdir layers
    python3 "$INTEGRATION/image.py" odd layers
    python3 "$INTEGRATION/image.py" oci oci odd layers/*
}

# make_counts: an image of one layer of 10 files, and one of 3,000.
make_counts() {
    set -ex
    local n
    for n in 10 3000; do
        python3 "$INTEGRATION/image.py" files "$n.tar" "$n"
        python3 "$INTEGRATION/image.py" oci oci "$n" "$n.tar"
    done
}

# in_registry REGISTRY FIXTURE TAG pushes FIXTURE's image TAG, once, and sets image_name.
in_registry() {
    image_name=$1/$2/$3:1
    (
        flock 9
        [[ -e $SUITE_DIR/pushed-${image_name//\//_} ]] && exit 0
        local options=(--dest-tls-verify=false)
        [[ $1 != "$TLS_REGISTRY" ]] || options+=(--dest-creds='importer:s3cr3t-Passw0rd')
        skopeo --insecure-policy copy -q "${options[@]}" "oci:$FIXTURES/$2/oci:$3" "docker://$image_name" &&
            : >"$SUITE_DIR/pushed-${image_name//\//_}"
    ) 9>"$SUITE_DIR/push.lock" 3>&- || fail "pushing $image_name"
}

# make_bad: layers that must be refused, each an image.
make_bad() {
    set -ex
    local layer
    mkdir layers
    python3 "$INTEGRATION/image.py" bad layers
    for layer in layers/*; do
        python3 "$INTEGRATION/image.py" oci oci "$(basename "$layer" .tar)" "$layer"
    done
    python3 "$INTEGRATION/image.py" files 3.tar 3
    python3 "$INTEGRATION/image.py" --arch=s390x oci oci s390x 3.tar
    python3 "$INTEGRATION/image.py" --os=plan9 oci oci plan9 3.tar
}

# slow_proxy PORT BYTES-PER-SECOND [BYTES] starts a proxy to a port of this machine, which ends a connection after BYTES,
# and sets proxy to its address and proxy_pid.
slow_proxy() {
    python3 "$INTEGRATION/slowproxy.py" "$@" >"$BATS_TEST_TMPDIR/proxy" 2>"$BATS_TEST_TMPDIR/proxy.log" 3>&- &
    proxy_pid=$!
    local i
    for ((i = 0; i < 100; i++)); do
        [[ ! -s $BATS_TEST_TMPDIR/proxy ]] || break
        sleep 0.1
    done
    proxy=127.0.0.1:$(cat -- "$BATS_TEST_TMPDIR/proxy")
}

# make_hostile: names, a config and a manifest that mean something to a shell.
make_hostile() {
    set -ex
    python3 "$INTEGRATION/image.py" hostile hostile.tar
    python3 "$INTEGRATION/image.py" --author=$'O\'Hara "$(touch /tmp/pwned)" `id` \\ %s\n\t馬 !' oci oci hostile hostile.tar
}
