#!/usr/bin/env bats
# Where there is no room, or no permission: disk.py, and what it does not try.

bats_require_minimum_version 1.5.0
load helpers

setup() {
    requires root
    requires_tool ostree tar python3 unshare mount
}

@test "disks that are full [of every size, in bytes and inodes]" {
    run timeout 600 unshare --mount python3 "$INTEGRATION/disk.py" "--program=$OI" "--work=$SCRATCH" --sizes=4 --modes=bare-user
    echo "$output"
    [[ $status == 0 ]] || fail "status $status"
}

@test "permission denied halfway [the objects cannot be written]" {
    requires user
    fixture small
    OI_USER=user
    new_scratch
    chown -- "$UNPRIVILEGED" "$SCRATCH_DIR"
    new_repo "$REPO" bare-user
    # The first layer is there, and all directories for objects but one.
    oi "--repo=$REPO" pull "oci:$FIXTURES/small/oci:small" kept
    local before
    before=$(refs "$REPO")
    chmod 555 -- "$REPO/refs/heads/ociimage"
    chown root -- "$REPO/refs/heads/ociimage"
    oi -1 "--repo=$REPO" pull "oci:$FIXTURES/small/oci:small" other
    assert_error 'Permission denied'
    assert_untouched "$REPO" "$before"
    chown -- "$UNPRIVILEGED" "$REPO/refs/heads/ociimage"
    chmod 755 -- "$REPO/refs/heads/ociimage"
    oi "--repo=$REPO" pull "oci:$FIXTURES/small/oci:small" other
    assert_fsck "$REPO"
    drop_scratch
}
