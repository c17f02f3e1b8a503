#!/usr/bin/env bats
# list, inspect, remove, prune and verify: what they print, what they leave, how they end.

bats_require_minimum_version 1.5.0
load helpers
load export

setup_file() {
    ((EUID == 0)) || return 0
    local tool
    for tool in ostree skopeo setcap; do
        command -v "$tool" >/dev/null || return 0
    done
    fixture small
    fixture shared
    # One repository for all that only read; the others take a copy.
    export BASE=$BATS_FILE_TMPDIR/base name
    new_repo "$BASE" bare-user
    for name in one two three; do
        oi "--repo=$BASE" pull "oci:$FIXTURES/shared/oci:$name" "$name"
    done
    must ostree commit "--repo=$BASE" --branch=their/branch --tar-autocreate-parents "--tree=tar=$FIXTURES/small/third.tar"
}

# make_shared: images of which each two share a layer.
make_shared() {
    set -ex
    local name
    for name in a b c; do
        mkdir "$name"
        head -c 2000 /dev/urandom | base64 >"$name/$name"
        tar --create --file="$name.tar" --directory="$name" --owner=0 --group=0 --mtime=@1700000000 "$name"
    done
    python3 "$INTEGRATION/image.py" oci oci one a.tar b.tar
    python3 "$INTEGRATION/image.py" oci oci two b.tar c.tar
    python3 "$INTEGRATION/image.py" oci oci three a.tar c.tar
}

setup() {
    requires root
    requires_tool ostree skopeo setcap jq zstd bc
    REPO=$BATS_TEST_TMPDIR/repo
    T=$BATS_TEST_TMPDIR
    OCI=$FIXTURES/shared/oci
    [[ ! -d ${BASE-} ]] || cp -a -- "$BASE" "$REPO"
}

layers_of() { manifest_layers "$OCI" "$1" | LC_ALL=C sort; }

@test "list" {
    local name
    oi "--repo=$REPO" list --format=json
    assert_equal "$(jq -c 'map(keys_unsorted) | unique' <<<"$output")" \
        '[["name","ref","commit","digest","mediaType","created","os","architecture","layers","size","uncompressedSize","signatures"]]'
    assert_equal "$(jq -r '.[] | [.name, .ref, .mediaType, .created, .os, .layers, .signatures] | map(tostring) | join(" ")' <<<"$output")" \
        "$(for name in one three two; do
            echo "$name:latest ociimage/${name}_3Alatest application/vnd.oci.image.manifest.v1+json 2023-04-05T06:07:08Z linux 2 0"
        done)"
    for name in one two three; do
        assert_equal "$(jq -r ".[] | select(.name == \"$name:latest\") | .digest + \" \" + .commit" <<<"$output")" \
            "$(manifest_digest "$OCI" "$name") $(ostree rev-parse "--repo=$REPO" "ociimage/${name}_3Alatest")"
        assert_equal "$(jq -r ".[] | select(.name == \"$name:latest\") | .uncompressedSize" <<<"$output")" \
            "$(skopeo --insecure-policy inspect "oci:$OCI:$name" | jq -r '.Layers[]' | cut -d: -f2 | while read -r layer; do
                zcat -f "$OCI/blobs/sha256/$layer" | wc -c
            done | paste -sd+ | bc)"
    done
    oi "--repo=$REPO" ls
    assert_equal "$(tr -s ' ' <<<"${lines[0]}")" 'NAME DIGEST LAYERS SIZE CREATED'
    assert_equal "${#lines[@]}" 4
    new_repo "$T/empty" archive
    oi "--repo=$T/empty" list --format=json
    assert_stdout '[]'
    oi -3 "--repo=$T/none" list
    oi -2 "--repo=$REPO" list --format=xml
    assert_error 'table, json or a Go template'
}

