#!/usr/bin/env bats
# Images of many makers go into repositories of every mode and come out again through every transport, byte for byte.

bats_require_minimum_version 1.5.0
load helpers
load export

setup_file() {
    ((EUID == 0)) || return 0
    local tool
    for tool in mmdebstrap umoci skopeo setcap buildah; do
        command -v "$tool" >/dev/null || return 0
    done
    fixture debian
    fixture small
    fixture makers
    BATS_TEST_TMPDIR=$BATS_FILE_TMPDIR facts "oci:$FIXTURES/debian/oci:debian" >"$BATS_FILE_TMPDIR/debian-facts"
}

# make_makers: small images of several makers, and what each of them is.
make_makers() {
    set -ex
    local buildah=(buildah --root "$PWD/root" --runroot "$PWD/runroot" --storage-driver vfs) container
    mkdir -p files/etc files/usr/bin
    echo hello >files/etc/motd
    ln -s ../etc/motd files/usr/motd
    head -c 70000 /dev/urandom >files/usr/bin/random
    chmod 4755 files/usr/bin/random
    container=$("${buildah[@]}" from scratch)
    "${buildah[@]}" copy -q "$container" files /
    "${buildah[@]}" config --cmd /usr/bin/random "$container"
    "${buildah[@]}" commit -q --timestamp 1700000000 "$container" oci:built:image
    "${buildah[@]}" rm "$container"
    rm -rf root runroot files
    skopeo --insecure-policy copy -q "oci:$FIXTURES/small/oci:small" dir:small
    skopeo --insecure-policy copy -q --dest-decompress dir:small dir:plain
    skopeo --insecure-policy copy -q --dest-compress-format zstd --dest-compress dir:plain oci:zstd:image
    skopeo --insecure-policy copy -q oci:zstd:image oci-archive:zstd.tar:image
    skopeo --insecure-policy copy -q dir:small docker-archive:docker.tar:example.com/small:1
}

setup() {
    requires root
    requires_tool ostree mmdebstrap umoci skopeo setcap buildah jq zstd
    F=$FIXTURES/debian
    M=$FIXTURES/makers
    REPO=$BATS_TEST_TMPDIR/repo
    T=$BATS_TEST_TMPDIR
}

NAMES=(built zstd docker dir)

# source_of NAME prints where an image comes from.
source_of() {
    case $1 in
    built) echo "oci:$M/built:image" ;;
    zstd) echo "oci-archive:$M/zstd.tar:image" ;;
    docker) echo "docker-archive:$M/docker.tar:example.com/small:1" ;;
    dir) echo "dir:$M/small" ;;
    esac
}

# check_out NAME TRANSPORT WANT pushes an image and holds it against WANT, its facts.
check_out() {
    local to
    case $2 in
    oci) to=oci:$T/out-$1:image ;;
    dir) to=dir:$T/out-$1-dir ;;
    docker-archive) to=docker-archive:$T/out-$1.docker:example.com/image:1 ;;
    oci-archive) to=oci-archive:$T/out-$1.oci:image ;;
    docker) to=docker://$(own_name):1 ;;
    containers-storage) to="containers-storage:[vfs@$T/storage+$T/run]localhost/$1:1" ;;
    esac
    oi "--repo=$REPO" push --dest-tls-verify=false "$1" "$to"
    [[ -z $output ]] || fail "something is on stdout"
    case $1:$2 in
    # Docker's config becomes one of OCI's, with the library as with skopeo.
    docker:oci*) assert_equal "$(facts "$to" | tail -n +2)" "$(tail -n +2 <<<"$3")" "$1 in $to is not what it was" ;;
    *) assert_equal "$(facts "$to")" "$3" "$1 in $to is not what it was" ;;
    esac
    if [[ $2 == dir || $2 == oci ]]; then
        rm -rf -- "$T/out-$1"*
    fi
}

# The old transport failed at both of these for a gzip'd image: "blob size mismatch".
debian_round_trip() {
    local want layer
    new_repo "$REPO" "$1"
    oi "--repo=$REPO" pull "oci:$F/oci:debian" debian
    want=$(cat -- "$BATS_FILE_TMPDIR/debian-facts")
    [[ $want == sha256:*$'\n'sha256:* ]] || fail "$want"
    local transport
    for transport in "${@:2}"; do
        check_out debian "$transport" "$want"
    done
    assert_fsck "$REPO"
    assert_clean "$REPO"
    assert_no_children "$REPO"
}

