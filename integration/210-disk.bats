#!/usr/bin/env bats
# Where there is no room, or no permission: disk.py, and what it does not try.

bats_require_minimum_version 1.5.0
load helpers

setup() {
    requires root
    requires_tool ostree tar python3 unshare mount
}

@test "disks that are full [of every size, in bytes and inodes]" {
    run timeout 600 unshare --mount python3 "$INTEGRATION/disk.py" "--program=$OI" "--work=$SCRATCH" --sizes=3 --modes=bare-user
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

@test "permission denied halfway [objects/, or the directories in it, cannot be written]" {
    requires user
    fixture small
    fixture counts
    OI_USER=user
    new_scratch
    chown -- "$UNPRIVILEGED" "$SCRATCH_DIR"
    new_repo "$REPO" bare-user
    oi "--repo=$REPO" pull "oci:$FIXTURES/small/oci:small" kept
    local before depth
    before=$(refs "$REPO")
    mkdir -p -- "$REPO"/objects/{0,1,2,3,4,5,6,7,8,9,a,b,c,d,e,f}{0,1,2,3,4,5,6,7,8,9,a,b,c,d,e,f}
    chown -- "$UNPRIVILEGED" "$REPO"/objects/??
    for depth in 0 1; do
        find "$REPO/objects" -mindepth "$depth" -maxdepth "$depth" -exec chown root {} +
        oi -1 "--repo=$REPO" pull "oci:$FIXTURES/counts/oci:10" other
        assert_error "the repository $REPO cannot be written"
        assert_error 'Permission denied'
        assert_untouched "$REPO" "$before"
        find "$REPO/objects" -mindepth "$depth" -maxdepth "$depth" -exec chown "$UNPRIVILEGED" {} +
        assert_fsck "$REPO"
    done
    oi "--repo=$REPO" pull "oci:$FIXTURES/counts/oci:10" other
    assert_fsck "$REPO"
    drop_scratch
}

# read_only DIR ARGUMENT… runs the program, which must fail, where DIR is mounted so that nobody can write it.
read_only() {
    # shellcheck disable=SC2016 # the inner shell's
    run --separate-stderr unshare --mount bash -euc 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"' - \
        "$1" "$OI" --insecure-policy --quiet "--repo=$REPO" "${@:2}"
    [[ $status == 1 ]] || fail "status $status: ${*@Q}: $stderr"
    assert_error "$1 cannot be "
    assert_stderr_has 'ead-only file system'
}

@test "read-only [the repository, and --tmpdir]" {
    fixture small
    fixture counts
    new_scratch
    new_repo "$REPO" bare-user
    oi "--repo=$REPO" pull "oci:$FIXTURES/small/oci:small" kept
    local before files
    before=$(refs "$REPO")
    files=$(find "$REPO" -type f | LC_ALL=C sort)
    mkdir -- "$SCRATCH_DIR/tmp"
    read_only "$REPO" pull "oci:$FIXTURES/counts/oci:10" other
    read_only "$REPO" remove kept
    read_only "$REPO" prune
    read_only "$SCRATCH_DIR/tmp" "--tmpdir=$SCRATCH_DIR/tmp" pull "oci:$FIXTURES/counts/oci:10" other
    assert_untouched "$REPO" "$before"
    assert_equal "$(find "$REPO" -type f | LC_ALL=C sort)" "$files" "the files"
    assert_fsck "$REPO"
    drop_scratch
}