@test "inspect" {
    local raw
    raw=$OCI/blobs/sha256/$(manifest_digest "$OCI" one | cut -d: -f2)
    "$OI" "--repo=$REPO" inspect --raw one | cmp - "$raw"
    "$OI" "--repo=$REPO" inspect --config "ostree:one@$REPO" | cmp - "$OCI/blobs/sha256/$(jq -r .config.digest "$raw" | cut -d: -f2)"
    oi "--repo=$REPO" inspect one
    assert_equal "$(jq -S 'del(.Name, .LayersData)' <<<"$output")" "$(skopeo inspect "oci:$OCI:one" | jq -S 'del(.Name, .LayersData)')"
    assert_equal "$(jq -r '.LayersData[].Digest' <<<"$output" | LC_ALL=C sort)" "$(layers_of one | sed s/^/sha256:/)"
    oi -3 "--repo=$REPO" inspect four
    assert_error 'no image four:latest in the repository'
    oi -2 "--repo=$REPO" inspect --raw --config one
}

@test "remove: all or nothing, and nothing that others need" {
    local before
    before=$(refs "$REPO")
    oi -3 "--repo=$REPO" remove one four two
    assert_error 'no image four:latest in the repository'
    assert_equal "$(refs "$REPO")" "$before" "something was removed"
    oi "--repo=$REPO" remove one
    assert_equal "$output$stderr" ''
    oi "--repo=$REPO" verify
    oi "--repo=$REPO" push two "dir:$T/two"
    assert_equal "$(facts "dir:$T/two")" "$(facts "oci:$OCI:two")"
    oi "--repo=$REPO" rm two three
    assert_equal "$(ostree refs "--repo=$REPO")" their/branch
    assert_equal "$(find "$REPO/objects" -name '*.commit' | wc -l)" 1
    assert_fsck "$REPO"
    oi -3 "--repo=$REPO" remove two
    assert_equal "$(ostree config "--repo=$REPO" get core.tombstone-commits 2>&1 || :)" "$(ostree config "--repo=$BASE" get core.tombstone-commits 2>&1 || :)"
}

@test "prune: shows what it would do, and does it" {
    local gone shown first
    first=$(ostree commit "--repo=$REPO" --branch=their/branch --tar-autocreate-parents "--tree=tar=$FIXTURES/small/third.tar" --subject='their first')
    ostree commit "--repo=$REPO" --branch=their/branch --tree=ref=their/branch --subject='their second'
    oi "--repo=$REPO" remove --no-prune one three
    gone=$(comm -23 <({ layers_of one; layers_of three; } | LC_ALL=C sort -u) <(layers_of two))
    oi "--repo=$REPO" prune --dry-run --format=json
    shown=$output
    assert_equal "$(jq -c 'map(keys_unsorted) | unique' <<<"$output")" '[["ref","commit"]]'
    [[ $(jq -r '.[].ref' <<<"$output") == *"ociimage/$(head -n 1 <<<"$gone")"* ]] || fail "a layer that nobody needs is not named"
    ostree refs "--repo=$REPO" | grep -q "$(head -n 1 <<<"$gone")"
    oi "--repo=$REPO" prune --format=json
    assert_stdout "$shown"
    assert_equal "$(ostree refs "--repo=$REPO" | grep -c -F "$gone" || :)" 0
    oi "--repo=$REPO" prune --format=json
    assert_stdout '[]'
    oi "--repo=$REPO" verify
    assert_equal "$(ostree show "--repo=$REPO" "$first" | grep -c 'their first')" 1
    ostree cat "--repo=$REPO" "$first" /third
    assert_fsck "$REPO"
}

# damage CHECKSUM.KIND flips a bit in the middle of an object.
damage() {
    local path=$REPO/objects/${1:0:2}/${1:2} size
    size=$(stat -c %s -- "$path")
    python3 - "$path" "$((size / 2))" <<'END'
import sys
with open(sys.argv[1], "r+b") as f:
    f.seek(int(sys.argv[2]))
    byte = f.read(1)[0]
    f.seek(int(sys.argv[2]))
    f.write(bytes([byte ^ 1]))
END
}