@test "debian: bare" { debian_round_trip bare docker-archive; }
@test "debian: bare-user" { debian_round_trip bare-user docker-archive containers-storage; }
@test "debian: bare-user-only" { debian_round_trip bare-user-only docker-archive; }
@test "debian: archive" { debian_round_trip archive dir; }

# small_round_trip MODE TRANSPORT…
small_round_trip() {
    local name transport want
    new_repo "$REPO" "$1"
    for name in "${NAMES[@]}"; do
        oi "--repo=$REPO" pull "$(source_of "$name")" "$name"
        want=$(facts "$(source_of "$name")")
        for transport in "${@:2}"; do
            [[ $transport != docker || -n $REGISTRY ]] || continue
            check_out "$name" "$transport" "$want"
        done
    done
    oi "--repo=$REPO" verify
    assert_clean "$REPO"
}

@test "many makers: bare" { small_round_trip bare oci containers-storage; }
@test "many makers: bare-user, all transports" { small_round_trip bare-user oci dir docker-archive oci-archive docker containers-storage; }
@test "many makers: bare-user-only" { small_round_trip bare-user-only docker-archive; }
@test "many makers: archive" { small_round_trip archive docker oci-archive; }

@test "another user's repository of each mode gives the same" {
    requires user
    local mode want
    want=$(facts "oci:$FIXTURES/small/oci:small")
    for mode in bare bare-user bare-user-only archive; do
        OI_USER=user new_repo "$T/$mode" "$mode"
        OI_USER=user oi "--repo=$T/$mode" pull "oci:$FIXTURES/small/oci:small" small
        OI_USER=user oi "--repo=$T/$mode" push small "oci-archive:$UNPRIVILEGED_HOME/$BATS_SUITE_TEST_NUMBER-$mode.tar:image"
        assert_equal "$(facts "oci-archive:$UNPRIVILEGED_HOME/$BATS_SUITE_TEST_NUMBER-$mode.tar:image")" "$want"
        OI_USER=user oi "--repo=$T/$mode" verify
    done
}

# --- preserved digests ------------------------------------------------------------------------------------------------

@test "preserved digests: the very same manifest and blobs" {
    local name to transport
    new_repo "$REPO" bare-user
    for name in built zstd dir; do
        oi "--repo=$REPO" pull --preserve-digests "$(source_of "$name")" "$name"
        for transport in "oci:$T/out-$name:image" "dir:$T/$name-dir" "docker://$(own_name):1"; do
            [[ $transport != docker:* || -n $REGISTRY ]] || continue
            oi "--repo=$REPO" push --preserve-digests --dest-tls-verify=false "$name" "$transport"
            assert_equal "$(raw_digest "$transport")" "$(raw_digest "$(source_of "$name")")" "the manifest of $name changed"
            facts "$transport" >/dev/null
        done
    done
    # The bytes themselves.
    (cd -- "$M/small" && sha256sum -- *) >"$T/want"
    (cd -- "$T/dir-dir" && sha256sum -- *) | diff "$T/want" - || fail "the dir: is not what it was"
    oi "--repo=$REPO" verify
}

@test "preserved digests: asked for too late, it says so, and a pull fetches what is missing" {
    local layer
    new_repo "$REPO" bare-user
    oi "--repo=$REPO" pull "dir:$M/small" small
    oi -1 "--repo=$REPO" push --preserve-digests small "dir:$T/out"
    assert_error 'compressed bytes are not stored'
    assert_stderr_has '--preserve-digests'
    assert_no_children "$REPO"

    oi "--repo=$REPO" pull --preserve-digests "dir:$M/small" again
    assert_stderr_has 'Importing layer'
    oi "--repo=$REPO" push --preserve-digests small "dir:$T/out"
    for layer in $(manifest_layers "$FIXTURES/small/oci" small); do
        cmp "$M/small/$layer" "$T/out/$layer"
        ostree ls "--repo=$REPO" "ociimage/tarsplit/$layer" /blob
    done
    oi "--repo=$REPO" pull --preserve-digests "dir:$M/small" third
    assert_stderr_lacks 'Importing layer'
    oi "--repo=$REPO" verify
}

@test "an uncompressed image keeps its digest without being asked" {
    new_repo "$REPO" archive
    oi "--repo=$REPO" pull "dir:$M/plain" plain
    ! refs "$REPO" | grep -q tarsplit || fail "a side commit is there that nothing needs"
    oi "--repo=$REPO" push --preserve-digests plain "dir:$T/out"
    (cd -- "$M/plain" && sha256sum -- *) >"$T/want"
    (cd -- "$T/out" && sha256sum -- *) | diff "$T/want" - || fail "the dir: is not what it was"
}

