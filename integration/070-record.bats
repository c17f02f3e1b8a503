#!/usr/bin/env bats
# --record and replay: what a run did can be done again where the program, the registry and the network are not.

bats_require_minimum_version 1.5.0
load helpers

setup_file() {
    ((EUID == 0)) || return 0
    command -v mmdebstrap >/dev/null && fixture debian
    fixture small
    fixture counts
    fixture odd
    fixture bad
}

setup() {
    requires root
    requires user
    requires_tool ostree mmdebstrap umoci skopeo setcap python3 zstd unshare shellcheck
    new_scratch
    F=$FIXTURES/debian
    R=$SCRATCH_DIR/record
}

teardown() {
    ! mountpoint -q -- "$SCRATCH_DIR/disk" || umount -- "$SCRATCH_DIR/disk"
    drop_scratch
}

# alone COMMAND… runs a command where there is no network and no ostree-image, as OI_USER.
alone() {
    local command=(unshare --net -- env -i PATH=/usr/bin:/bin "WORK=$SCRATCH_DIR/work" "$@")
    rm -rf -- "$SCRATCH_DIR/work"
    mkdir -m 777 -- "$SCRATCH_DIR/work"
    if [[ ${OI_USER-} == user ]]; then
        command=(unshare --net -- setpriv "--reuid=$UNPRIVILEGED" "--regid=$(id -g -- "$UNPRIVILEGED")" --clear-groups --
            env -i PATH=/usr/bin:/bin "WORK=$SCRATCH_DIR/work" "$@")
    fi
    run --separate-stderr "${command[@]}"
    echo "$output"
    echo "$stderr"
}

# same_refs REPO: the repository holds the very commits that the record says.
same_refs() {
    local sum ref
    [[ -s $R/refs ]] || fail "the record names no refs"
    while read -r sum ref; do
        [[ $(ostree rev-parse "--repo=$1" "$ref") == "$sum" ]] || fail "$ref is not $sum"
    done <"$R/refs"
}

# tree DIR lists a tree.
tree() {
    (cd -- "$1" && find . -printf '%P %y %m %U:%G %l\n' | sort && find . -type f -print0 | sort -z | xargs -0 sha256sum)
}

import_and_replay() {
    chmod 777 -- "$SCRATCH_DIR"
    new_repo "$REPO" "$1"
    oi -0 "--record=$R" "--repo=$REPO" pull "oci:$F/oci:debian" debian
    same_refs "$REPO"
    for shell in sh bash "busybox sh"; do
        [[ $shell == "${2-sh}" ]] || continue
        # shellcheck disable=SC2086 # "busybox sh" is two words
        alone $shell "$R/commands.sh"
        ((status == 0)) || fail "the script ends with $status under $shell"
        same_refs "$SCRATCH_DIR/work/repo"
    done
}

@test "record: an import, replayed by sh in a repository of mode bare" { import_and_replay bare; }
@test "record: an import, replayed by bash in a repository of mode bare-user" { import_and_replay bare-user bash; }
@test "record: an import, replayed by busybox in a repository of mode archive" {
    requires_tool busybox
    import_and_replay archive "busybox sh"
}
@test "record: an import, replayed by sh in a repository of mode bare-user-only" { import_and_replay bare-user-only; }
@test "record: an import by an unprivileged user, bare-user" { OI_USER=user import_and_replay bare-user; }
@test "record: an import by an unprivileged user, bare" { OI_USER=user import_and_replay bare; }
@test "record: an import by an unprivileged user, archive" { OI_USER=user import_and_replay archive; }
@test "record: an import by an unprivileged user, bare-user-only" { OI_USER=user import_and_replay bare-user-only; }

@test "record: the tar engine, and layers that are read twice" {
    new_repo "$REPO" bare-user
    oi "--record=$R" "--repo=$REPO" pull --unpack=tar "oci:$FIXTURES/odd/oci:odd" odd
    alone sh "$R/commands.sh"
    ((status == 0))
    same_refs "$SCRATCH_DIR/work/repo"
    rm -rf -- "$R" "$REPO"
    new_repo "$REPO" bare-user
    oi "--record=$R" "--repo=$REPO" pull "oci:$FIXTURES/odd/oci:odd" odd
    alone sh "$R/commands.sh"
    ((status == 0))
    same_refs "$SCRATCH_DIR/work/repo"
}

