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

# before_publishing COMMAND… makes an ostree that runs a command before it publishes.
before_publishing() {
    {
        printf '#!/bin/sh\n[ "$1" != pull-local ] || [ -e %q ] || { : >%q; sleep 2; ' "$SCRATCH_DIR/done" "$SCRATCH_DIR/done"
        printf '%q ' "$@"
        printf '; } >/dev/null || exit\nexec ostree "$@"\n'
    } >"$SCRATCH_DIR/ostree"
    chmod 755 -- "$SCRATCH_DIR/ostree"
}

@test "the clock is set while an image is copied [to three days later]" {
    requires_tool faketime
    fixture counts
    new_scratch
    new_repo "$REPO" bare-user
    mkdir -- "$SCRATCH_DIR/tree"
    # This ostree removes from the repository's tmp/ what is older than a day.
    before_publishing faketime -f +3d ostree commit "--repo=$REPO" --branch=other "--tree=dir=$SCRATCH_DIR/tree"
    oi "--repo=$REPO" "--ostree=$SCRATCH_DIR/ostree" pull "oci:$FIXTURES/counts/oci:10" ten
    [[ -e $SCRATCH_DIR/done ]] || fail "nothing was published by pull-local"
    oi "--repo=$REPO" verify
    drop_scratch
}

@test "the staging area is removed while an image is copied [and the error says so]" {
    fixture counts
    new_scratch
    new_repo "$REPO" bare-user
    before_publishing find "$REPO/tmp" -mindepth 2 -maxdepth 2 -name stage -exec rm -r {} +
    oi -1 "--repo=$REPO" "--ostree=$SCRATCH_DIR/ostree" pull "oci:$FIXTURES/counts/oci:10" ten
    assert_error "the staging area $REPO/tmp/ostree-image-"
    assert_untouched "$REPO" ''
    drop_scratch
}

@test "few descriptors [wide trees are no matter, deep ones ostree refuses]" {
    new_scratch
    new_repo "$REPO" bare-user
    python3 - "$SCRATCH_DIR" <<'END'
import io, sys, tarfile
def layer(name, paths):
    with tarfile.open(f"{sys.argv[1]}/plain-{name}.tar", "w") as t:
        for path in paths:
            info = tarfile.TarInfo(path)
            info.size = 1
            t.addfile(info, io.BytesIO(b"x"))
for n in "12":
    layer("wide" + n, [f"{d}/{n}" for d in range(900)])
layer("deep", ["d/" * 1900 + "f"])
END
    must python3 "$INTEGRATION/image.py" oci "$SCRATCH_DIR/oci" wide "$SCRATCH_DIR/plain-wide1.tar" "$SCRATCH_DIR/plain-wide2.tar"
    must python3 "$INTEGRATION/image.py" oci "$SCRATCH_DIR/oci" deep "$SCRATCH_DIR/plain-deep.tar"
    ulimit -n 256
    local engine name
    for engine in stream tar; do
        oi "--repo=$REPO" pull --unpack=$engine "oci:$SCRATCH_DIR/oci:wide" wide
        oi "--repo=$REPO" verify
        oi "--repo=$REPO" checkout wide "$SCRATCH_DIR/$engine"
        assert_equal "$(find "$SCRATCH_DIR/$engine" -type f | wc -l)" 1800
        oi "--repo=$REPO" push wide "dir:$SCRATCH_DIR/out-$engine"
        oi "--repo=$REPO" remove wide
    done
    oi "--repo=$REPO" pull "oci:$SCRATCH_DIR/oci:deep" deep
    oi -1 "--repo=$REPO" checkout deep "$SCRATCH_DIR/deep"
    assert_error 'ulimit -n'
    oi "--repo=$REPO" remove deep
    oi -1 "--repo=$REPO" pull --unpack=tar "oci:$SCRATCH_DIR/oci:deep" deep
    assert_error 'ulimit -n'
    [[ -z $(find "$SCRATCH_DIR" -maxdepth 1 -name '.ostree-image-*') ]] || fail "something is left"
    assert_clean "$REPO"
    drop_scratch
}

