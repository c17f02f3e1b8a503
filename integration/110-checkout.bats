#!/usr/bin/env bats
# Root file systems out of a repository, against what umoci makes of the same image. checkout_test.go has the rules one by one.

bats_require_minimum_version 1.5.0
load helpers

setup_file() {
    ((EUID == 0)) || return 0
    local tool
    for tool in mmdebstrap umoci skopeo setcap getfattr; do
        command -v "$tool" >/dev/null || return 0
    done
    fixture debian
    export BUNDLE=$BATS_FILE_TMPDIR/bundle
    export BEGAN=$EPOCHSECONDS
    must umoci unpack --image "$FIXTURES/debian/oci:debian" "$BUNDLE"
    times "$BUNDLE/rootfs" >"$BATS_FILE_TMPDIR/times"
    snapshot "$BUNDLE/rootfs" >"$BATS_FILE_TMPDIR/whole"
    brief "$BUNDLE/rootfs" >"$BATS_FILE_TMPDIR/brief"
    rm -rf -- "$BUNDLE"
}

setup() {
    requires root
    requires_tool ostree mmdebstrap umoci skopeo setcap getfattr
    REPO=$BATS_TEST_TMPDIR/repo
    OUT=$BATS_TEST_TMPDIR/out
    mkdir -- "$OUT"
}

# snapshot DIR prints types, modes, owners, link targets, contents and attributes.
snapshot() {
    (
        cd -- "$1" || exit
        find . ! -type c ! -type b ! -type p -printf '%y %m %U:%G %p -> %l\n' | LC_ALL=C sort
        find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
        find . \( -type f -o -type d \) -print0 | LC_ALL=C sort -z | xargs -0 getfattr -h -d -m '^user[.]|^security[.]capability$' | grep -v '^user[.]ostreemeta='
    )
}

# times DIR prints modification times, "now" for those of this run, and how many names each thing has.
times() {
    (
        cd -- "$1" || exit
        find . ! -type c ! -type b ! -type p -printf '%T@ %n %p\n' | awk -v "began=$BEGAN" '$1 >= began { $1 = "now" } 1' | LC_ALL=C sort -k3
    )
}

# brief DIR prints names, types, link targets and contents.
brief() {
    (
        cd -- "$1" || exit
        find . ! -type c ! -type b ! -type p -printf '%y %p -> %l\n' | LC_ALL=C sort
        find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
    )
}

# assert_same FILE COMMAND… compares with what setup_file noted.
assert_same() {
    local want=$BATS_FILE_TMPDIR/$1
    shift
    "$@" >"$BATS_TEST_TMPDIR/got"
    cmp -s -- "$BATS_TEST_TMPDIR/got" "$want" || { diff -- "$want" "$BATS_TEST_TMPDIR/got" | head -n 40; fail "not what umoci makes"; }
}

assert_alone() {
    assert_equal "$(ls -A -- "$OUT")" "$1" "beside the checkout"
}

import_debian() {
    new_repo "$REPO" "$1"
    oi "--repo=$REPO" pull --no-fsync "oci:$FIXTURES/debian/oci:debian" debian
}

check_checkout() {
    import_debian "$1"
    oi "--repo=$REPO" checkout debian "$OUT/root"
    [[ -z $output && -z $stderr ]] || fail "it is not silent"
    assert_same whole snapshot "$OUT/root"
    assert_same times times "$OUT/root"
    local lib=$OUT/root/usr/local/lib/a
    assert_equal "$(stat -c %i "$lib" "${lib%a}b" "${lib%lib/a}bin/c" | uniq | wc -l)" 1 "one file, three names"
    assert_alone root
    assert_fsck "$REPO"
}

# What is written into a checkout changes neither the repository nor another one.
check_written() {
    oi "--repo=$REPO" checkout debian "$OUT/other"
    find "$OUT/root" -type f -exec sh -c 'for f; do echo more >>"$f"; chmod 777 "$f"; done' sh {} +
    assert_same whole snapshot "$OUT/other"
    assert_fsck "$REPO"
}

@test "checkout [root, bare]" {
    check_checkout bare
    check_written
}