@test "record: replay says that all is the same, and where it is not" {
    new_repo "$REPO" bare-user
    oi "--record=$R" "--repo=$REPO" pull "oci:$FIXTURES/small/oci:small" small
    mkdir -m 1777 -- "$SCRATCH_DIR/tmp"
    TMPDIR=$SCRATCH_DIR/tmp oi --quiet replay "$R"
    assert_equal "$(grep -c ': same$' <<<"$output")" "$(wc -l <"$R/refs")"
    assert_equal "$(ls -A -- "$SCRATCH_DIR/tmp")" ""

    tar --create --gzip --directory="$SCRATCH_DIR" --file="$SCRATCH_DIR/moved.tar.gz" record
    OI_USER=user oi -1 --quiet replay "$SCRATCH_DIR/moved.tar.gz"
    assert_error "a record is a program"
    OI_USER=user oi --quiet replay --list "$SCRATCH_DIR/moved.tar.gz"
    OI_USER=user oi --quiet replay --trust "$SCRATCH_DIR/moved.tar.gz"
    assert_equal "$(grep -c ': same$' <<<"$output")" "$(wc -l <"$R/refs")"

    oi replay --list "$R"
    assert_stdout_has "publish the image"
    assert_equal "$(grep -c 'ostree pull-local' <<<"$output")" "$(grep -c 'ostree pull-local' "$R/commands.sh")"

    # A run with other times gives other commits.
    sed -i 's/--timestamp=@[1-9][0-9]*/--timestamp=@7/' "$R/commands.sh"
    oi -4 --quiet replay "$R"
    assert_stderr_has "refs differ from the record"
    assert_stdout_has "other checksum"

    # --to runs a part, and compares nothing.
    oi replay --to 1 "$R"
    assert_stderr_has "ostree refs"
    assert_stderr_lacks "ostree commit"
    oi -2 replay --from 5 --to 3 "$R"
}

@test "record: replay runs what this user made, or what is trusted" {
    new_repo "$REPO" bare-user
    oi "--record=$R" "--repo=$REPO" pull "oci:$FIXTURES/counts/oci:3000" many
    assert_equal "$(stat -c %a "$R" "$R/commands.sh" "$R/refs" "$R/versions" | sort -u)" $'600\n700'
    oi --quiet replay "$R"
    local what
    for what in "$R" "$R/commands.sh" "$R/blobs"; do
        chown -- "$UNPRIVILEGED" "$what"
        oi -1 --quiet replay "$R"
        assert_error "a record is a program"
        chown -- 0:0 "$what"
        chmod g+w -- "$what"
        oi -1 --quiet replay "$R"
        assert_error "a record is a program"
        oi --quiet replay --trust "$R"
        chmod g-w -- "$what"
    done
    # Nothing is read through a link.
    mv -- "$R/sums" "$SCRATCH_DIR/sums"
    ln -s -- "$SCRATCH_DIR/sums" "$R/sums"
    oi -1 --quiet replay "$R"
    assert_error "is not what it should be"
    rm -- "$R/sums"
    mv -- "$SCRATCH_DIR/sums" "$R/sums"
    mkfifo -- "$R/blobs/fifo"
    oi -1 --quiet replay --trust "$R"
    assert_error "is not what it should be"
}

@test "record: what was read and cannot be read in a replay is a difference" {
    new_repo "$REPO" bare-user
    oi "--repo=$REPO" pull "oci:$FIXTURES/small/oci:small" small
    oi "--record=$R" "--repo=$REPO" inspect small
    oi --quiet replay "$R"
    alone sh "$R/commands.sh"
    ((status == 0)) || fail "the script ends with $status"
    rm -r -- "$R/repo"
    oi -4 --quiet replay "$R"
    assert_error "that only read fail now"
    alone sh "$R/commands.sh"
    ((status == 1)) || fail "the script ends with $status"
    [[ $output$stderr == *"only reads, and fails now"* ]] || fail "it does not say why: $output$stderr"
}

