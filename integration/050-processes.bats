#!/usr/bin/env bats
# How many processes a copy takes, and that it does nothing twice.

bats_require_minimum_version 1.5.0
load helpers

setup_file() {
    ((EUID == 0)) || return 0
    fixture counts
    fixture small
}

setup() {
    requires root
    requires_tool ostree python3
    REPO=$BATS_TEST_TMPDIR/repo
    local tool
    for tool in ostree tar; do
        printf '#!/bin/sh\necho "%s $1" >>"%s/count"\nexec %s "$@"\n' "$tool" "$BATS_TEST_TMPDIR" "$tool" >"$BATS_TEST_TMPDIR/$tool"
        chmod 755 -- "$BATS_TEST_TMPDIR/$tool"
    done
}

# counted ARGUMENT… runs the program and sets count to the processes of ostree and tar that it started.
counted() {
    : >"$BATS_TEST_TMPDIR/count"
    chmod 666 -- "$BATS_TEST_TMPDIR/count"
    oi "--ostree=$BATS_TEST_TMPDIR/ostree" "--tar=$BATS_TEST_TMPDIR/tar" "--repo=$REPO" "$@"
    count=$(wc -l <"$BATS_TEST_TMPDIR/count")
    echo "$count processes:"
    cat -- "$BATS_TEST_TMPDIR/count"
}

# count_of MODE ENGINE TAG
count_of() {
    rm -rf -- "$REPO"
    new_repo "$REPO" "$1"
    counted pull "--unpack=$2" "oci:$FIXTURES/counts/oci:$3" "image:$3"
}

@test "processes [of files they do not depend]" {
    local engine few
    for engine in stream tar; do
        count_of bare-user "$engine" 10
        few=$count
        count_of bare-user "$engine" 3000
        # One more for the record that no longer fits into the layer's commit.
        ((count <= few + 1)) || fail "$few for 10 files, $count for 3,000"
        ((few <= 14)) || fail "$few for one layer"
    done
}

@test "processes [user, of files they do not depend]" {
    requires user
    OI_USER=user
    local few
    count_of bare-user tar 10
    few=$count
    count_of bare-user tar 3000
    ((count <= few + 1)) || fail "$few for 10 files, $count for 3,000"
}

@test "processes [of layers they do]" {
    local one
    count_of bare-user stream 10
    one=$count
    rm -rf -- "$REPO"
    new_repo "$REPO" bare-user
    counted pull "oci:$FIXTURES/small/oci:small" small
    ((count <= one + 3)) || fail "$one for one layer, $count for two"
}

@test "again [nothing new]" {
    local before mode
    for mode in "${MODES[@]}"; do
        rm -rf -- "$REPO"
        new_repo "$REPO" "$mode"
        counted pull "oci:$FIXTURES/small/oci:small" small
        before=$(refs "$REPO")
        counted pull "oci:$FIXTURES/small/oci:small" small
        ((count <= 4 + 2)) || fail "$count processes for an image of two layers"
        run ! grep -E '^(tar|ostree (commit|pull-local|init))' "$BATS_TEST_TMPDIR/count"
        assert_equal "$(refs "$REPO")" "$before" "the refs"
        assert_clean "$REPO"
    done
}

@test "again [a record beside the layer]" {
    count_of archive stream 3000
    local before
    before=$(refs "$REPO")
    counted pull "oci:$FIXTURES/counts/oci:3000" image:3000
    ((count <= 4 + 1)) || fail "$count processes for an image of one layer"
    run ! grep -E '^(tar|ostree (commit|pull-local|init))' "$BATS_TEST_TMPDIR/count"
    assert_equal "$(refs "$REPO")" "$before" "the refs"
}

@test "again [another name]" {
    new_repo "$REPO" bare-user
    counted pull "oci:$FIXTURES/small/oci:small" small
    local before
    before=$(refs "$REPO")
    counted pull "oci:$FIXTURES/small/oci:small" other
    [[ $(grep -c '^ostree commit' "$BATS_TEST_TMPDIR/count") == 1 ]] || fail "more than the image's commit"
    run ! grep '^tar' "$BATS_TEST_TMPDIR/count"
    assert_equal "$(refs "$REPO" | grep -v other_3A)" "$before" "the other refs"
}

@test "again [another tag of the name moves it]" {
    new_repo "$REPO" bare-user
    oi "--repo=$REPO" pull "oci:$FIXTURES/counts/oci:10" image
    oi "--repo=$REPO" pull "oci:$FIXTURES/counts/oci:3000" image
    oi "--repo=$REPO" list --format=json
    assert_stdout_has "$(manifest_digest "$FIXTURES/counts/oci" 3000)"
    run ! grep -F "$(manifest_digest "$FIXTURES/counts/oci" 10)" <<<"$output"
    run -0 ostree show "--repo=$REPO" ociimage/image_3Alatest
    [[ $output != *Parent:* ]] || fail "it has a parent"
}

# A layer that the first layout left without tar-split data is imported anew.
@test "again [a layer of an older layout]" {
    new_repo "$REPO" bare-user
    local layer
    layer=$(manifest_layers "$FIXTURES/counts/oci" 10)
    must ostree commit "--repo=$REPO" "--branch=ociimage/$layer" --add-metadata-string=docker.size=268 "--tree=tar=$FIXTURES/counts/10.tar" --tar-autocreate-parents
    oi "--repo=$REPO" pull "oci:$FIXTURES/counts/oci:10" ten
    assert_stderr_has "Importing layer sha256:$layer"
    run -0 ostree show "--repo=$REPO" --print-metadata-key=tarsplit.output "ociimage/$layer"
}

@test "two at once [the same image]" {
    new_repo "$REPO" bare-user
    "$OI" --insecure-policy "--repo=$REPO" pull "oci:$FIXTURES/small/oci:small" one >"$BATS_TEST_TMPDIR/one" 2>&1 3>&- &
    local pid=$!
    oi "--repo=$REPO" pull "oci:$FIXTURES/small/oci:small" two
    wait "$pid" || fail "$(cat "$BATS_TEST_TMPDIR/one")"
    assert_fsck "$REPO"
    assert_clean "$REPO"
    oi "--repo=$REPO" list
    assert_stdout_has one:latest
    assert_stdout_has two:latest
}