@test "checkout [root, bare-user]" {
    check_checkout bare-user
    check_written
}

@test "checkout [root, archive]" {
    check_checkout archive
    check_written
}

@test "checkout --user-mode [root, bare-user-only]" {
    import_debian bare-user-only
    oi "--repo=$REPO" checkout --user-mode debian "$OUT/root"
    assert_same brief brief "$OUT/root"
    assert_alone root
    assert_fsck "$REPO"
}

@test "checkout [user, bare-user]" {
    requires user
    OI_USER=user
    import_debian bare-user
    chown -- "$UNPRIVILEGED" "$OUT"
    oi "--repo=$REPO" checkout debian "$OUT/root"
    assert_stderr "ostree-image: warning: not root, repository of mode bare-user: files belong to you, as with --user-mode"
    assert_same brief brief "$OUT/root"
    [[ -z $(find "$OUT/root" ! -user "$UNPRIVILEGED") ]] || fail "files of others"
    assert_alone root
    assert_fsck "$REPO"
}

@test "checkout [user, bare]" {
    requires user
    OI_USER=user
    import_debian bare
    chown -- "$UNPRIVILEGED" "$OUT"
    oi "--repo=$REPO" checkout debian "$OUT/root"
    assert_same brief brief "$OUT/root"
    assert_equal "$(stat -c %a "$OUT/root/usr/local/bin/setuid" "$OUT/root/srv/sticky" "$OUT/root/srv/private" | tr '\n' ' ')" "4755 1777 700 "
    assert_alone root
    assert_fsck "$REPO"
}

@test "checkout into a directory that is there, and into a mount point" {
    fixture small
    new_repo "$REPO" bare
    oi "--repo=$REPO" pull --no-fsync "oci:$FIXTURES/small/oci:small" small
    mkdir -m 700 -- "$OUT/empty" "$OUT/mount"
    oi "--repo=$REPO" checkout small "$OUT/empty"
    mount -t tmpfs -o size=16m tmpfs "$OUT/mount" || { rmdir -- "$OUT/mount"; skip "cannot mount"; }
    oi "--repo=$REPO" checkout small "$OUT/mount"
    snapshot "$OUT/empty" >"$BATS_TEST_TMPDIR/empty"
    snapshot "$OUT/mount" >"$BATS_TEST_TMPDIR/mount"
    umount -- "$OUT/mount"
    cmp -- "$BATS_TEST_TMPDIR/empty" "$BATS_TEST_TMPDIR/mount"
    [[ -s $OUT/empty/third ]] || fail "the third layer is missing"
    assert_alone $'empty\nmount'
}

@test "checkout --require-hardlinks" {
    fixture small
    new_repo "$REPO" bare
    oi "--repo=$REPO" pull --no-fsync "oci:$FIXTURES/small/oci:small" small
    oi "--repo=$REPO" checkout --require-hardlinks small "$OUT/root"
    assert_equal "$(grep -c 'are those of the repository' <<<"$stderr")" 1 "warnings"
    # Files of the repository itself, not copies, and their times stay.
    (($(find "$OUT/root" -type f -size +0 -links 1 | wc -l) == 0)) || fail "files were copied"
    [[ -z $(find "$OUT/root" -type f -size +0 -newermt @1) ]] || fail "the time of a file of the repository was changed"
    assert_fsck "$REPO"
    rm -rf -- "$OUT/root"
    oi "--repo=$REPO" checkout -C small "$OUT/root"
    [[ -z $stderr ]] || fail "it is not silent"
    oi -2 "--repo=$REPO" checkout -H -C small "$OUT/other"
    assert_error "--require-hardlinks and --force-copy are mutually exclusive"
    assert_alone root
    new_repo "$REPO.archive" archive
    oi "--repo=$REPO.archive" pull --no-fsync "oci:$FIXTURES/small/oci:small" small
    oi -1 "--repo=$REPO.archive" checkout --require-hardlinks small "$OUT/other"
    assert_error "hard links"
    assert_alone root
}

