#!/usr/bin/env bats
# Hostile neighbours: what others plant where the program works, and what the caller's environment holds, changes nothing and gets nothing.

bats_require_minimum_version 1.5.0
load helpers

setup() {
    requires root
    requires user
    requires_tool ostree python3 setpriv
    new_scratch
    new_repo "$REPO" bare-user
    must python3 "$INTEGRATION/image.py" files "$SCRATCH_DIR/1.tar" 3
    must python3 "$INTEGRATION/image.py" oci "$SCRATCH_DIR/oci" x "$SCRATCH_DIR/1.tar"
    IMAGE=oci:$SCRATCH_DIR/oci:x
    mkdir -m 700 -- "$SCRATCH_DIR/victim"
    echo precious >"$SCRATCH_DIR/victim/file"
    BEFORE=$(tree)
}

teardown() {
    ! mountpoint -q -- "$SCRATCH_DIR/disk" || umount -- "$SCRATCH_DIR/disk"
    drop_scratch
}

# tree prints all that is in the victim's directory: modes, owners, times, contents.
tree() { find "$SCRATCH_DIR/victim" -printf '%p %m %U:%G %T@ %l\n' | LC_ALL=C sort && cat -- "$SCRATCH_DIR/victim"/*; }

# held: nothing of the victim's has changed, and nothing of ours is left.
held() {
    assert_equal "$(tree)" "$BEFORE" "the victim"
    assert_clean "$REPO"
    assert_no_children "$REPO"
}

@test "neighbour [a --tmpdir that others can change]" {
    local before
    before=$(refs "$REPO")
    mkdir -m 777 -- "$SCRATCH_DIR/open"
    oi -1 "--repo=$REPO" "--tmpdir=$SCRATCH_DIR/open" pull "$IMAGE" x
    assert_error "others can write $SCRATCH_DIR/open, and it is not sticky"
    mkdir -m 755 -- "$SCRATCH_DIR/theirs"
    chown -- "$UNPRIVILEGED" "$SCRATCH_DIR/theirs"
    oi -1 "--repo=$REPO" "--tmpdir=$SCRATCH_DIR/theirs" pull "$IMAGE" x
    assert_error "$SCRATCH_DIR/theirs belongs to the user"
    [[ -z $(find "$SCRATCH_DIR/open" "$SCRATCH_DIR/theirs" -mindepth 1) ]] || fail "something was written there"
    assert_untouched "$REPO" "$before"
}

# beside_swapper DIR COMMAND… runs a command again and again while the other user swaps what comes up in DIR.
beside_swapper() {
    local dir=$1 i runs=0 pid
    shift
    as_user timeout 60 python3 "$INTEGRATION/hostile/swapper.py" "$dir" "$SCRATCH_DIR/victim" 8 >"$SCRATCH_DIR/swaps" 3>&- &
    pid=$!
    for ((i = 0; i < 1000; i++)); do
        kill -0 "$pid" 2>/dev/null || break
        "$@" >/dev/null 2>&1 || :
        ((++runs))
    done
    wait "$pid"
    echo "$runs runs, $(cat "$SCRATCH_DIR/swaps") swaps"
    (($(cat "$SCRATCH_DIR/swaps") > 0)) || fail "nothing came up"
}

@test "neighbour [one who owns the directory that root checks out into]" {
    oi "--repo=$REPO" pull "$IMAGE" x
    local dir=$SCRATCH_DIR/theirs
    mkdir -- "$dir"
    chown -- "$UNPRIVILEGED" "$dir"
    beside_swapper "$dir" "$OI" --insecure-policy --quiet "--repo=$REPO" checkout x "$dir/root"
    held
    # And where all is quiet it works, and is told by the name that the user gave.
    rm -rf -- "${dir:?}"/* "$dir"/.[!.]*
    oi "--repo=$REPO" checkout x "$dir/root"
    oi -1 "--repo=$REPO" checkout x "$dir/root"
    assert_error "$dir/root is not empty"
    rm -r -- "$dir/root"
    as_user ln -s "$SCRATCH_DIR" "$dir/link"
    oi -1 "--repo=$REPO" checkout x "$dir/link/root"
    assert_error "symbolic link link"
    oi -1 "--repo=$REPO" "--log-commands=$dir/link/log" list
    assert_error "symbolic link link"
    oi -1 "--repo=$REPO" pull "--digestfile=$dir/link/digest" "$IMAGE" x
    assert_error "symbolic link link"
    [[ ! -e $SCRATCH_DIR/log && ! -e $SCRATCH_DIR/digest ]] || fail "something was written there"
    ln -s "$SCRATCH_DIR" "$SCRATCH_DIR/ours"
    oi "--repo=$REPO" checkout x "$SCRATCH_DIR/ours/theirs/root"
    held
}

@test "neighbour [one who owns the directory that --tmpdir or a record lies in]" {
    local dir=$SCRATCH_DIR/theirs
    mkdir -- "$dir"
    chown -- "$UNPRIVILEGED" "$dir"
    again() {
        mkdir -- "$dir/tmp" && "$OI" --insecure-policy --quiet "--repo=$REPO" "--tmpdir=$dir/tmp" "--record=$dir/record" pull "$IMAGE" x
        rm -rf -- "$dir/tmp" "$dir/record"
        "$OI" --quiet "--repo=$REPO" remove x
    }
    beside_swapper "$dir" again
    assert_equal "$(tree)" "$BEFORE" "the victim"
    assert_no_children "$REPO"
}

@test "neighbour [names planted in a --tmpdir that all can write]" {
    local name planted
    mkdir -m 1777 -- "$SCRATCH_DIR/tmp"
    for name in ostree-image-1 .ostree-image-new-2; do
        as_user ln -s "$SCRATCH_DIR/victim" "$SCRATCH_DIR/tmp/$name"
    done
    as_user mkdir -p "$SCRATCH_DIR/tmp/ostree-image-3"
    as_user ln -s "$SCRATCH_DIR/victim/file" "$SCRATCH_DIR/tmp/ostree-image-3/.ostree-image-work"
    as_user mkdir -p "$SCRATCH_DIR/tmp/ostree-image-4"
    as_user touch "$SCRATCH_DIR/tmp/ostree-image-4/.ostree-image-work"
    as_user ln -s "$SCRATCH_DIR/victim" "$SCRATCH_DIR/tmp/ostree-image-4/blobs"
    mkdir -m 777 -- "$SCRATCH_DIR/tmp/ostree-image-5" # ours, and of another kind
    ln -s "$SCRATCH_DIR/victim" "$SCRATCH_DIR/tmp/ostree-image-5/link"
    planted=$(find "$SCRATCH_DIR/tmp" -printf '%P %M %U %l\n' | LC_ALL=C sort)
    oi "--repo=$REPO" "--tmpdir=$SCRATCH_DIR/tmp" pull "$IMAGE" x
    assert_equal "$(find "$SCRATCH_DIR/tmp" -printf '%P %M %U %l\n' | LC_ALL=C sort)" "$planted" "what was planted"
    held
}

@test "neighbour [who can read a private image while it arrives, under a umask of 000 and 077]" {
    local umask open
    cat >"$SCRATCH_DIR/ostree" <<EOF
#!/bin/sh
case \$1 in commit | pull-local) find "$SCRATCH_DIR/tmp" "$REPO/tmp" -mindepth 1 -maxdepth 1 ! -name cache -printf '%m %u %p\n' >>"$SCRATCH_DIR/seen" ;; esac
exec ostree "\$@"
EOF
    chmod 755 -- "$SCRATCH_DIR/ostree"
    mkdir -m 1777 -- "$SCRATCH_DIR/tmp"
    for umask in 000 077; do
        rm -f -- "$SCRATCH_DIR/seen"
        run --separate-stderr bash -c 'umask "$1" && shift && "$@"' - "$umask" "$OI" --insecure-policy "--repo=$REPO" "--tmpdir=$SCRATCH_DIR/tmp" \
            "--ostree=$SCRATCH_DIR/ostree" "--record=$SCRATCH_DIR/record-$umask" "--log-commands=$SCRATCH_DIR/log-$umask" pull \
            "--digestfile=$SCRATCH_DIR/digest-$umask" "$IMAGE" "x:$umask"
        [[ $status == 0 ]] || fail "umask $umask: $stderr"
        grep -q "/ostree-image-" "$SCRATCH_DIR/seen" || fail "no work directory was seen"
        ! grep -v '^700 root ' "$SCRATCH_DIR/seen" || fail "others can get into a work directory"
        [[ $(stat -c %a -- "$SCRATCH_DIR/log-$umask") == 600 ]] || fail "the log can be read by others"
        open=$(find "$REPO" "$SCRATCH_DIR/record-$umask" "$SCRATCH_DIR/digest-$umask" -perm -002 ! -type l -printf '%P %M\n')
        [[ -z $open ]] || fail "others can write: $open"
    done
    [[ $(stat -c %a -- "$SCRATCH_DIR/digest-000") == 644 ]] || fail "the umask is not the caller's"
    oi "--repo=$REPO" verify
    held
}

@test "neighbour [a log, record or digest file that is a link, or somebody else's]" {
    local before
    before=$(refs "$REPO")
    ln -s victim/file "$SCRATCH_DIR/link"
    ln -s victim/new "$SCRATCH_DIR/dangling"
    ln -s victim "$SCRATCH_DIR/dir"
    oi -1 "--repo=$REPO" "--log-commands=$SCRATCH_DIR/link" pull "$IMAGE" x
    assert_error 'opening the command log'
    oi -1 "--repo=$REPO" "--log-commands=$SCRATCH_DIR/dangling" pull "$IMAGE" x
    oi -1 "--repo=$REPO" "--record=$SCRATCH_DIR/dir" pull "$IMAGE" x
    assert_error 'is no empty directory'
    oi -1 "--repo=$REPO" "--record=$SCRATCH_DIR/dangling" pull "$IMAGE" x
    mkdir -- "$SCRATCH_DIR/empty"
    ln -s empty "$SCRATCH_DIR/link-to-empty"
    oi -1 "--repo=$REPO" "--record=$SCRATCH_DIR/link-to-empty" pull "$IMAGE" x
    assert_error 'is no empty directory'
    mkdir -- "$SCRATCH_DIR/theirs"
    chown -- "$UNPRIVILEGED" "$SCRATCH_DIR/theirs"
    oi -1 "--repo=$REPO" "--record=$SCRATCH_DIR/theirs" pull "$IMAGE" x
    assert_error 'belongs to somebody else'
    assert_untouched "$REPO" "$before"
    oi -1 "--repo=$REPO" pull "--digestfile=$SCRATCH_DIR/link" "$IMAGE" x
    assert_error 'writing the digest file'
    oi -1 "--repo=$REPO" pull "--digestfile=$SCRATCH_DIR/dangling" "$IMAGE" x
    oi "--repo=$REPO" --quiet pull --digestfile=/dev/stdout "$IMAGE" x
    assert_stdout "$(manifest_digest "$SCRATCH_DIR/oci" x)"
    held
}

@test "neighbour [the environment]" {
    local want
    oi "--repo=$REPO" pull "$IMAGE" x
    want=$(refs "$REPO")
    new_repo "$SCRATCH_DIR/other" bare-user
    new_repo "$SCRATCH_DIR/decoy" bare-user
    run --separate-stderr env TAR_OPTIONS="--checkpoint=1 --checkpoint-action=exec='touch $SCRATCH_DIR/victim/pwned'" OSTREE_REPO="$SCRATCH_DIR/decoy" \
        G_MESSAGES_DEBUG=all OSTREE_DEBUG_HTTP=1 OSTREE_SYSROOT_DEBUG=mutable-deployments LC_ALL=C LANG=C GZIP=-1 POSIXLY_CORRECT=1 BASH_ENV="$SCRATCH_DIR/victim/file" \
        ENV="$SCRATCH_DIR/victim/file" XDG_DATA_HOME="$SCRATCH_DIR/victim" HOME="$SCRATCH_DIR/victim" IFS=t CDPATH=/ \
        "$OI" --insecure-policy "--repo=$SCRATCH_DIR/other" pull --unpack=tar "$IMAGE" x
    [[ $status == 0 ]] || fail "it ends with $status: $stderr"
    assert_equal "$(refs "$SCRATCH_DIR/other")" "$want" "the commits"
    assert_equal "$(refs "$SCRATCH_DIR/decoy")" "" "the other repository"
    held
}

@test "neighbour [a PATH that leads to somebody else's programs]" {
    mkdir -- "$SCRATCH_DIR/bin"
    for name in ostree tar; do
        printf '#!/bin/sh\ntouch "%s"\nexit 1\n' "$SCRATCH_DIR/victim/pwned" >"$SCRATCH_DIR/bin/$name"
    done
    chmod 755 -- "$SCRATCH_DIR/bin"/*
    # Programs that the working directory holds are not run, and those that the command line names are.
    run --separate-stderr env -C "$SCRATCH_DIR/bin" "PATH=.::$PATH" "$OI" --insecure-policy "--repo=$REPO" pull "$IMAGE" x
    [[ ! -e $SCRATCH_DIR/victim/pwned ]] || fail "a program of the working directory was run"
    run --separate-stderr env "PATH=$SCRATCH_DIR/bin:$PATH" "$OI" --insecure-policy --quiet "--repo=$REPO" "--ostree=$(command -v ostree)" \
        "--tar=$(command -v tar)" pull "$IMAGE" y
    [[ $status == 0 ]] || fail "it ends with $status: $stderr"
    held
}

@test "neighbour [files that the caller has left open]" {
    local tool
    for tool in ostree tar; do
        cat >"$SCRATCH_DIR/$tool" <<EOF
#!/bin/sh
: >"$SCRATCH_DIR/asked-$tool"
for fd in 7 8 9; do if [ -e /proc/self/fd/\$fd ]; then echo "\$0: \$(readlink /proc/self/fd/\$fd)" >>"$SCRATCH_DIR/open"; fi; done
exec $tool "\$@"
EOF
        chmod 755 -- "$SCRATCH_DIR/$tool"
    done
    run --separate-stderr "$OI" --insecure-policy --quiet "--repo=$REPO" "--ostree=$SCRATCH_DIR/ostree" "--tar=$SCRATCH_DIR/tar" \
        pull --unpack=tar "$IMAGE" x 7>>"$SCRATCH_DIR/victim/file" 8<"$SCRATCH_DIR/victim" 9<"$SCRATCH_DIR/1.tar"
    [[ $status == 0 ]] || fail "it ends with $status: $stderr"
    [[ -e $SCRATCH_DIR/asked-ostree && -e $SCRATCH_DIR/asked-tar ]] || fail "no child has looked"
    [[ ! -e $SCRATCH_DIR/open ]] || fail "children have: $(cat "$SCRATCH_DIR/open")"
    held
}

@test "neighbour [a reader who locks the repository, and a writer who does]" {
    local pid
    as_user flock --no-fork --shared -- "$REPO" sleep 60 3>&- &
    pid=$!
    oi "--repo=$REPO" --lock-timeout=5s pull "$IMAGE" x
    [[ $(stat -c %a -- "$REPO/.ostree-image-lock") == 600 ]] || fail "others can open the lock"
    run ! as_user flock --shared --nonblock -- "$REPO/.ostree-image-lock" true
    kill -- "$(pgrep -P "$pid" sleep || echo "$pid")" 2>/dev/null || :
    flock -- "$REPO/.ostree-image-lock" sleep 60 3>&- &
    pid=$!
    sleep 0.5
    oi -1 "--repo=$REPO" --lock-timeout=3s remove x
    assert_error "the repository $REPO is locked by the process $pid (flock): gave up after 3"
    assert_stderr_has "ostree-image: warning: waiting for the lock of the repository $REPO, which the process $pid (flock) has"
    oi -1 "--repo=$REPO" --lock-timeout=0s prune
    assert_error "--lock-timeout"
    oi "--repo=$REPO" prune --dry-run
    oi "--repo=$REPO" verify
    pkill -P "$pid" || :
    kill -- "$pid" || :
    oi "--repo=$REPO" remove x
    held
}

# What this user may not read is no damage: status 1, what it is, and what to do.
@test "neighbour [what the user may not read]" {
    local commit what command want
    oi "--repo=$REPO" pull "$IMAGE" x
    oi "--repo=$REPO" pull "$IMAGE" y
    chmod -R a+rX -- "$REPO"
    commit=$(ostree rev-parse "--repo=$REPO" ociimage/x_3Alatest)
    mkdir -m 777 -- "$SCRATCH_DIR/out"
    OI_USER=user
    for what in "objects/${commit:0:2}/${commit:2}.commit" 'objects/*/*.file' 'objects/*/*.dirtree' 'objects/*' refs/heads/ociimage/x_3Alatest refs/heads/ociimage config objects .; do
        # shellcheck disable=SC2086 # patterns, and no blanks
        (cd -- "$REPO" && chmod go-rwx -- $what)
        for command in list 'inspect x' verify 'verify x' "push x dir:$SCRATCH_DIR/out/dir" "checkout -U x $SCRATCH_DIR/out/tree" 'prune --dry-run'; do
            if [[ $command == list && $what == 'objects/*/'* ]]; then # it reads commits only
                oi "--repo=$REPO" --quiet list
                continue
            fi
            # shellcheck disable=SC2086 # a command and its arguments
            oi -1 "--repo=$REPO" --quiet $command
            assert_stderr_has 'Permission denied'
            assert_stderr_has "this user may not read all of the repository $REPO: "
            assert_stderr_has 'run as its owner, or make it readable'
            [[ $stderr != *damaged* && $output != *damaged* ]] || fail "it is called damaged"
        done
        # shellcheck disable=SC2086
        (cd -- "$REPO" && chmod go+rX -- $what)
    done
    chmod go-r -- "$REPO/objects/${commit:0:2}/${commit:2}.commit"
    oi -1 "--repo=$REPO" list
    assert_stdout_has 'y:latest'
}