@test "verify: a layer's file is damaged" {
    local layer sum
    oi "--repo=$REPO" verify --format=json
    assert_equal "$(jq -c 'map([.name, .ok, .problems])' <<<"$output")" '[["one:latest",true,[]],["three:latest",true,[]],["two:latest",true,[]]]'
    # The layer that one and three share.
    layer=$(comm -12 <(layers_of one) <(layers_of three))
    sum=$(ostree ls "--repo=$REPO" -C "ociimage/$layer" /a | awk '{print $5}')
    damage "$sum.file"
    oi -4 "--repo=$REPO" verify --format=json
    assert_stderr_has '2 of 3 images are damaged'
    assert_equal "$(jq -c 'map([.name, .ok])' <<<"$output")" '[["one:latest",false],["three:latest",false],["two:latest",true]]'
    assert_equal "$(jq -c '[.[].problems[] | keys_unsorted] | unique' <<<"$output")" '[["blob","expected","actual","error"]]'
    assert_equal "$(jq -r '[.[].problems[].blob] | unique[]' <<<"$output")" "sha256:$layer"
    oi "--repo=$REPO" verify two
    assert_stdout_has 'two:latest  ok'
    oi -4 "--repo=$REPO" verify one two
    assert_stdout_has 'one:latest  damaged  sha256:'
    oi -3 "--repo=$REPO" verify four
    oi -4 "--repo=$REPO" push one "dir:$T/out"
    assert_error "$layer"
    [[ ! -e $T/out/manifest.json ]] || fail "a damaged image was written"
    assert_no_children "$REPO"
    oi "--repo=$REPO" list
    assert_equal "${#lines[@]}" 4
}

@test "a corrupt image: list shows the rest, prune keeps what it may need" {
    local before commit
    export XDG_CACHE_HOME=$T/cache # list knows the commit from before
    oi "--repo=$REPO" remove --no-prune two
    before=$(refs "$REPO")
    commit=$(ostree rev-parse "--repo=$REPO" ociimage/one_3Alatest)
    damage "$commit.commit"
    : >"$REPO/objects/${commit:0:2}/${commit:2}.commit"
    oi -4 "--repo=$REPO" list --format=json
    assert_equal "$(jq -r '.[].name' <<<"$output")" three:latest
    assert_stderr_has 'image one:latest: '
    oi -4 "--repo=$REPO" prune
    assert_stderr_has 'the blobs that no other image needs stay, and so do all files: image one:latest: '
    assert_equal "$output" "REF  COMMIT"
    oi -4 "--repo=$REPO" prune --dry-run
    assert_equal "$(refs "$REPO")" "$before" "prune has removed refs"
    oi -4 "--repo=$REPO" inspect one
    oi -4 "--repo=$REPO" push one "dir:$T/out"
    oi "--repo=$REPO" push three "dir:$T/three"
    # Without it all is well.
    oi "--repo=$REPO" remove one
    oi "--repo=$REPO" prune
    oi "--repo=$REPO" verify
    assert_equal "$(ostree refs "--repo=$REPO" | grep -c ociimage)" 4
}

