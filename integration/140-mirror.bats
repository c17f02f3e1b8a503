#!/usr/bin/env bats
# A repository that a static web server gives out, mirrored, pulled under a remote, and carried on a stick.

bats_require_minimum_version 1.5.0
load helpers
load export

setup_file() {
    command -v skopeo >/dev/null || return 0
    ((EUID == 0)) || return 0
    command -v setcap >/dev/null || return 0
    fixture small
    export SERVED=$BATS_FILE_TMPDIR/served
    new_repo "$SERVED" archive
    oi "--repo=$SERVED" pull "oci:$FIXTURES/small/oci:small" small
    oi "--repo=$SERVED" pull --preserve-digests "oci:$FIXTURES/small/oci:small" example.com/exact:1
    must ostree summary -u "--repo=$SERVED"
    # The kernel chooses the port.
    python3 -u -m http.server --bind 127.0.0.1 --directory "$SERVED" 0 >"$BATS_FILE_TMPDIR/http" 2>&1 3>&- &
    echo "$!" >"$BATS_FILE_TMPDIR/http.pid"
    local i
    for ((i = 0; i < 100; i++)); do
        URL=$(sed -n 's/.*(\(http:[^)]*\)).*/\1/p' "$BATS_FILE_TMPDIR/http" | head -n 1)
        [[ -z $URL ]] || break
        sleep 0.1
    done
    export URL
    [[ -n $URL ]] || fail "no web server: $(cat "$BATS_FILE_TMPDIR/http")"
}

teardown_file() {
    [[ ! -e $BATS_FILE_TMPDIR/http.pid ]] || kill "$(cat "$BATS_FILE_TMPDIR/http.pid")"
}

setup() {
    requires root
    requires_tool ostree skopeo setcap jq python3 zstd
    REPO=$BATS_TEST_TMPDIR/repo
    T=$BATS_TEST_TMPDIR
}

# check_images SMALL EXACT: the images are there and leave as they came, under these refs.
check_images() {
    oi "--repo=$REPO" list --format=json
    assert_equal "$(jq -r '.[] | .name + " " + .ref' <<<"$output")" "example.com/exact:1 $2
small:latest $1"
    assert_equal "$(jq -r '.[] | .layers' <<<"$output")" $'2\n2'
    assert_equal "$(jq -r '[.[].uncompressedSize] | unique | length' <<<"$output")" 1
    oi "--repo=$REPO" verify
    [[ -z $stderr ]] || fail "verify says: $stderr"
    oi "--repo=$REPO" push small "dir:$T/small"
    assert_equal "$(facts "dir:$T/small")" "$(facts "oci:$FIXTURES/small/oci:small")"
    oi "--repo=$REPO" push --preserve-digests example.com/exact:1 "dir:$T/exact"
    assert_equal "$(raw_digest "dir:$T/exact")" "$(manifest_digest "$FIXTURES/small/oci" small)"
    oi "--repo=$REPO" inspect small
    assert_equal "$(jq -r .Name <<<"$output")" small:latest
    oi "--repo=$REPO" prune --dry-run --format=json
    assert_stdout '[]'
}

@test "a mirror" {
    new_repo "$REPO" archive
    must ostree remote add "--repo=$REPO" --no-gpg-verify origin "$URL"
    must ostree pull "--repo=$REPO" --mirror origin
    check_images ociimage/small_3Alatest ociimage/example.com_2Fexact_3A1
    assert_equal "$(refs "$REPO")" "$(refs "$SERVED")"
    assert_fsck "$REPO"
}

@test "refs under a remote" {
    local refs
    new_repo "$REPO" bare-user
    must ostree remote add "--repo=$REPO" --no-gpg-verify origin "$URL"
    mapfile -t refs < <(ostree remote refs "--repo=$REPO" origin | sed 's/^origin://')
    must ostree pull "--repo=$REPO" origin "${refs[@]}"
    check_images origin:ociimage/small_3Alatest origin:ociimage/example.com_2Fexact_3A1

    # A local image of the same name hides it, and both stay whole.
    oi "--repo=$REPO" pull "oci:$FIXTURES/small/oci:small" small
    oi "--repo=$REPO" list --format=json
    assert_equal "$(jq -r '.[] | .ref' <<<"$output")" "origin:ociimage/example.com_2Fexact_3A1
ociimage/small_3Alatest
origin:ociimage/small_3Alatest"
    oi "--repo=$REPO" verify
    oi "--repo=$REPO" remove small
    check_images origin:ociimage/small_3Alatest origin:ociimage/example.com_2Fexact_3A1
    oi "--repo=$REPO" remove small example.com/exact:1
    [[ -z $(ostree refs "--repo=$REPO") ]] || fail "refs are left: $(ostree refs "--repo=$REPO")"
    # ostree notes which commits of a remote were deleted.
    [[ -z $(find "$REPO/objects" -type f ! -name '*.tombstone-commit') ]] || fail "objects are left"
}

@test "a stick" {
    ostree create-usb --help >/dev/null 2>&1 || unmet "this ostree has no create-usb"
    local refs=() ref
    new_repo "$T/source" archive
    must ostree config "--repo=$T/source" set core.collection-id org.example.Images
    oi "--repo=$T/source" pull "oci:$FIXTURES/small/oci:small" small
    oi "--repo=$T/source" pull --preserve-digests "oci:$FIXTURES/small/oci:small" example.com/exact:1
    assert_fsck "$T/source"
    oi "--repo=$T/source" verify
    must ostree summary -u "--repo=$T/source"
    while read -r ref; do
        refs+=(org.example.Images "$ref")
    done < <(ostree refs "--repo=$T/source")
    mkdir -- "$T/stick"
    must ostree create-usb "--repo=$T/source" "$T/stick" "${refs[@]}"
    # A pull that is not told by a finder of sticks knows the refs by the repository's own collection.
    must ostree config "--repo=$T/stick/.ostree/repo" set core.collection-id org.example.Images
    must ostree summary -u "--repo=$T/stick/.ostree/repo"
    new_repo "$REPO" bare-user
    must ostree remote add "--repo=$REPO" --no-gpg-verify stick "file://$T/stick/.ostree/repo"
    mapfile -t refs < <(ostree refs "--repo=$T/source" | grep ^ociimage/)
    must ostree pull "--repo=$REPO" stick "${refs[@]}"
    check_images stick:ociimage/small_3Alatest stick:ociimage/example.com_2Fexact_3A1
}