@test "record: a copy between two repositories, and from a remote of one" {
    new_repo "$SCRATCH_DIR/from" bare-user
    new_repo "$REPO" archive
    oi "--repo=$SCRATCH_DIR/from" pull "oci:$FIXTURES/small/oci:small" small
    oi "--record=$R" "--log-commands=$SCRATCH_DIR/log" copy "ostree:small@$SCRATCH_DIR/from" "ostree:copy@$REPO"
    grep -q -- '--repo="$SOURCE"' "$R/commands.sh" || fail "the source is not named"
    grep -q -- '--repo="$SOURCE"' "$SCRATCH_DIR/log" || fail "the source is not named in the log"
    mv -- "$SCRATCH_DIR/from" "$SCRATCH_DIR/gone"
    oi --quiet replay "$R"
    assert_equal "$(grep -c ': same$' <<<"$output")" "$(wc -l <"$R/refs")"
    alone sh "$R/commands.sh"
    ((status == 0)) || fail "the script ends with $status"
    same_refs "$SCRATCH_DIR/work/repo"

    new_repo "$SCRATCH_DIR/mirror" bare-user
    must ostree "--repo=$SCRATCH_DIR/mirror" remote add --no-gpg-verify origin "file://$SCRATCH_DIR/gone"
    local all
    mapfile -t all < <(ostree "--repo=$SCRATCH_DIR/gone" refs)
    must ostree "--repo=$SCRATCH_DIR/mirror" pull origin "${all[@]}"
    oi "--record=$R.2" "--repo=$SCRATCH_DIR/mirror" push small "dir:$SCRATCH_DIR/out"
    oi --quiet replay "$R.2"
}

@test "record: archives that no record was packed into are refused" {
    local name
    mkdir -- "$SCRATCH_DIR/archives"
    python3 - "$SCRATCH_DIR/archives" <<'END'
import io, sys, tarfile

def archive(name, *members):
    with tarfile.open(f"{sys.argv[1]}/{name}.tar.gz", "w:gz") as tar:
        for path, kind, link, data in members:
            info = tarfile.TarInfo(path)
            info.type, info.linkname, info.size = kind, link, len(data)
            tar.addfile(info, io.BytesIO(data))

script = ("record/commands.sh", tarfile.REGTYPE, "", b"echo hello\n")
archive("dotdot", ("../evil", tarfile.REGTYPE, "", b"x"), script)
archive("absolute", ("/tmp/evil", tarfile.REGTYPE, "", b"x"), script)
archive("through-link", ("record/blobs", tarfile.SYMTYPE, "/tmp", b""), ("record/blobs/evil", tarfile.REGTYPE, "", b"x"), script)
archive("blobs-link", script, ("record/blobs", tarfile.SYMTYPE, "/tmp", b""))
archive("hard-link", ("record/blobs/passwd", tarfile.LNKTYPE, "/etc/passwd", b""), script)
archive("fifo", ("record/blobs/fifo", tarfile.FIFOTYPE, "", b""), script)
archive("script-link", ("record/commands.sh", tarfile.SYMTYPE, "/etc/profile", b""), ("record/blobs", tarfile.DIRTYPE, "", b""))
archive("twice", script, ("record/blobs", tarfile.DIRTYPE, "", b""), script)
END
    for name in dotdot absolute through-link blobs-link hard-link fifo script-link twice; do
        TMPDIR=$SCRATCH_DIR/archives oi -1 --quiet replay "$SCRATCH_DIR/archives/$name.tar.gz"
        assert_equal "$(find "$SCRATCH_DIR/archives" -mindepth 1 ! -name '*.tar.gz')" "" "$name leaves something"
    done
    [[ ! -e $SCRATCH_DIR/evil && ! -e /tmp/evil ]] || fail "something was written outside"
}

@test "record: replay ends when it is told to, also where it waits for an answer" {
    new_repo "$REPO" bare-user
    oi "--record=$R" "--repo=$REPO" pull "oci:$FIXTURES/counts/oci:10" ten
    mkfifo -- "$SCRATCH_DIR/answers"
    exec 4<>"$SCRATCH_DIR/answers"
    "$OI" replay --step "$R" <"$SCRATCH_DIR/answers" 2>"$SCRATCH_DIR/said" 4<&- &
    local pid=$!
    until grep -q 'run it?' "$SCRATCH_DIR/said"; do sleep 0.1; done
    kill "$pid"
    local status=0
    wait "$pid" || status=$?
    exec 4<&-
    assert_equal "$status" 143
}

