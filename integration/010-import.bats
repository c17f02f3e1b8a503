#!/usr/bin/env bats
# A real Debian image, from every transport, into repositories of every mode, as root and as another user.

bats_require_minimum_version 1.5.0
load helpers

setup_file() {
    export BATS_NO_PARALLELIZE_WITHIN_FILE=true # later tests compare what earlier ones noted in NOTES
    export NOTES=$BATS_FILE_TMPDIR/notes
    mkdir -p -- "$NOTES"
    ((EUID == 0)) || return 0
    for tool in mmdebstrap umoci skopeo setcap; do
        command -v "$tool" >/dev/null || return 0
    done
    fixture debian
    [[ -z $REGISTRY ]] || in_registry "$REGISTRY" debian debian
}

setup() {
    requires root
    requires_tool ostree mmdebstrap umoci skopeo setcap python3
    F=$FIXTURES/debian
    new_scratch
    mapfile -t LAYERS < <(manifest_layers "$F/oci" debian)
}

teardown() {
    drop_scratch
}

# source_of TRANSPORT sets source to the image's name there.
source_of() {
    case $1 in
    docker) source=docker://$REGISTRY/debian/debian:1 ;;
    oci) source=oci:$F/oci:debian ;;
    oci-archive) source=oci-archive:$F/oci.tar:debian ;;
    docker-archive) source=docker-archive:$F/docker.tar:example.com/debian:12 ;;
    dir) source=dir:$F/dir ;;
    esac
}

content_checksum() { ostree show "--repo=$REPO" "$1" | sed -n 's/^ContentChecksum: *//p'; }

# layer_refs prints the layers' and side refs of the Debian image with gzip'd layers, and their commits.
layer_refs() { refs "$REPO" | grep -E "$(IFS='|'; echo "${LAYERS[*]}")|debian_3Alatest"; }

# check_import USER MODE FIRST: FIRST brings the layers, the other transports find them there.
check_import() {
    requires user
    OI_USER=$1
    local mode=$2 t source
    new_repo "$REPO" "$mode"
    local transports=("$3") before
    for t in oci docker oci-archive dir; do
        [[ $t == "$3" || ($t == docker && -z $REGISTRY) ]] || transports+=("$t")
    done

    source_of "$3"
    oi "--repo=$REPO" pull --src-tls-verify=false "$source" debian
    [[ -z $output ]] || fail "something is on stdout"
    assert_stderr_has "Importing layer sha256:${LAYERS[0]}"
    assert_stderr_has "Importing layer sha256:${LAYERS[1]}"
    assert_stderr_has "layer sha256:${LAYERS[1]}: 3 devices, fifos or sockets left out"
    check_warning "$1" "$mode"
    check_layer "$REPO" "$mode" "ociimage/${LAYERS[0]}" "$F/base.tar"
    check_layer "$REPO" "$mode" "ociimage/${LAYERS[1]}" "$F/second.tar"
    check_image debian_3Alatest
    layer_refs >"$NOTES/$1-$mode"

    before=$(layer_refs)
    for t in "${transports[@]:1}"; do
        source_of "$t"
        oi "--repo=$REPO" pull --src-tls-verify=false "$source" "debian:$t"
        assert_stderr_lacks 'Importing layer'
        check_image "debian_3A$t"
        assert_equal "$(layer_refs)" "$before" "the layers' commits changed"
    done

    [[ $1$2 != rootbare && $1$2 != userarchive ]] || check_docker_archive
    assert_fsck "$REPO"
    assert_clean "$REPO"
    if [[ $1 == user ]]; then
        [[ -z $(find "$REPO" ! -user "$UNPRIVILEGED") ]] || fail "files of others"
    fi
}

# check_docker_archive: an archive of docker's holds the layers without compression, so under other digests.
check_docker_archive() {
    local n plain
    source_of docker-archive
    oi "--repo=$REPO" copy "$source" "ostree:debian:docker-archive@$REPO"
    plain=("$(sha256sum <"$F/base.tar")" "$(sha256sum <"$F/second.tar")")
    for n in 0 1; do
        assert_equal "$(content_checksum "ociimage/${plain[n]%% *}")" "$(content_checksum "ociimage/${LAYERS[n]}")" "layer $n"
    done
}

# check_image REF: the manifest is the source's own, and the commit says so.
check_image() {
    local digest
    digest=$(manifest_digest "$F/oci" debian)
    assert_equal "sha256:$(ostree cat "--repo=$REPO" "ociimage/$1" /manifest.json | sha256sum | cut -d ' ' -f 1)" "$digest"
    assert_equal "$(ostree show "--repo=$REPO" --print-metadata-key=docker.digest "ociimage/$1")" "'$digest'"
    assert_equal "$(ostree show "--repo=$REPO" --print-metadata-key=signatures "ociimage/$1")" "'0'"
}

# check_warning USER MODE: what cannot be kept is said, once.
check_warning() {
    local want=0
    [[ $1 == root || $2 == bare-user || $2 == archive ]] || want=1
    assert_equal "$(grep -c '^ostree-image: warning: ' <<<"$stderr")" "$want" "warnings"
    ((want == 0)) || assert_stderr_has "ostree-image: warning: not root, repository of mode $2: "
    [[ $1$2 != userbare ]] || assert_stderr_has "all files belong to $(id -u "$UNPRIVILEGED"):$(id -g "$UNPRIVILEGED") and have no file capabilities"
}

@test "import [root, bare, docker first]" {
    requires registry
    check_import root bare docker
}

@test "import [root, bare-user, oci first]" {
    check_import root bare-user oci
}