@test "a user namespace [the error names the file whose owner it has not, and what to do]" {
    requires user
    as_user unshare --map-root-user true || skip "this user cannot make a user namespace"
    fixture small
    local mode
    new_scratch
    mkdir -- "$SCRATCH_DIR/theirs"
    chown -- "$UNPRIVILEGED" "$SCRATCH_DIR/theirs"
    python3 - "$SCRATCH_DIR/plain-1.tar" <<'END'
import io, sys, tarfile
with tarfile.open(sys.argv[1], "w") as t:
    for name, owner in ("root", 0), ("some/body", 1000):
        info = tarfile.TarInfo(name)
        info.size, info.uid, info.gid = 1, owner, owner
        t.addfile(info, io.BytesIO(b"x"))
END
    must python3 "$INTEGRATION/image.py" oci "$SCRATCH_DIR/oci" x "$SCRATCH_DIR/plain-1.tar"
    for mode in bare bare-user bare-user-only archive; do
        REPO=$SCRATCH_DIR/theirs/$mode
        as_user unshare --map-root-user ostree init "--repo=$REPO" "--mode=$mode"
        if [[ $mode == bare ]]; then
            run as_user unshare --map-root-user "$OI" --insecure-policy "--repo=$REPO" pull "oci:$SCRATCH_DIR/oci:x" x
            [[ $status == 1 && $output == *'"some/body" belongs to 1000:1000'*'mode bare-user'* ]] || fail "status $status: $output"
            continue
        fi
        must as_user unshare --map-root-user "$OI" --insecure-policy "--repo=$REPO" pull "oci:$SCRATCH_DIR/oci:x" x
        run as_user unshare --map-root-user "$OI" "--repo=$REPO" checkout x "$SCRATCH_DIR/theirs/root"
        if [[ $mode == bare-user-only ]]; then
            [[ $status == 0 ]] || fail "status $status: $output"
            rm -r -- "$SCRATCH_DIR/theirs/root"
        else
            [[ $status == 1 && $output == *'"some/body" belongs to 1000:1000'*--user-mode* ]] || fail "status $status: $output"
        fi
        must as_user unshare --map-root-user "$OI" "--repo=$REPO" checkout --user-mode x "$SCRATCH_DIR/theirs/root"
        rm -r -- "$SCRATCH_DIR/theirs/root"
    done
    drop_scratch
}

@test "a file system without extended attributes [the error says so, and what to do]" {
    new_scratch
    new_repo "$REPO" bare-user
    mkdir -- "$SCRATCH_DIR/disk"
    python3 - "$SCRATCH_DIR/plain-1.tar" <<'END'
import sys, tarfile
with tarfile.open(sys.argv[1], "w", format=tarfile.PAX_FORMAT) as t:
    info = tarfile.TarInfo("marked")
    info.pax_headers = {"SCHILY.xattr.user.mark": "x"}
    t.addfile(info)
END
    must python3 "$INTEGRATION/image.py" oci "$SCRATCH_DIR/oci" x "$SCRATCH_DIR/plain-1.tar"
    oi "--repo=$REPO" pull "oci:$SCRATCH_DIR/oci:x" x
    # shellcheck disable=SC2016 # the inner shell's
    run unshare --mount bash -c 'mount -t ramfs none "$1" && "$2" "--repo=$3" checkout x "$1/root"' - "$SCRATCH_DIR/disk" "$OI" "$REPO"
    [[ $status == 1 && $output == *'marked: '*'keeps no extended attributes'*--user-mode* ]] || fail "status $status: $output"
    # shellcheck disable=SC2016 # the inner shell's
    run unshare --mount bash -c 'mount -t ramfs none "$1" && "$2" "--repo=$3" checkout --user-mode x "$1/root"' - "$SCRATCH_DIR/disk" "$OI" "$REPO"
    [[ $status == 0 ]] || fail "status $status: $output"
    drop_scratch
}
