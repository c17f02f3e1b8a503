#!/usr/bin/env bats
# --log-commands: lines that a POSIX shell runs to the same effect.

bats_require_minimum_version 1.5.0
load helpers

setup_file() {
    ((EUID == 0)) || return 0
    fixture small
    fixture counts
    fixture hostile
    [[ -z $TLS_REGISTRY ]] || in_registry "$TLS_REGISTRY" small small
}

setup() {
    requires root
    requires_tool ostree python3
    REPO=$BATS_TEST_TMPDIR/repo
    LOG=$BATS_TEST_TMPDIR/log
}

# check_log LOG: each line is a whole command of a POSIX shell, and the log a script without faults.
check_log() {
    local line n=0
    while IFS= read -r line; do
        n=$((n + 1))
        sh -n -c "$line" || fail "line $n is no command: $line"
        [[ $line != *$'\n'* ]] || fail "line $n"
    done <"$1"
    ((n > 10)) || fail "only $n lines"
    sh -n "$1"
    # SC2043 and so on are matters of style; errors are not.
    if command -v shellcheck >/dev/null; then
        run -0 shellcheck --shell=sh --severity=error -- "$1"
    fi
    [[ $(stat -c %a -- "$1") == 600 ]] || fail "the log's mode"
    if command -v dash >/dev/null; then
        dash -n "$1"
    fi
}