@test "import [root, bare-user-only, oci-archive first]" {
    check_import root bare-user-only oci-archive
}

@test "import [root, archive, dir first]" {
    check_import root archive dir
}

@test "import [user, bare, oci-archive first]" {
    check_import user bare oci-archive
}

@test "import [user, bare-user, dir first]" {
    check_import user bare-user dir
}

@test "import [user, bare-user-only, oci first]" {
    check_import user bare-user-only oci
}

@test "import [user, archive, docker first]" {
    requires registry
    check_import user archive docker
}

# noted USER MODE prints what the test above noted, and skips where it did not run.
noted() {
    [[ -s $NOTES/$1-$2 ]] || skip "the test 'import [$1, $2]' did not run"
    cat -- "$NOTES/$1-$2"
}

@test "same commits [root and user, archive and bare-user]" {
    local mode
    for mode in archive bare-user; do
        noted root "$mode" >"$BATS_TEST_TMPDIR/root"
        noted user "$mode" >"$BATS_TEST_TMPDIR/user"
        assert_equal "$(cat "$BATS_TEST_TMPDIR/user")" "$(cat "$BATS_TEST_TMPDIR/root")" "$mode"
    done
}

@test "same commits [archive, bare and bare-user]" {
    noted root archive >"$BATS_TEST_TMPDIR/archive"
    for mode in bare bare-user; do
        noted root "$mode" >"$BATS_TEST_TMPDIR/other"
        assert_equal "$(cat "$BATS_TEST_TMPDIR/other")" "$(cat "$BATS_TEST_TMPDIR/archive")" "$mode"
    done
}

# check_later USER MODE: umask 077, the clock of ostree and tar a year ahead, and the same commits as above.
check_later() {
    requires_tool faketime
    noted "$1" "$2" >"$BATS_TEST_TMPDIR/before"
    OI_USER=$1
    # The files' times stay those of the kernel, so to ostree's clock all of them are a year old: nothing must expire.
    cat >"$BATS_TEST_TMPDIR/ostree" <<'END'
#!/bin/sh
[ "$1" != init ] || { ostree "$@" && exec ostree config "$2" set core.tmp-expiry-secs 999999999; } || exit
exec faketime -f +366d ostree "$@"
END
    chmod 755 "$BATS_TEST_TMPDIR/ostree"
    new_repo "$REPO" "$2"
    must ostree config "--repo=$REPO" set core.tmp-expiry-secs 999999999
    umask 077
    oi "--ostree=$BATS_TEST_TMPDIR/ostree" "--repo=$REPO" pull "oci:$F/oci:debian" debian
    assert_equal "$(layer_refs)" "$(cat "$BATS_TEST_TMPDIR/before")" "a year later, with umask 077"
}

@test "same commits a year later, umask 077 [root, archive]" {
    check_later root archive
}

@test "same commits a year later, umask 077 [root, bare-user]" {
    check_later root bare-user
}

@test "same commits a year later, umask 077 [user, archive]" {
    check_later user archive
}

@test "same commits a year later, umask 077 [user, bare-user]" {
    check_later user bare-user
}

@test "same commits whatever the umask" {
    local umask engine want=''
    fixture counts
    for umask in 022 077; do
        for engine in stream tar; do
            rm -rf -- "$REPO"
            new_repo "$REPO" archive
            umask "$umask"
            oi "--repo=$REPO" pull "--unpack=$engine" "oci:$FIXTURES/counts/oci:3000" image
            umask 022
            : "${want:=$(refs "$REPO")}"
            assert_equal "$(refs "$REPO")" "$want" "umask $umask, $engine"
        done
    done
}

# check_engine MODE: root's commits are the same with either engine.
check_engine() {
    noted root "$1" >"$BATS_TEST_TMPDIR/stream"
    new_repo "$REPO" "$1"
    oi --debug "--repo=$REPO" pull --unpack=tar "oci:$F/oci:debian" debian
    assert_stderr_has '+ tar -x'
    assert_stderr_lacks '--tree=tar='
    assert_equal "$(layer_refs)" "$(cat "$BATS_TEST_TMPDIR/stream")" "$1"
    assert_fsck "$REPO"
    assert_clean "$REPO"
}

@test "the tar engine gives the same commits [bare]" {
    check_engine bare
}

@test "the tar engine gives the same commits [bare-user]" {
    check_engine bare-user
}

@test "the tar engine gives the same commits [bare-user-only]" {
    check_engine bare-user-only
}

@test "the tar engine gives the same commits [archive]" {
    check_engine archive
}

@test "the tar engine [user, every mode]" {
    requires user
    fixture small
    OI_USER=user
    local mode
    for mode in "${MODES[@]}"; do
        rm -rf -- "$REPO"
        new_repo "$REPO" "$mode"
        oi "--repo=$REPO" pull --unpack=tar "oci:$FIXTURES/small/oci:small" small
        assert_equal "$(grep -c '^ostree-image: warning: ' <<<"$stderr")" 1 "warnings"
        assert_fsck "$REPO"
        assert_clean "$REPO"
        run -0 ostree ls "--repo=$REPO" -R "ociimage/$(manifest_layers "$FIXTURES/small/oci" small | head -n 1)"
        [[ $mode == bare-user-only ]] || [[ $output == *"-04755 "*"/usr/local/bin/setuid"* ]] || fail "setuid is lost in $mode"
        [[ $mode == bare-user-only || $mode == bare ]] || [[ $output == *"-00000 "*"/usr/local/bin/unreadable"* ]] || fail "mode 0000 is lost in $mode"
    done
}
