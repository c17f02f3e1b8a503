#!/usr/bin/env bats
# Odd layers: one image of many, each odd in its own way (image.py).

bats_require_minimum_version 1.5.0
load helpers

setup_file() {
    export BATS_NO_PARALLELIZE_WITHIN_FILE=true # later tests compare with what the first one made
    export STREAM=$BATS_FILE_TMPDIR/stream
    ((EUID == 0)) || return 0
    command -v zstd >/dev/null || return 0
    fixture odd
}

setup() {
    requires root
    requires_tool ostree python3 zstd
    F=$FIXTURES/odd
    REPO=$BATS_TEST_TMPDIR/repo
}

odd_refs() { refs "$1" | grep -v "ociimage/odd"; }

@test "odd layers [there are enough of them]" {
    local files=("$F"/layers/*)
    ((${#files[@]} >= 60)) || fail "only ${#files[@]}"
}

# Each layer's commit, in both modes that hold all, as it is here.
@test "odd layers [stream, archive]" {
    new_repo "$STREAM" archive
    oi --quiet "--repo=$STREAM" pull --unpack=stream "oci:$F/oci:odd" odd
    assert_stderr_has '1 hard links lead to files of layers below, '
    assert_fsck "$STREAM"
    assert_clean "$STREAM"
    odd_refs "$STREAM" >"$STREAM/noted"
}

# same_as_stream MODE ENGINE
same_as_stream() {
    [[ -s $STREAM/noted ]] || skip "the test 'odd layers [stream, archive]' did not run"
    new_repo "$REPO" "$1"
    oi --quiet "--repo=$REPO" pull "--unpack=$2" "oci:$F/oci:odd" odd
    assert_fsck "$REPO"
    assert_clean "$REPO"
    assert_equal "$(odd_refs "$REPO")" "$(cat "$STREAM/noted")" "$2, $1"
}

@test "odd layers [tar, archive]" {
    same_as_stream archive tar
}

@test "odd layers [tar, bare]" {
    same_as_stream bare tar
}

@test "odd layers [tar, bare-user]" {
    same_as_stream bare-user tar
}

@test "odd layers [stream, bare]" {
    same_as_stream bare stream
}

@test "odd layers [stream, user, bare-user]" {
    requires user
    OI_USER=user
    same_as_stream bare-user stream
}

@test "odd layers [both engines, bare-user-only]" {
    new_repo "$REPO" bare-user-only
    oi --quiet "--repo=$REPO" pull --unpack=tar "oci:$F/oci:odd" odd
    local by_tar
    by_tar=$(odd_refs "$REPO")
    rm -rf -- "$REPO"
    new_repo "$REPO" bare-user-only
    oi --quiet "--repo=$REPO" pull --unpack=stream "oci:$F/oci:odd" odd
    assert_equal "$(odd_refs "$REPO")" "$by_tar"
    assert_fsck "$REPO"
}

# Everybody else's way: extract with tar, commit the directory.
@test "odd layers [as tar extracts the well-behaved]" {
    [[ -s $STREAM/noted ]] || skip "the test 'odd layers [stream, archive]' did not run"
    local layers files i file checked=0 bad=0 tree=$BATS_TEST_TMPDIR/tree
    mapfile -t layers < <(manifest_layers "$F/oci" odd)
    files=("$F"/layers/*)
    new_repo "$REPO" archive
    for i in "${!files[@]}"; do
        file=${files[i]}
        [[ $file == *-tar.tar* ]] || continue
        mkdir -- "$tree"
        case $file in *.gz) gzip -dc -- "$file" ;; *.bz2) bzip2 -dc -- "$file" ;; *.xz) xz -dc -- "$file" ;; *.zst) zstd -dcq -- "$file" ;; *) cat -- "$file" ;; esac |
            must tar -xpf - "--directory=$tree" --numeric-owner --same-owner --xattrs '--xattrs-include=user.*' --xattrs-include=security.capability
        must ostree commit "--repo=$REPO" "--branch=x/$i" --parent=none --timestamp=@0 --fsync=false "--tree=dir=$tree"
        rm -rf -- "$tree"
        checked=$((checked + 1))
        if [[ $(ostree show "--repo=$REPO" "x/$i" | grep ContentChecksum) != "$(ostree show "--repo=$STREAM" "ociimage/${layers[i]}" | grep ContentChecksum)" ]]; then
            echo "${file##*/}:"
            diff <(ostree ls "--repo=$REPO" -RXC "x/$i") <(ostree ls "--repo=$STREAM" -RXC "ociimage/${layers[i]}") || bad=$((bad + 1))
        fi
    done
    ((checked >= 50)) || fail "only $checked layers checked"
    ((bad == 0)) || fail "$bad layers differ"
}

# The commit of a layer whose every byte is fixed, so at any time, anywhere, it has this checksum.
@test "odd layers [golden commit]" {
    [[ -s $STREAM/noted ]] || skip "the test 'odd layers [stream, archive]' did not run"
    local layer
    layer=$(sha256sum <"$F/layers/plain-tar.tar")
    run -0 ostree show "--repo=$STREAM" "ociimage/${layer%% *}"
    [[ $output == *"ContentChecksum:  8540be401874dc414ae10cf61f5600f98940bc0fc81467ce312a747bc2a59bb7"* ]] || fail "not the tree that was recorded: $output"
    [[ $output == *"Date:  1970-01-01 00:00:00 +0000"* ]] || fail "not the date that was recorded"
    [[ $output == "commit 01373d564a404171ae9649934375f6b36e81c8601cbfe80417835caa7f78753a"* ]] || fail "not the commit that was recorded: $output"
}