@test "a layer that has lost a directory stays, and what no image needs is pruned all the same" {
    local layer tree objects
    layer=ociimage/$(comm -12 <(layers_of one) <(layers_of two))
    oi "--repo=$REPO" remove --no-prune two
    tree=$(ostree ls -Cd "--repo=$REPO" "$layer" / | awk '{print $5}')
    damage "$tree.dirtree"
    objects=$(find "$REPO/objects" -name '*.file*' | wc -l)
    oi -4 "--repo=$REPO" prune
    assert_stderr_has "all files stay: $layer: "
    [[ $output == *ociimage/* ]] || fail "no blob is removed: $output"
    assert_equal "$(find "$REPO/objects" -name '*.file*' | wc -l)" "$objects"
    oi -4 "--repo=$REPO" prune
    assert_equal "$output" "REF  COMMIT"
    oi "--repo=$REPO" remove one
    oi "--repo=$REPO" prune
    oi "--repo=$REPO" verify
    assert_fsck "$REPO"
}

@test "a ref that is none of ours, and names no commit, does not stop verify" {
    echo nonsense >"$REPO/refs/heads/theirs"
    oi "--repo=$REPO" verify
    assert_stderr_has 'the objects were checked without the refs'
}

@test "what others have named: remove takes any name that list shows, and any ref" {
    local good name
    good=$(ostree rev-parse "--repo=$REPO" ociimage/one_3Alatest)
    ostree refs "--repo=$REPO" "--create=ociimage/Upper_3A1" "$good"
    ostree refs "--repo=$REPO" "--create=ociimage/_1B_5B2J_3A1" "$good"
    ostree refs "--repo=$REPO" "--create=ociimage/two_20words_3A1" "$good"
    ostree remote add "--repo=$REPO" --no-gpg-verify their https://127.0.0.1:1/
    ostree remote add "--repo=$REPO" --no-gpg-verify -- --raw https://127.0.0.1:1/ || :
    mkdir -p -- "$REPO/refs/remotes/their/ociimage" "$REPO/refs/remotes/--raw/ociimage"
    echo "$good" >"$REPO/refs/remotes/their/ociimage/one_3Alatest"
    echo "$good" >"$REPO/refs/remotes/--raw/ociimage/one_3Alatest"
    oi "--repo=$REPO" list
    oi -2 "--repo=$REPO" remove 'Other:1'
    oi -2 "--repo=$REPO" remove 'ociimage/Other_3A1'
    for name in Upper:1 '\x1b[2J:1' ociimage/two_20words_3A1 their:ociimage/one_3Alatest; do
        oi "--repo=$REPO" remove -- "$name"
    done
    oi "--repo=$REPO" list --format=json
    assert_equal "$(jq -r '.[].name' <<<"$output" | xargs)" "one:latest three:latest two:latest"
    oi "--repo=$REPO" prune
    oi "--repo=$REPO" verify # though fsck of ostree itself refuses --raw
}

@test "what is no image at all does not stop prune, and removes like any" {
    local commit
    mkdir -- "$T/tree"
    echo '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"digest":"nonsense"},"layers":[]}' >"$T/tree/manifest.json"
    commit=$(ostree commit "--repo=$REPO" --branch=ociimage/strange_3A1 "--tree=dir=$T/tree" \
        "--add-metadata-string=docker.digest=sha256:$(sha256sum <"$T/tree/manifest.json" | cut -d ' ' -f 1)")
    rm -- "$T/tree/manifest.json"
    ostree commit "--repo=$REPO" --branch=ociimage/Empty_3A1 "--tree=dir=$T/tree" >/dev/null
    oi "--repo=$REPO" remove --no-prune two
    oi "--repo=$REPO" prune
    assert_stderr_has 'ociimage/strange_3A1 is no image'
    assert_stderr_has 'ociimage/Empty_3A1 is no image'
    assert_equal "$(ostree rev-parse "--repo=$REPO" ociimage/strange_3A1)" "$commit"
    [[ $output == *ociimage/* ]] || fail "nothing is pruned: $output"
    oi "--repo=$REPO" remove strange:1 Empty:1
    oi "--repo=$REPO" prune
    [[ $stderr != *'no image'* ]] || fail "it is still there: $stderr"
    oi "--repo=$REPO" verify
    assert_fsck "$REPO"
}

@test "a corrupt image does not stop the removal of others" {
    local commit
    commit=$(ostree rev-parse "--repo=$REPO" ociimage/one_3Alatest)
    damage "$commit.commit"
    : >"$REPO/objects/${commit:0:2}/${commit:2}.commit"
    oi "--repo=$REPO" remove two
    assert_stderr_has 'image one:latest'
    oi "--repo=$REPO" remove one
    oi "--repo=$REPO" prune
    oi "--repo=$REPO" verify
    assert_fsck "$REPO"
}

@test "copies, removals and prunes at the same time" {
    local i end=$((SECONDS + 15)) pids=()
    for i in 1 2; do
        (while ((SECONDS < end)); do
            for name in one two three; do
                timeout 60 "$OI" --insecure-policy -q "--repo=$REPO" pull "oci:$OCI:$name" "$name" || exit 1
            done
        done) >"$T/pull-$i" 2>&1 3>&- &
        pids+=($!)
    done
    (while ((SECONDS < end)); do
        timeout 60 "$OI" -q "--repo=$REPO" remove one two || (($? == 3)) || exit 1
        sleep 0.3
        timeout 60 "$OI" -q "--repo=$REPO" prune || exit 1
    done) >"$T/remove" 2>&1 3>&- &
    pids+=($!)
    for i in "${pids[@]}"; do
        wait "$i" || fail "$(cat -- "$T"/pull-* "$T/remove")"
    done
    oi "--repo=$REPO" verify
    oi "--repo=$REPO" pull "oci:$OCI:one" one
    oi "--repo=$REPO" verify one
    assert_fsck "$REPO"
    assert_clean "$REPO"
}