# --- signatures -------------------------------------------------------------------------------------------------------

# signing makes a key, and a policy that wants its signatures, in GNUPGHOME.
signing() {
    requires_tool gpg
    export GNUPGHOME=$T/gnupg
    mkdir -m 700 -- "$GNUPGHOME"
    must gpg --batch --passphrase '' --quick-generate-key signer@example.com default default never
    must gpg --batch --armor --output "$T/key.asc" --export signer@example.com
    cat >"$T/policy.json" <<END
{"default": [{"type": "reject"}], "transports": {
    "dir": {"": [{"type": "insecureAcceptAnything"}]},
    "ostree": {"": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "$T/key.asc"}]}}}
END
}

teardown() {
    [[ -z ${GNUPGHOME-} ]] || gpgconf --kill all
}

@test "a signed image keeps its bytes by itself and leaves with its signatures" {
    signing
    new_repo "$REPO" bare-user
    cp -r -- "$M/small" "$T/signed"
    must skopeo standalone-sign "$M/small/manifest.json" example.com/small:1 signer@example.com -o "$T/signed/signature-1"

    oi "--repo=$REPO" pull "dir:$T/signed" example.com/small:1
    assert_equal "$(ostree show "--repo=$REPO" --print-metadata-key=signatures ociimage/example.com_2Fsmall_3A1)" "'1'"
    oi "--repo=$REPO" list --format=json
    assert_equal "$(jq '.[0].signatures' <<<"$output")" 1
    OI_POLICY=--policy=$T/policy.json oi "--repo=$REPO" push example.com/small:1 "dir:$T/out"
    (cd -- "$T/signed" && sha256sum -- *) >"$T/want"
    (cd -- "$T/out" && sha256sum -- *) | diff "$T/want" - || fail "the signed image is not what it was"
    must skopeo standalone-verify "$T/out/manifest.json" example.com/small:1 \
        "$(gpg --batch --with-colons --list-keys signer@example.com | sed -n 's/^fpr:*\([0-9A-F]*\):$/\1/p' | head -n 1)" "$T/out/signature-1"

    # Where signatures cannot go, they stay only if that is wanted.
    oi -1 "--repo=$REPO" push example.com/small:1 "docker-archive:$T/out.tar"
    assert_error 'ignatures'
    [[ ! -e $T/out.tar ]] || fail "an archive is left"
    oi "--repo=$REPO" push --remove-signatures example.com/small:1 "docker-archive:$T/out.tar"
    assert_equal "$(facts "docker-archive:$T/out.tar")" "$(facts "dir:$M/small")"
    oi "--repo=$REPO" push --remove-signatures example.com/small:1 "dir:$T/unsigned"
    [[ ! -e $T/unsigned/signature-1 ]] || fail "a signature is left"

    # One whose signature is another image's is refused.
    oi "--repo=$REPO" copy "ostree:example.com/small:1@$REPO" "ostree:example.com/other:1@$REPO"
    OI_POLICY=--policy=$T/policy.json oi -4 "--repo=$REPO" push example.com/other:1 "dir:$T/not"
    assert_error 'Source image rejected'
    oi "--repo=$REPO" verify
    oi "--repo=$REPO" remove example.com/small:1 example.com/other:1
    [[ -z $(refs "$REPO") ]] || fail "refs are left"
}

# --- within one repository, and between two -----------------------------------------------------------------------------

@test "copy within a repository imports nothing" {
    local before
    new_repo "$REPO" bare-user
    oi "--repo=$REPO" pull "dir:$M/small" a
    before=$(refs "$REPO" | grep -v _3A)
    oi "--repo=$REPO" copy "ostree:a@$REPO" "ostree:b@$REPO"
    assert_stderr_lacks 'Importing layer'
    assert_equal "$(refs "$REPO" | grep -v _3A)" "$before" "the blobs changed"
    oi "--repo=$REPO" inspect --raw b
    assert_equal "$(sha256sum <<<"$output" | cut -c1-64)" "$(sha256sum < <(cat "$M/small/manifest.json"; echo) | cut -c1-64)"
}

@test "copy between repositories of two modes" {
    new_repo "$REPO" bare-user
    new_repo "$T/other" archive
    oi "--repo=$REPO" pull "dir:$M/small" a
    oi copy "ostree:a@$REPO" "ostree:a@$T/other"
    oi "--repo=$T/other" verify
    assert_equal "$(oi "--repo=$T/other" push a "dir:$T/out" >/dev/null; facts "dir:$T/out")" "$(facts "dir:$M/small")"
}
