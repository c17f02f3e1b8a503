#!/usr/bin/env bats
# The command line itself, and the program's file.

bats_require_minimum_version 1.5.0
load helpers

# wrong TEXT ARGUMENT… wants exit status 2 and the text.
wrong() {
    local text=$1
    shift
    oi -2 "$@"
    assert_error "$text"
}

@test "usage [help]" {
    local command
    oi --help
    for command in copy pull list version; do
        [[ $output =~ $'\n     '"$command"[,\ ] ]] || fail "no $command in the help"
    done
    for option in --repo --debug --quiet --log-commands --tmpdir --command-timeout --lock-timeout --ostree --tar --policy --insecure-policy --override-os \
        --override-arch --override-variant --registries-conf --registries.d --authfile; do
        assert_stdout_has "$option"
    done
    [[ -z $stderr ]] || fail "something is on stderr"
    oi
    assert_stdout_has 'COMMANDS:'
    oi copy --help
    assert_stdout_has 'SOURCE DESTINATION'
    for option in --unpack --src-tls-verify --dest-tls-verify --src-creds --src-no-creds --src-cert-dir --src-authfile --src-registry-token --all \
        --format --preserve-digests --remove-signatures --sign-by-sigstore-private-key --tls-verify --multi-arch --platform --dest-compress-format --digestfile --retry-times --image-parallel-copies --timestamp --no-fsync; do
        assert_stdout_has "$option"
    done
    oi pull --help
    assert_stdout_has 'SOURCE [NAME]'
}

@test "usage [version]" {
    requires_tool ostree
    oi version
    [[ ${lines[0]} =~ ^ostree-image\ [0-9.]+ ]] || fail "the first line"
    local version
    version=$(ostree --version | sed -n "s/^ Version: '\(.*\)'/\1/p")
    assert_stdout_has $'\n'"ostree $version ("
    assert_stdout_has $'\n'"tar $(tar --version | sed -n '1s/.* //p')"
}

@test "usage [unknown command]" {
    wrong 'unknown command "frobnicate"; see ostree-image --help' frobnicate
    wrong 'unknown command "remov"; did you mean remove?; see ostree-image --help' remov a
}

@test "usage [unknown option]" {
    wrong 'unknown option --frobnicate; see ostree-image list --help' --frobnicate list
    wrong 'unknown option --frobnicate; see ostree-image pull --help' pull --frobnicate a b
    wrong 'unknown option --src-tls-verfy; did you mean --src-tls-verify?; see ostree-image copy --help' copy a b --src-tls-verfy=false
}

@test "usage [options anywhere]" {
    requires_tool ostree
    new_repo "$BATS_TEST_TMPDIR/repo" archive
    local words
    for words in "--repo=$BATS_TEST_TMPDIR/repo list --format=json" "list --repo $BATS_TEST_TMPDIR/repo -f json" \
        "-q list -fjson --repo=$BATS_TEST_TMPDIR/repo" "-f json ls -q -repo $BATS_TEST_TMPDIR/repo" "list -qfjson --repo=$BATS_TEST_TMPDIR/repo --"; do
        # shellcheck disable=SC2086 # several words
        oi $words
        assert_equal "$output" '[]' "$words"
    done
    oi -2 "--repo=$BATS_TEST_TMPDIR/repo" inspect -- -x
    assert_error 'image name "-x": invalid reference format'
}

@test "usage [missing and surplus arguments]" {
    wrong 'copy: SOURCE and DESTINATION are missing; usage: ostree-image copy SOURCE DESTINATION' copy
    wrong 'copy: DESTINATION is missing; usage: ostree-image copy SOURCE DESTINATION' copy oci:a:b
    wrong 'copy: "d" is one argument too many; usage: ostree-image copy SOURCE DESTINATION' copy oci:a:b ostree:c d
    wrong 'pull: SOURCE is missing; usage: ostree-image pull SOURCE [NAME]' pull
    wrong 'pull: "d" is one argument too many; usage: ostree-image pull SOURCE [NAME]' pull oci:a:b c d
    wrong 'list: "a" is one argument too many; usage: ostree-image list' list a
}

@test "usage [bad values]" {
    wrong '--unpack "foo": it is auto, stream or tar' pull --unpack=foo oci:a:b c
    wrong '--format "foo": it is oci, v2s1 or v2s2' "--repo=$BATS_TEST_TMPDIR/repo" pull --format=foo oci:a:b c
    wrong '--format "xml": it is table, json or a Go template' list --format=xml
    wrong '--command-timeout -5s: it cannot be negative' --command-timeout=-5s list
    wrong 'invalid value "5" for flag -command-timeout' --command-timeout=5 list
    wrong 'timestamp "-1": it is "now" or a number of seconds since 1970' "--repo=$BATS_TEST_TMPDIR/repo" pull --timestamp=-1 oci:a:b c
    wrong 'timestamp "1.5": it is "now" or a number of seconds since 1970' "--repo=$BATS_TEST_TMPDIR/repo" pull --timestamp=1.5 oci:a:b c
}

@test "usage [a log that cannot be written]" {
    oi -1 --log-commands=/none/log list
    assert_error 'opening the command log: open /none/log: no such file or directory'
    ln -s /dev/null "$BATS_TEST_TMPDIR/link"
    oi -1 "--log-commands=$BATS_TEST_TMPDIR/link" list
    assert_error 'opening the command log'
}

@test "the program is static" {
    requires_tool file
    run -0 file --brief -- "$OI"
    [[ $output == *'statically linked'* ]] || fail "$output"
}

@test "the program is built without cgo" {
    requires_tool go
    run -0 go version -m "$OI"
    [[ $output == *'CGO_ENABLED=0'* ]] || fail "$output"
    [[ $output == *'containers_image_openpgp'* ]] || fail "$output"
}