# A full disk is one where ostree alone says so: the repository's own settings count, and no others.
@test "neighbour [how much of the disk stays free is the repository's to say]" {
    requires_tool mount mountpoint
    local free setting want tree=$SCRATCH_DIR/tree
    mkdir -- "$SCRATCH_DIR/disk" "$SCRATCH_DIR/staged" "$tree"
    head -c 2M /dev/urandom >"$tree/file"
    tar --create --file="$SCRATCH_DIR/2.tar" --directory="$tree" file
    must python3 "$INTEGRATION/image.py" oci "$SCRATCH_DIR/oci" two "$SCRATCH_DIR/2.tar"
    while read -r free setting want; do
        mount -t tmpfs -o size=100m none "$SCRATCH_DIR/disk"
        REPO=$SCRATCH_DIR/disk/repo
        new_repo "$REPO" bare-user
        for setting in ${setting//,/ }; do
            [[ $setting == none ]] || sed -i "/^\[core\]/a $setting" "$REPO/config"
        done
        head -c "$((100 - free))M" /dev/zero >"$SCRATCH_DIR/disk/filler"
        run ostree commit "--repo=$REPO" --orphan "--tree=dir=$tree"
        assert_equal "$status" "$want" "ostree alone, with $free MB free and $setting"
        rm -rf -- "$REPO/objects"/* "$REPO/tmp"/*
        oi "-$want" "--repo=$REPO" "--tmpdir=$SCRATCH_DIR/staged" pull "oci:$SCRATCH_DIR/oci:two" two
        [[ $want == 0 ]] || assert_stderr_has min-free-space
        umount -- "$SCRATCH_DIR/disk"
    done <<END
7 none 0
4 none 1
4 min-free-space-percent=0 0
50 min-free-space-percent=60 1
50 min-free-space-percent=30 0
50 min-free-space-size=60MB 1
50 min-free-space-size=10MB,min-free-space-percent=90 0
END
}