@test "record: a changed blob is refused" {
    new_repo "$REPO" bare-user
    oi "--record=$R" "--repo=$REPO" pull "oci:$FIXTURES/small/oci:small" small
    local stream
    stream=$(find "$R/blobs" -name '*.tar.zst' | head -n 1)
    cp -- "$stream" "$SCRATCH_DIR/stream"
    echo more >>"$stream"
    oi -4 replay "$R"
    assert_error "does not match its digest"
    mv -- "$SCRATCH_DIR/stream" "$stream"
    oi --quiet replay "$R"
    local blob
    blob=$(find "$R/blobs" -regextype posix-egrep -regex '.*/[0-9a-f]{64}' | head -n 1)
    cp --remove-destination -- "$blob" "$SCRATCH_DIR/blob"
    rm -- "$blob"
    head -c 100 "$SCRATCH_DIR/blob" >"$blob"
    oi -4 replay "$R"
    assert_error "does not match its digest"
    oi -1 replay "$SCRATCH_DIR"
    assert_error "is no record"
}

@test "record: the script passes shellcheck, and holds no secret" {
    requires tls-registry
    in_registry "$TLS_REGISTRY" small small
    new_repo "$REPO" bare-user
    oi "--record=$R" "--repo=$REPO" pull --src-tls-verify=false --src-creds 'importer:s3cr3t-Passw0rd' "docker://$TLS_REGISTRY/small/small:1" small
    must shellcheck -s sh "$R/commands.sh"
    run grep -rl 's3cr3t-Passw0rd' "$R"
    [[ -z $output ]] || fail "the password is in $output"
    rm -rf -- "$R"
    oi -1 "--record=$R" "--repo=$REPO" pull --src-tls-verify=false --src-creds 'importer:wr0ng-Passw0rd' "docker://$TLS_REGISTRY/small/small:1" other
    run grep -rl 'wr0ng-Passw0rd' "$R"
    [[ -z $output ]] || fail "the password is in $output"
    alone sh "$R/commands.sh"
    ((status == 1)) || fail "the record of a run that failed ends with $status"
}

@test "record: a checkout, a removal, a prune and an export, from the record's own repository" {
    new_repo "$REPO" bare-user
    oi --quiet "--repo=$REPO" pull "oci:$F/oci:debian" debian
    oi --quiet "--repo=$REPO" pull "oci:$FIXTURES/small/oci:small" small

    oi "--record=$R" "--repo=$REPO" checkout debian "$SCRATCH_DIR/root"
    alone sh "$R/commands.sh"
    ((status == 0))
    assert_equal "$(tree "$SCRATCH_DIR/work/out")" "$(tree "$SCRATCH_DIR/root")"

    rm -rf -- "$R"
    oi "--record=$R" "--repo=$REPO" push debian "dir:$SCRATCH_DIR/dir"
    alone sh "$R/commands.sh"
    ((status == 0))

    rm -rf -- "$R"
    oi "--record=$R" "--repo=$REPO" remove --no-prune debian
    alone sh "$R/commands.sh"
    ((status == 0))
    run grep debian <(refs "$SCRATCH_DIR/work/repo")
    [[ -z $output ]]

    rm -rf -- "$R"
    oi "--record=$R" "--repo=$REPO" prune
    alone sh "$R/commands.sh"
    ((status == 0))
    assert_equal "$(refs "$SCRATCH_DIR/work/repo")" "$(refs "$REPO")"
}

@test "record: a run that is refused replays to the same error" {
    new_repo "$REPO" bare-user
    oi -1 "--record=$R" "--repo=$REPO" pull "oci:$FIXTURES/bad/oci:name-not-utf8" bad
    local text=$stderr
    assert_stderr_has "is not UTF-8"
    alone sh "$R/commands.sh"
    ((status == 1))
    assert_stderr_has "$(tail -n 1 <<<"$text")"
    oi -1 replay "$R"
    assert_stderr_has "is not UTF-8"
}

