#!/usr/bin/env bats
# doctor: what this machine and the repository can do, and what is wrong.

bats_require_minimum_version 1.5.0
load helpers
load export

setup() {
    requires root
    requires_tool ostree jq
    T=$BATS_TEST_TMPDIR
    export OSTREE_REPO=$T/repo
    new_repo "$OSTREE_REPO" bare-user
}

# status_of CHECK prints the statuses of a check, and what was found.
status_of() { jq -r --arg c "$1" '.[] | select(.check == $c) | .status + " " + .text' <<<"$output"; }

@test "doctor [a machine where all is well]" {
    oi doctor
    assert_stdout_has 'STATUS '
    assert_stdout_has "$OSTREE_REPO, mode bare-user, images: 0"
    [[ $output != *problem* ]] || fail "a problem: $output"
    assert_equal "$(find "$OSTREE_REPO/tmp" -name '*ostree-image*')" ""
    oi doctor --format=json
    assert_equal "$(status_of ostree | cut -d, -f1)" "ok version $(ostree --version | sed -n "s/^ Version: '\(.*\)'/\1/p")"
    oi doctor --format '{{.Check}}={{.Status}}'
    assert_stdout_has 'repository=ok'
}

@test "doctor [problems have a status, and say what to do]" {
    oi -1 doctor --repo="$T/nothing" --format=json
    status_of repository | grep -q '^problem no repository at '
    [ ! -e "$T/nothing" ] || fail "the repository was made"
    oi -1 doctor --ostree="$T/nothing"
    assert_stdout_has 'problem  ostree '
    assert_stdout_has '--ostree'
    mkdir "$T/conf"
    echo '{"default": [{"type": "nonsense"}]}' >"$T/conf/policy.json"
    OI_POLICY=--quiet oi -1 doctor --policy="$T/conf/policy.json"
    assert_stdout_has '--insecure-policy'
    echo '{"default": [{"type": "reject"}]}' >"$T/conf/policy.json"
    OI_POLICY=--quiet oi doctor --policy="$T/conf/policy.json" --format=json
    status_of policy.json | grep -q '^note images are refused'
    echo 'unqualified-search-registries = [' >"$T/conf/registries.conf"
    oi -1 doctor --registries-conf="$T/conf/registries.conf" --format=json
    status_of registries.conf | grep -q '^problem '
    echo 'unqualified-search-registries = ["registry.example"]' >"$T/conf/registries.conf"
    oi doctor --registries-conf="$T/conf/registries.conf" --format=json
    status_of registries.conf | grep -q '^ok short names are looked for at registry.example$'
    sed -i 's/mode=bare-user/mode=odd/' "$OSTREE_REPO/config"
    oi -1 doctor --format=json
    status_of repository | grep -q '^problem '
}

@test "doctor [a repository that is not made yet, and one that cannot be written]" {
    unset OSTREE_REPO
    [ ! -e /ostree/repo ] || skip "this machine has a system repository"
    export XDG_DATA_HOME=$T/data
    oi doctor --format=json
    status_of repository | grep -q "^note $T/data/ostree-image/repo is made when it is used first"
    [ ! -e "$T/data" ] || fail "something was made"
    new_repo "$T/old" archive
    ostree --repo="$T/old" config set core.fsync false
    oi doctor --repo="$T/old" --format=json
    status_of repository | grep -q '^note core.fsync is false'
    ostree --repo="$T/old" config set core.min-free-space-percent 99
    oi -1 doctor --repo="$T/old" --format=json
    status_of space | grep -q '^problem .*less than the 99 %'
}

@test "doctor [credentials are found and not shown]" {
    mkdir "$T/auth"
    printf '{"auths": {"registry.example": {"auth": "%s"}}}' "$(printf user:topsecret | base64)" >"$T/auth/auth.json"
    chmod 600 "$T/auth/auth.json"
    oi doctor --authfile="$T/auth/auth.json" --format=json
    status_of credentials | grep -q "^ok $T/auth/auth.json: registry.example$"
    [[ $output$stderr != *topsecret* && $output != *"$(printf user:topsecret | base64)"* ]] || fail "shown: $output"
    chmod 644 "$T/auth/auth.json"
    oi doctor --authfile="$T/auth/auth.json" --format=json
    status_of credentials | grep -q "^note $T/auth/auth.json, which others can read: registry.example$"
    echo junk >"$T/auth/auth.json"
    oi -1 doctor --authfile="$T/auth/auth.json" --format=json
    status_of credentials | grep -q "^problem "
}
