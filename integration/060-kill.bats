#!/usr/bin/env bats
# What ends the program in the middle of a large layer.

bats_require_minimum_version 1.5.0
load helpers

setup_file() {
    ((EUID == 0)) || return 0
    for tool in mmdebstrap umoci skopeo setcap; do
        command -v "$tool" >/dev/null || return 0
    done
    fixture debian
    fixture counts
    [[ -z $REGISTRY ]] || in_registry "$REGISTRY" debian debian
}

setup() {
    requires root
    requires registry
    requires_tool ostree mmdebstrap umoci skopeo setcap python3
    REPO=$BATS_TEST_TMPDIR/repo
    new_repo "$REPO" bare-user
    oi "--repo=$REPO" pull "oci:$FIXTURES/counts/oci:10" kept
    BEFORE=$(refs "$REPO")
}

teardown() {
    [[ -z ${proxy_pid-} ]] || kill "$proxy_pid" || :
    [[ -z ${pid-} ]] || kill -KILL "$pid" 2>/dev/null || :
}

# has_child TOOL: the program has such a child now. It looks at few processes, since that can take long where many run.
has_child() {
    local child found
    read -r -d '' -a found < <(cat -- "/proc/$pid/task/"*/children 2>/dev/null) || :
    for child in "${found[@]}"; do
        [[ $(cat -- "/proc/$child/comm" 2>/dev/null) != "$1" ]] || return 0
    done
    return 1
}

# start_slowly TOOL ARGUMENT… starts a pull of 42 MB at RATE (3 MB/s), and waits until TOOL runs and has something to do.
start_slowly() {
    local tool=$1 i
    shift
    slow_proxy "${REGISTRY##*:}" "${RATE:-3000000}"
    # A shell makes what it starts in the background ignore SIGINT.
    env --default-signal=INT "$OI" --insecure-policy "--repo=$REPO" pull --src-tls-verify=false "$@" "docker://$proxy/debian/debian:1" debian \
        >"$BATS_TEST_TMPDIR/out" 2>"$BATS_TEST_TMPDIR/err" 3>&- &
    pid=$!
    for ((i = 0; i < 200; i++)); do
        has_child "$tool" && [[ -n $(find "$REPO/tmp" -path '*/ostree-image-*' -type f -size +2M 2>/dev/null) ]] && return
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    fail "it did not get there: $(cat "$BATS_TEST_TMPDIR/err")"
}

# gone: within five seconds no child is left.
gone() {
    local i
    for ((i = 0; i < 50; i++)); do
        [[ -n $(children "$REPO") ]] || return 0
        sleep 0.1
    done
    assert_no_children "$REPO"
}

# killed ARGUMENT…
killed() {
    start_slowly "$@"
    kill -KILL "$pid"
    local status=0
    wait "$pid" || status=$?
    [[ $status == 137 ]] || fail "status $status"
    pid=''
    gone
    assert_equal "$(refs "$REPO")" "$BEFORE" "the refs"
    [[ -n $(find "$REPO/tmp" -maxdepth 1 -name 'ostree-image-*') ]] || fail "nothing was left, so there is nothing to clean up"
    assert_fsck "$REPO"
    oi "--repo=$REPO" pull "oci:$FIXTURES/debian/oci:debian" debian
    assert_clean "$REPO"
    assert_fsck "$REPO"
    oi "--repo=$REPO" list
    assert_stdout_has debian:latest
    assert_stdout_has kept:latest
}

@test "SIGKILL [stream]" {
    killed ostree
}

@test "SIGKILL [tar]" {
    killed tar --unpack=tar
}

# interrupted SIGNAL STATUS ARGUMENT…
interrupted() {
    local signal=$1 want=$2 status=0 began
    shift 2
    start_slowly "$@"
    began=$SECONDS
    kill "-$signal" "$pid"
    wait "$pid" || status=$?
    pid=''
    [[ $status == "$want" ]] || fail "status $status: $(cat "$BATS_TEST_TMPDIR/err")"
    ((SECONDS - began < 10)) || fail "it took $((SECONDS - began)) seconds"
    assert_untouched "$REPO" "$BEFORE"
    [[ ! -s $BATS_TEST_TMPDIR/out ]] || fail "something is on stdout"
    stderr=$(cat "$BATS_TEST_TMPDIR/err")
    output=''
    assert_error 'stopped by '
    assert_error ': the repository is as it was'
}

@test "SIGINT [stream]" {
    interrupted INT 130 ostree
}

@test "SIGINT [tar]" {
    interrupted INT 130 tar --unpack=tar
}

@test "SIGTERM [stream]" {
    interrupted TERM 143 ostree
}

@test "SIGTERM [tar]" {
    interrupted TERM 143 tar --unpack=tar
}

# Who starts it with nohup(1) goes away and wants it to go on.
@test "SIGHUP [ignored, it stays so]" {
    local status=0
    RATE=30000000
    slow_proxy "${REGISTRY##*:}" "$RATE"
    nohup "$OI" --insecure-policy "--repo=$REPO" pull --src-tls-verify=false "docker://$proxy/debian/debian:1" debian \
        >"$BATS_TEST_TMPDIR/out" 2>"$BATS_TEST_TMPDIR/err" </dev/null 3>&- &
    pid=$!
    local i
    for ((i = 0; i < 100; i++)); do
        ! has_child ostree || break
        sleep 0.1
    done
    kill -HUP "$pid"
    wait "$pid" || status=$?
    pid=''
    [[ $status == 0 ]] || fail "status $status: $(cat "$BATS_TEST_TMPDIR/err")"
    oi "--repo=$REPO" verify debian
}

@test "SIGTERM [a child that does not listen]" {
    printf '#!/bin/sh\ncase $1 in commit) trap "" TERM; cat >/dev/null; sleep 300 ;; *) exec ostree "$@" ;; esac\n' >"$BATS_TEST_TMPDIR/ostree"
    chmod 755 -- "$BATS_TEST_TMPDIR/ostree"
    "$OI" --insecure-policy "--ostree=$BATS_TEST_TMPDIR/ostree" "--repo=$REPO" pull "oci:$FIXTURES/counts/oci:3000" many \
        >"$BATS_TEST_TMPDIR/out" 2>"$BATS_TEST_TMPDIR/err" 3>&- &
    pid=$!
    local i status=0
    for ((i = 0; i < 100; i++)); do
        grep -alsF -- "$BATS_TEST_TMPDIR/ostree" /proc/[0-9]*/cmdline | grep -v "/$pid/" >"$BATS_TEST_TMPDIR/found" && break
        sleep 0.1
    done
    sleep 1
    kill -TERM "$pid"
    wait "$pid" || status=$?
    pid=''
    [[ $status == 143 ]] || fail "status $status: $(cat "$BATS_TEST_TMPDIR/err")"
    assert_untouched "$REPO" "$BEFORE"
    run ! grep -aqsF -- "$BATS_TEST_TMPDIR/ostree" /proc/[0-9]*/cmdline
}

# What another run that still lives has in tmp/ is its own.
@test "two at once [neither removes what is the other's]" {
    RATE=8000000
    start_slowly ostree
    oi "--repo=$REPO" pull "oci:$FIXTURES/counts/oci:3000" many
    [[ -n $(find "$REPO/tmp" -maxdepth 1 -name 'ostree-image-*') ]] || fail "the other's work is gone"
    local status=0
    wait "$pid" || status=$?
    pid=''
    [[ $status == 0 ]] || fail "status $status: $(cat "$BATS_TEST_TMPDIR/err")"
    assert_clean "$REPO"
    assert_fsck "$REPO"
}
