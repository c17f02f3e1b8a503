#!/usr/bin/env bats
# Hostile images, from the table in hostile/corpus.py: each is refused with one line that says why, or comes in whole; and either takes no
# more than so much time, memory and disk. OSTREE_IMAGE_LONG=1 (make test-hostile) adds the largest, with the limits that the program has.

bats_require_minimum_version 1.5.0
load helpers

setup() {
    requires root
    requires_tool ostree python3 zstd
    new_scratch
    CORPUS=$INTEGRATION/hostile
    BOUNDS=(30 512 300) # seconds, MB of memory of one process, MB of disk
}

teardown() {
    drop_scratch
}

# cases GROUP [--long] imports all of a group into one repository.
cases() {
    local name group size want text options before good='' n=0 bad=() take
    new_repo "$REPO" bare-user
    must python3 "$CORPUS/corpus.py" ${2:+"$2"} make "$1" "$SCRATCH_DIR/images"
    mkdir -- "$SCRATCH_DIR/victims"
    before=$(refs "$REPO")
    while IFS=$'\t' read -r name group size want text options; do
        [[ $group == "$1" && (-z ${2-} || $size != short) ]] || continue
        take=()
        if [[ $options != - && -z ${2-} ]]; then
            read -r -a take <<<"$options"
        fi
        n=$((n + 1))
        run --separate-stderr python3 "$CORPUS/bounded.py" "${BOUNDS[@]}" "$REPO" "$SCRATCH_DIR/victims" -- \
            env -C "$SCRATCH_DIR/victims" TMPDIR= "$OI" --insecure-policy --quiet "--repo=$REPO" pull "${take[@]}" "oci:$SCRATCH_DIR/images/$name:x" "case:$name"
        echo "$name: $status: $stderr"
        as_told "$name" "$want" "$text" || bad+=("$name")
        if [[ $want == 0 ]]; then
            good+="case:$name"$'\n'
            before=$(refs "$REPO")
        elif ! assert_untouched "$REPO" "$before"; then
            bad+=("$name")
        fi
        [[ -z $(ls -A -- "$SCRATCH_DIR/victims") ]] || bad+=("$name")
    done < <(python3 "$CORPUS/corpus.py" list)
    ((${#bad[@]} == 0)) || fail "not as the table says: ${bad[*]}"
    ((n > 0)) || fail "no cases"
    echo "# $1: $n cases" >&3
    assert_fsck "$REPO"
    oi "--repo=$REPO" list --format=json
    assert_equal "$(python3 -c 'import json, sys; print("\n".join(i["name"] for i in json.load(sys.stdin)))' <<<"$output" | LC_ALL=C sort)" \
        "$(LC_ALL=C sort <<<"${good%$'\n'}")" "what is listed"
    oi "--repo=$REPO" verify
}

# as_told NAME STATUS TEXT holds what a run said against the table.
as_told() {
    local bounds error
    bounds=$(tail -n 1 <<<"$stderr")
    [[ $bounds == 'bounded: '*' MB of disk' ]] || { fail "$1: $bounds"; return 1; }
    error=$(sed '$d' <<<"$stderr" | grep '^ostree-image: ' | grep -v '^ostree-image: warning: ' || :)
    [[ $status == "$2" ]] || { fail "$1: status $status instead of $2"; return 1; }
    [[ $2 != 0 ]] || return 0
    [[ $(wc -l <<<"$error") == 1 && ${#error} -lt 1000 && $error != *[[:cntrl:]]* ]] || { fail "$1: not one short line"; return 1; }
    [[ $error == *"$3"* ]] || { fail "$1: the error lacks: $3"; return 1; }
}

@test "hostile [bombs]" { cases bombs; }
@test "hostile [names]" { cases names; }
@test "hostile [headers]" { cases headers; }
@test "hostile [manifests]" { cases manifests; }

@test "hostile [bombs, full size, the limits that there are]" {
    [[ ${OSTREE_IMAGE_LONG-} == 1 ]] || skip "long: make test-hostile"
    BOUNDS=(1800 2048 4096)
    cases bombs --long
}
