#!/usr/bin/env bats
# The short form of make test-crash: see crash.py.

bats_require_minimum_version 1.5.0
load helpers

@test "runs that are killed or interrupted [at random moments]" {
    requires root
    requires_tool ostree tar python3
    run timeout 600 python3 "$INTEGRATION/crash.py" "--program=$OI" "--work=$SCRATCH" --kills=8 --signals=3
    echo "$output"
    [[ $status == 0 ]] || fail "status $status"
}

@test "the power fails [at flushes of the disk, and between them]" {
    requires root
    requires_tool ostree python3 losetup mkfs.ext4 unshare
    [[ -c /dev/fuse && -c /dev/loop-control ]] || skip "this machine has no FUSE or no loop devices"
    run timeout 600 unshare --mount python3 "$INTEGRATION/powercut.py" "--program=$OI" "--work=$SCRATCH" --points=12 --systems=ext4
    echo "$output"
    [[ $status == 0 ]] || fail "status $status"
}

@test "system calls that fail [of ostree commit, in an archive repository]" {
    requires root
    requires_tool ostree tar python3 strace
    run timeout 600 python3 "$INTEGRATION/inject.py" "--program=$OI" "--work=$SCRATCH" --runs=6 --target="ostree commit" --calls=write --mode=archive
    echo "$output"
    [[ $status == 0 ]] || fail "status $status"
}

@test "system calls that fail [of any program]" {
    requires root
    requires_tool ostree tar python3 strace
    run timeout 600 python3 "$INTEGRATION/inject.py" "--program=$OI" "--work=$SCRATCH" --runs=6
    echo "$output"
    [[ $status == 0 ]] || fail "status $status"
}

# What a run brings to a layer that is there, such as its compressed bytes, is no loss where that run was ended.
@test "a sidecar that came only in part [is not needed where the layer does without]" {
    requires_tool ostree
    fixture small
    local repo=$BATS_TEST_TMPDIR/repo layer side blob
    new_repo "$repo" archive
    oi "--repo=$repo" pull "oci:$FIXTURES/small/oci:small" small
    oi "--repo=$repo" pull --preserve-digests "oci:$FIXTURES/small/oci:small" exact
    oi "--repo=$repo" remove --no-prune exact
    for layer in $(python3 "$INTEGRATION/image.py" layers "$FIXTURES/small/oci" small); do
        side=ociimage/tarsplit/$layer
        : >"$repo/state/$(ostree rev-parse "--repo=$repo" "$side").commitpartial"
        blob=$(ostree ls -C "--repo=$repo" "$side" /blob | grep -o '[0-9a-f]\{64\}')
        rm -- "$repo/objects/${blob:0:2}/${blob:2}.filez"
    done
    oi "--repo=$repo" verify small
    oi "--repo=$repo" push small "dir:$BATS_TEST_TMPDIR/out"
    oi "--repo=$repo" pull --preserve-digests "oci:$FIXTURES/small/oci:small" exact
    oi "--repo=$repo" verify
    assert_fsck "$repo"
}

# An ostree that hangs does not see that its input ends: only the kernel can tell it.
@test "SIGKILL [a child that hangs dies with the program]" {
    requires root
    requires_tool ostree python3
    fixture counts
    local fake=$BATS_TEST_TMPDIR/ostree i status=0 pid
    printf '#!/bin/sh\ncase $1 in commit) : >%s.began; while :; do sleep 1; done ;; *) exec ostree "$@" ;; esac\n' "$fake" >"$fake"
    chmod 755 -- "$fake"
    new_repo "$BATS_TEST_TMPDIR/repo" bare-user
    "$OI" --insecure-policy "--ostree=$fake" "--repo=$BATS_TEST_TMPDIR/repo" pull "oci:$FIXTURES/counts/oci:10" ten >/dev/null 2>&1 3>&- &
    pid=$!
    for ((i = 0; i < 200; i++)); do
        [[ ! -e $fake.began ]] || break
        sleep 0.1
    done
    kill -KILL "$pid"
    wait "$pid" || status=$?
    [[ $status == 137 && -e $fake.began ]] || fail "status $status"
    for ((i = 0; i < 50; i++)); do
        grep -aqsF -- "$fake" /proc/[0-9]*/cmdline || return 0
        sleep 0.1
    done
    grep -alsF -- "$fake" /proc/[0-9]*/cmdline | tr -dc '0-9\n' | xargs --no-run-if-empty kill -KILL || :
    fail "it still runs"
}

# What a killed ostree can leave at moments that are too short to be met by chance.
@test "what a killed run leaves [goes with the next]" {
    requires root
    requires_tool ostree python3
    fixture counts
    local repo=$BATS_TEST_TMPDIR/repo before ref
    new_repo "$repo" archive
    oi "--repo=$repo" pull "oci:$FIXTURES/counts/oci:10" ten
    before=$(refs "$repo")
    for ref in "$repo"/refs/heads/ociimage/*; do
        : >"$repo/state/$(cat -- "$ref").commitpartial"
    done
    cp -- "$repo/refs/heads/ociimage/ten_3Alatest" "$repo/refs/heads/ociimage/tmp.AbC123"
    oi "--repo=$repo" pull "oci:$FIXTURES/counts/oci:10" ten
    assert_equal "$(refs "$repo")" "$before" "the refs"
    assert_equal "$(ls -A -- "$repo/state")" '' "commits are marked as partial"
    oi "--repo=$repo" verify
    # One that was killed before it named its commits.
    mkdir -- "$BATS_TEST_TMPDIR/tree"
    rm -- "$repo"/refs/heads/ociimage/*
    cp -- /dev/null "$repo/refs/heads/ociimage/tmp.AbC123"
    ostree refs "--repo=$repo" --create=their/branch "$(ostree commit "--repo=$repo" --orphan "--tree=dir=$BATS_TEST_TMPDIR/tree")"
    oi "--repo=$repo" prune
    assert_equal "$(ostree refs "--repo=$repo")" their/branch
    assert_equal "$(find "$repo/objects" -name '*.commit' | wc -l)" 1 "commits that nobody names"
    assert_fsck "$repo"
}