@test "record: a full disk replays to the same failure, on a disk of that size" {
    requires_tool mount mountpoint
    local full='No space left on device|min-free-space' failed
    mkdir -- "$SCRATCH_DIR/disk"
    mount -t tmpfs -o size=48m none "$SCRATCH_DIR/disk"
    must ostree init "--repo=$SCRATCH_DIR/disk/repo" --mode=bare-user
    mkdir -- "$SCRATCH_DIR/staged"
    oi -1 "--record=$R" "--tmpdir=$SCRATCH_DIR/staged" "--repo=$SCRATCH_DIR/disk/repo" pull "oci:$F/oci:debian" debian
    [[ $stderr =~ $full ]] || fail "another error: $stderr"
    umount -- "$SCRATCH_DIR/disk"
    # The command that failed is the last that has its end noted, and says why.
    failed=$(grep -E ' failed after .*('"$full)" "$R/commands.sh") || fail "the record does not say which command failed"
    grep -q "$(sed -nE 's/^(# [0-9]+) .*/\1:/p' <<<"$failed" | head -n 1) commit the files of layer" "$R/commands.sh"

    mount -t tmpfs -o size=48m none "$SCRATCH_DIR/disk"
    mkdir -- "$SCRATCH_DIR/disk/work"
    run --separate-stderr env -i PATH=/usr/bin:/bin "WORK=$SCRATCH_DIR/disk/work" sh "$R/commands.sh"
    # It is ostree that runs out of room, or zstd before it, whose output has to lie there too.
    ((status != 0)) || fail "the script ends well"
    [[ $stderr =~ $full ]] || fail "it ends with another error: $stderr"
}

@test "record: a run that is killed leaves what it had, and a directory that is there is refused" {
    new_repo "$REPO" archive
    "$OI" --insecure-policy "--record=$R" "--repo=$REPO" pull "oci:$F/oci:debian" debian >/dev/null 2>&1 3>&- &
    local pid=$! i
    for ((i = 0; i < 300; i++)); do
        ! grep -q -e '--tree=tar=-' "$R/commands.sh" 2>/dev/null || break
        sleep 0.02
    done
    kill -KILL "$pid"
    wait "$pid" || :
    must sh -n "$R/commands.sh"
    grep -q 'ostree commit' "$R/commands.sh"
    [[ -e $R/versions ]]
    alone sh "$R/commands.sh"
    ((status != 0)) || fail "the record of half an import replays to its end"

    # Wherever the run was cut off, also where all that ran until then can run again.
    rm -rf -- "$SCRATCH_DIR/whole"
    new_repo "$SCRATCH_DIR/small" archive
    oi -0 "--record=$SCRATCH_DIR/whole" "--repo=$SCRATCH_DIR/small" pull "oci:$FIXTURES/small/oci:small" small
    sed -i '$d' "$SCRATCH_DIR/whole/commands.sh"
    alone sh "$SCRATCH_DIR/whole/commands.sh"
    ((status == 1))
    [[ $stderr == *"the run was cut off" ]] || fail "it ends with: $stderr"
    oi -4 replay "$SCRATCH_DIR/whole"
    assert_error "the run was cut off"

    oi -1 "--record=$R" "--repo=$REPO" list
    assert_error "is there, and is no empty directory"
}

# ostree fails now and then when another ends at the moment when it starts. It is started again, and the record has what came of it.
@test "record [an ostree that loses a race]" {
    local fake=$BATS_TEST_TMPDIR/ostree
    printf '#!/bin/sh\ncase "$*" in *--tree=tar=-*) [ -e %s.lost ] || { cat >/dev/null; : >%s.lost; echo "error: opendir(staging-a): No such file or directory" >&2; exit 1; } ;; esac\nexec ostree "$@"\n' \
        "$fake" "$fake" >"$fake"
    chmod 755 -- "$fake"
    fixture counts
    new_repo "$BATS_TEST_TMPDIR/lost" bare-user
    oi "--ostree=$fake" "--repo=$BATS_TEST_TMPDIR/lost" "--record=$BATS_TEST_TMPDIR/lost-record" pull "oci:$FIXTURES/counts/oci:10" ten
    [[ -e $fake.lost ]] || fail "it lost nothing"
    oi replay "$BATS_TEST_TMPDIR/lost-record"
}