@test "checkout [what it refuses]" {
    fixture small
    new_repo "$REPO" archive
    oi "--repo=$REPO" pull --no-fsync "oci:$FIXTURES/small/oci:small" small
    mkdir -- "$OUT/full"
    touch -- "$OUT/full/file" "$OUT/file"
    ln -s full "$OUT/link"
    local all
    all=$(ls -AR -- "$OUT")
    oi -1 "--repo=$REPO" checkout small "$OUT/full"
    assert_error "the directory $OUT/full is not empty"
    oi -1 "--repo=$REPO" checkout small "$OUT/file"
    assert_error "$OUT/file exists and is not a directory"
    oi -1 "--repo=$REPO" checkout small "$OUT/link"
    assert_error "$OUT/link exists and is not a directory"
    oi -1 "--repo=$REPO" checkout small "$OUT/no/such"
    assert_error "no such file or directory"
    oi -3 "--repo=$REPO" checkout none "$OUT/new"
    assert_error "no image none:latest in the repository $REPO"
    oi -2 "--repo=$REPO" checkout small
    assert_error "DIR is missing"
    oi -2 "--repo=$REPO" checkout small "$OUT/new" --usr-mode
    assert_error "unknown option --usr-mode; did you mean --user-mode?"
    assert_equal "$(ls -AR -- "$OUT")" "$all"
}

@test "checkout [interrupted]" {
    import_debian archive
    local signal status
    for signal in INT TERM; do
        # Without --foreground timeout sends the signal twice, and the second ends the program at once.
        status=0
        timeout --foreground --signal="$signal" 0.3 "$OI" "--repo=$REPO" checkout debian "$OUT/root" || status=$?
        [[ $status == 124 ]] || fail "SIG$signal: status $status"
        assert_alone ""
        assert_no_children "$OUT"
    done
    assert_fsck "$REPO"
}

@test "checkout of a layer that aims at a directory outside" {
    local victim=$BATS_TEST_TMPDIR/victim before
    mkdir -- "$victim"
    echo victim >"$victim/file"
    touch -d @1 -- "$victim/file" "$victim"
    before=$(find "$victim" -printf '%p %m %T@ %s\n')
    mkdir -- "$BATS_TEST_TMPDIR/1" "$BATS_TEST_TMPDIR/2" "$BATS_TEST_TMPDIR/2/evil" "$BATS_TEST_TMPDIR/3"
    ln -s -- "$victim" "$BATS_TEST_TMPDIR/1/evil"
    echo new | tee "$BATS_TEST_TMPDIR/2/evil/file" >"$BATS_TEST_TMPDIR/2/evil/new"
    touch -- "$BATS_TEST_TMPDIR/2/evil/.wh..wh..opq" "$BATS_TEST_TMPDIR/3/.wh..."
    local n
    for n in 1 3; do tar -C "$BATS_TEST_TMPDIR/$n" -cf "$BATS_TEST_TMPDIR/$n.tar" .; done
    tar -C "$BATS_TEST_TMPDIR/2" -cf "$BATS_TEST_TMPDIR/2.tar" evil/.wh..wh..opq evil/file evil/new # without evil itself
    python3 "$INTEGRATION/image.py" oci "$BATS_TEST_TMPDIR/oci" through "$BATS_TEST_TMPDIR"/{1,2}.tar
    python3 "$INTEGRATION/image.py" oci "$BATS_TEST_TMPDIR/oci" above "$BATS_TEST_TMPDIR"/{1,3}.tar
    new_repo "$REPO" bare
    oi "--repo=$REPO" pull --no-fsync "oci:$BATS_TEST_TMPDIR/oci:through" through
    oi "--repo=$REPO" pull --no-fsync "oci:$BATS_TEST_TMPDIR/oci:above" above
    oi "--repo=$REPO" checkout through "$OUT/root"
    assert_equal "$(cat -- "$OUT/root$victim/file")" new
    oi "--repo=$REPO" checkout above "$OUT/other"
    assert_stderr 'ostree-image: warning: the whiteout ".wh..." names no file: nothing is removed'
    assert_equal "$(find "$OUT" -mindepth 1 -maxdepth 1 -printf '%f\n' | sort | tr '\n' ' ')" "other root "
    assert_equal "$(find "$victim" -printf '%p %m %T@ %s\n')" "$before"
}
