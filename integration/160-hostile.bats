#!/usr/bin/env bats
# Hostile images, from the table in hostile/corpus.py: each is refused with one line that says why, or comes in whole; and either takes no
# more than so much time, memory and disk. OSTREE_IMAGE_LONG=1 (make test-hostile) adds the largest, with the limits that the program has.

bats_require_minimum_version 1.5.0
load helpers

setup() {
    requires root
    requires_tool ostree python3 zstd jq
    new_scratch
}

teardown() {
    drop_scratch
}

# cases GROUP [--long] imports all of a group into one repository.
cases() {
    local good
    new_repo "$REPO" bare-user
    run --separate-stderr python3 "$INTEGRATION/hostile/cases.py" ${2:+"$2"} "$1" "$REPO" "$SCRATCH_DIR" "$OI"
    echo "$stderr"
    [[ $status == 0 ]] || fail "not as the table says"
    echo "# $1${2:+ in full size}: $(tail -n 1 <<<"$stderr")" >&3
    good=$(LC_ALL=C sort <<<"$output")
    assert_fsck "$REPO"
    oi "--repo=$REPO" list --format=json
    assert_equal "$(jq -r '.[].name' <<<"$output" | LC_ALL=C sort)" "$good" "what is listed"
    oi "--repo=$REPO" verify
}

@test "hostile [bombs]" { cases bombs; }
@test "hostile [names]" { cases names; }
@test "hostile [headers]" { cases headers; }
@test "hostile [manifests]" { cases manifests; }

@test "hostile [in full size, the limits that there are]" {
    [[ ${OSTREE_IMAGE_LONG-} == 1 ]] || skip "long: make test-hostile"
    local group
    for group in bombs names headers manifests; do
        REPO=$SCRATCH_DIR/$group/repo
        mkdir -- "$SCRATCH_DIR/$group"
        SCRATCH_DIR=$SCRATCH_DIR/$group cases "$group" --long
    done
}