# blobs_of LAYOUT TAG REPO fills BLOBS with what a log reads: blobs, the streams that are made of them, and records. A layer of plain files
# is its own clean stream.
blobs_of() {
    BLOBS=$BATS_TEST_TMPDIR/blobs
    mkdir -p -- "$BLOBS"
    cp -- "$1"/blobs/sha256/* "$BLOBS/"
    local hex
    for hex in $(manifest_layers "$1" "$2"); do
        gzip -dc -- "$BLOBS/$hex" >"$BLOBS/$hex.tar"
        if [[ -e $3/refs/heads/ociimage/tarsplit/$hex ]]; then
            ostree cat "--repo=$3" "ociimage/tarsplit/$hex" /tar-split.json.gz >"$BLOBS/$hex.tar-split.json.gz"
        fi
    done
}

# replayed LOG runs it into a fresh repository, as OI_USER, in a poor environment.
replayed() {
    local command=(env -i PATH=/usr/bin:/bin LC_ALL=C.UTF-8 "BLOBS=$BLOBS" "WORK=$BATS_TEST_TMPDIR/work" sh "$1")
    mkdir -- "$BATS_TEST_TMPDIR/work"
    if [[ ${OI_USER-} == user ]]; then
        chown -- "$UNPRIVILEGED" "$BATS_TEST_TMPDIR/work"
        chmod 644 -- "$1"
        command=(as_user "${command[@]}")
    fi
    run "${command[@]}"
    [[ $status == 0 ]] || fail "the log ends with $status: $output"
}

@test "log [shell]" {
    new_repo "$REPO" archive
    oi "--repo=$REPO" "--log-commands=$LOG" pull "oci:$FIXTURES/small/oci:small" small
    check_log "$LOG"
    oi "--repo=$REPO" "--log-commands=$LOG.again" pull "oci:$FIXTURES/small/oci:small" small
    check_log "$LOG.again"
}

@test "log [shell, tar engine, user]" {
    requires user
    OI_USER=user
    new_repo "$REPO" bare-user
    mkdir "$BATS_TEST_TMPDIR/logs"
    chown -- "$UNPRIVILEGED" "$BATS_TEST_TMPDIR/logs"
    oi "--repo=$REPO" "--log-commands=$BATS_TEST_TMPDIR/logs/log" pull --unpack=tar "oci:$FIXTURES/small/oci:small" small
    check_log "$BATS_TEST_TMPDIR/logs/log"
}

@test "log [OSTREE_IMAGE_LOG]" {
    new_repo "$REPO" bare-user
    OSTREE_IMAGE_LOG=$LOG oi "--repo=$REPO" pull "oci:$FIXTURES/counts/oci:10" ten
    check_log "$LOG"
}

# replay_is_same MODE ENGINE FIXTURE TAG
replay_is_same() {
    new_repo "$REPO" "$1"
    local log=$LOG
    if [[ ${OI_USER-} == user ]]; then
        mkdir "$BATS_TEST_TMPDIR/logs"
        chown -- "$UNPRIVILEGED" "$BATS_TEST_TMPDIR/logs"
        log=$BATS_TEST_TMPDIR/logs/log
    fi
    oi "--repo=$REPO" "--log-commands=$log" pull "--unpack=$2" "oci:$FIXTURES/$3/oci:$4" "image/of:$4"
    check_log "$log"
    blobs_of "$FIXTURES/$3/oci" "$4" "$REPO"
    replayed "$log"
    assert_equal "$(refs "$BATS_TEST_TMPDIR/work/repo")" "$(refs "$REPO")" "the replay"
    assert_fsck "$BATS_TEST_TMPDIR/work/repo"
}

@test "replay [stream, record inside]" {
    replay_is_same bare-user stream counts 10
}

@test "replay [stream, record beside]" {
    replay_is_same archive stream counts 3000
    [[ $(refs "$REPO") == *ociimage/tarsplit/* ]] || fail "nothing beside"
}

@test "replay [tar]" {
    replay_is_same bare tar counts 10
}

@test "replay [tar, user]" {
    requires user
    OI_USER=user
    replay_is_same bare-user tar counts 10
}

@test "replay [hostile names, stream]" {
    replay_is_same bare-user stream hostile hostile
    [[ ! -e /tmp/pwned ]] || fail "a name was run"
}

@test "replay [hostile names, tar, user]" {
    requires user
    OI_USER=user
    replay_is_same bare-user tar hostile hostile
    [[ ! -e /tmp/pwned ]] || fail "a name was run"
    run -0 ostree ls "--repo=$REPO" -R "ociimage/$(manifest_layers "$FIXTURES/hostile/oci" hostile)"
    [[ $(grep -c '^-00000 ' <<<"$output") == 18 ]] || fail "not all have mode 0000: $output"
}

@test "replay [two runs in one log]" {
    new_repo "$REPO" bare-user
    oi "--repo=$REPO" "--log-commands=$LOG" pull "oci:$FIXTURES/counts/oci:10" ten
    oi "--repo=$REPO" "--log-commands=$LOG" pull "oci:$FIXTURES/counts/oci:3000" many
    check_log "$LOG"
    blobs_of "$FIXTURES/counts/oci" 10 "$REPO"
    blobs_of "$FIXTURES/counts/oci" 3000 "$REPO"
    replayed "$LOG"
    assert_equal "$(refs "$BATS_TEST_TMPDIR/work/repo")" "$(refs "$REPO")" "the replay"
}

@test "replay [a repository of an odd path]" {
    local odd=$BATS_TEST_TMPDIR/"it's a \$HOME \"repo\" \\ *"$'\n'"new line"
    mkdir -- "$odd"
    new_repo "$odd/repo" bare-user
    oi --debug "--repo=$odd/repo" "--log-commands=$LOG" pull "oci:$FIXTURES/counts/oci:10" ten
    # In the log it is "$REPO", on stderr it is quoted.
    [[ $(cat -- "$LOG") != *"new line"* ]] || fail "the path is in the log"
    check_log "$LOG"
    local line
    line=$(sed -n 's/^+ \(.* refs .*\)/\1/p' <<<"$stderr" | head -n 1)
    run -0 sh -c 'NL=$(printf "\nx"); NL=${NL%x}; set -- '"$line"'; printf %s "$3"'
    assert_stdout "--repo=$odd/repo"
}

# ostree takes the source of pull-local for the path of a URL.
@test "import [a repository whose path means something in a URL]" {
    local odd
    for odd in '%s' 'a%41b' 'a#b' 'a?b' 'a+b' 'a b'; do
        mkdir -- "$BATS_TEST_TMPDIR/$odd"
        new_repo "$BATS_TEST_TMPDIR/$odd/repo" bare-user
        run --separate-stderr "$OI" --insecure-policy --quiet "--repo=$BATS_TEST_TMPDIR/$odd/repo" pull "oci:$FIXTURES/counts/oci:10" ten
        # To refuse such a path at once is as good.
        [[ $status == 0 || ($status == 2 && $stderr == *'cannot stand in it'*) ]] || fail "$odd: status $status: $stderr"
        assert_fsck "$BATS_TEST_TMPDIR/$odd/repo"
    done
}

@test "log [a failure is noted]" {
    new_repo "$REPO" bare-user
    printf '#!/bin/sh\ncase $1 in pull-local) echo "error: the moon is full" >&2; exit 7 ;; *) exec ostree "$@" ;; esac\n' >"$BATS_TEST_TMPDIR/ostree"
    chmod 755 -- "$BATS_TEST_TMPDIR/ostree"
    oi -1 "--ostree=$BATS_TEST_TMPDIR/ostree" "--repo=$REPO" "--log-commands=$LOG" pull "oci:$FIXTURES/counts/oci:10" ten
    check_log "$LOG"
    grep -qE '^# [0-9]+ failed after .*exit status 7: the moon is full$' "$LOG" || fail "$(tail -n 3 "$LOG")"
}

@test "log [no credentials]" {
    requires tls-registry
    new_repo "$REPO" bare-user
    oi --debug "--repo=$REPO" "--log-commands=$LOG" pull "--src-cert-dir=$TLS_DIR/client" --src-creds='importer:s3cr3t-Passw0rd' \
        "docker://$TLS_REGISTRY/small/small:1" small
    local secret
    for secret in s3cr3t-Passw0rd "$(printf 'importer:s3cr3t-Passw0rd' | base64)" "$(printf 'importer:s3cr3t-Passw0rd' | base64 | tr -d =)"; do
        assert_stderr_lacks "$secret"
        [[ $output != *"$secret"* ]] || fail "on stdout"
        run ! grep -F -- "$secret" "$LOG"
        run ! grep -rF -- "$secret" "$REPO"
    done
}

@test "debug [shows each command]" {
    new_repo "$REPO" bare-user
    oi --debug --quiet "--repo=$REPO" "--log-commands=$LOG" pull "oci:$FIXTURES/counts/oci:10" ten
    local line logged shown
    while IFS= read -r line; do
        [[ $line == '+ ostree '* || $line == '# '* ]] || fail "stderr: $line"
    done <<<"$stderr"
    logged=$(grep -c '^ostree ' "$LOG")
    shown=$(grep -c '^+ ostree ' <<<"$stderr")
    assert_equal "$shown" "$logged" "commands"
}
