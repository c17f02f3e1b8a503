#!/usr/bin/env bats
# Repositories that lie: what a commit says is not so, or has no end. list shows the rest, the others say what is wrong and end with 4, and
# nothing is written outside, within bounded time and memory. What the objects' bits and the metadata's values do one by one is in the Go tests.

bats_require_minimum_version 1.5.0
load helpers

setup() {
    requires root
    requires_tool ostree python3 jq
    new_scratch
    new_repo "$REPO" bare-user
    must python3 "$INTEGRATION/image.py" files "$SCRATCH_DIR/1.tar" 3
    must python3 "$INTEGRATION/image.py" files "$SCRATCH_DIR/2.tar" 5
    must python3 "$INTEGRATION/image.py" oci "$SCRATCH_DIR/oci" bad "$SCRATCH_DIR/1.tar"
    must python3 "$INTEGRATION/image.py" oci "$SCRATCH_DIR/oci" good "$SCRATCH_DIR/2.tar"
    oi "--repo=$REPO" pull "oci:$SCRATCH_DIR/oci:bad" bad
    oi "--repo=$REPO" pull "oci:$SCRATCH_DIR/oci:good" good
    LAYER=$(manifest_layers "$SCRATCH_DIR/oci" bad)
    VICTIM=$SCRATCH_DIR/victim
    mkdir -- "$VICTIM"
    echo precious >"$VICTIM/file"
    BEFORE=$(tree "$VICTIM")
}

teardown() {
    drop_scratch
}

# tree DIR prints all that is in a directory: modes, owners, times, sums.
tree() { (cd -- "$1" && find . -printf '%p %m %U:%G %T@ %l\n' | LC_ALL=C sort && find . -type f -exec sha256sum {} + | LC_ALL=C sort); }

# bounded STATUS ARGUMENT… runs the program within bounds.
bounded() {
    local want=$1
    shift
    run --separate-stderr python3 "$INTEGRATION/hostile/bounded.py" 60 250 100 "$SCRATCH_DIR" -- "$OI" --insecure-policy --quiet "--repo=$REPO" "$@"
    echo "$*: $status: ${stderr:0:2000}"
    [[ $status == "$want" ]] || fail "status $status instead of $want"
    stderr=$(sed '$d' <<<"$stderr")
    ((${#stderr} < 2000)) || fail "the error is long"
}

# says_so TEXT: the image bad cannot be had, and good can.
says_so() {
    bounded 4 push bad "dir:$SCRATCH_DIR/out"
    assert_stderr_has "$1"
    [[ ! -e $SCRATCH_DIR/out/manifest.json ]] || fail "an image was written"
    bounded 4 verify
    assert_stdout_has 'bad:latest   damaged'
    bounded 0 push good "dir:$SCRATCH_DIR/good"
    assert_equal "$(tree "$VICTIM")" "$BEFORE" "the victim"
    assert_no_children "$REPO"
    assert_clean "$REPO"
}

# lists_rest: list shows good, and says what is wrong with bad.
lists_rest() {
    bounded 4 list --format=json
    assert_equal "$(jq -r '.[].name' <<<"$output")" good:latest
    assert_stderr_has 'image bad:latest: '
    bounded 4 inspect bad
    bounded 4 checkout bad "$SCRATCH_DIR/root"
    [[ ! -e $SCRATCH_DIR/root ]] || fail "something is checked out"
}

value() { ostree show "--repo=$REPO" "--print-metadata-key=$2" "$1" | sed "s/^'//; s/'$//"; }

# with_record FILE gives the layer of bad the tar-split data in FILE, in its side commit.
with_record() {
    mkdir -- "$SCRATCH_DIR/side"
    mv -- "$1" "$SCRATCH_DIR/side/tar-split.json.gz"
    must ostree commit "--repo=$REPO" --branch="ociimage/tarsplit/$LAYER" "--tree=dir=$SCRATCH_DIR/side"
    must ostree commit "--repo=$REPO" --branch="ociimage/$LAYER" --parent=none "--tree=ref=ociimage/$LAYER" \
        "--add-metadata-string=docker.size=$(value "ociimage/$LAYER" docker.size)" \
        "--add-metadata-string=docker.uncompressed_size=${2:-$(value "ociimage/$LAYER" docker.uncompressed_size)}" \
        "--add-metadata-string=docker.uncompressed_digest=$(value "ociimage/$LAYER" docker.uncompressed_digest)"
}

# packed SCRIPT writes what a Python script writes to out, as gzip.
packed() {
    python3 -c 'import gzip, sys
with gzip.open(sys.argv[1], "wb", 1) as out: exec(sys.argv[2])' "$SCRATCH_DIR/record.gz" "$1"
}

@test "lying [a ref to a commit that is not there]" {
    printf '%064d\n' 7 >"$REPO/refs/heads/ociimage/bad_3Alatest"
    lists_rest
    says_so 'damaged'
}

@test "lying [a ref to a layer that is not there]" {
    printf '%064d\n' 7 >"$REPO/refs/heads/ociimage/$LAYER"
    says_so 'damaged'
}

@test "lying [an image without metadata or manifest]" {
    must ostree commit "--repo=$REPO" --branch=ociimage/bad_3Alatest "--tree=dir=$VICTIM"
    lists_rest
    says_so 'reading the manifest'
}

@test "lying [a manifest of 256 MB]" {
    mkdir -- "$SCRATCH_DIR/tree"
    truncate --size=256M "$SCRATCH_DIR/tree/manifest.json"
    must ostree commit "--repo=$REPO" --branch=ociimage/bad_3Alatest "--tree=dir=$SCRATCH_DIR/tree"
    rm -- "$SCRATCH_DIR/tree/manifest.json"
    lists_rest
    says_so 'is larger than'
}

@test "lying [tar-split data: blanks without end]" {
    packed 'for i in range(200): out.write(b" " * (1 << 20))'
    with_record "$SCRATCH_DIR/record.gz"
    says_so 'one of its entries has more than 67108864 bytes'
}

@test "lying [tar-split data: one entry without end]" {
    packed 'out.write(b"{\"type\":2,\"payload\":\"" + b"A" * (1 << 27))'
    with_record "$SCRATCH_DIR/record.gz"
    says_so 'one of its entries has more than 67108864 bytes'
}

@test "lying [tar-split data: many files of nothing]" {
    packed 'for i in range(100000): out.write(b"{\"type\":1,\"name\":\"%d%s\",\"size\":0}\n" % (i, b"n" * 100))'
    with_record "$SCRATCH_DIR/record.gz"
    says_so 'more entries than the layer'
}

@test "lying [tar-split data: one file over and over]" {
    local name
    name=$(ostree ls -R "--repo=$REPO" "ociimage/$LAYER" | awk '/^-/ { print $NF; exit }')
    packed "for i in range(20000): out.write(b'{\"type\":1,\"name\":\"$name\",\"size\":7,\"payload\":\"AAAAAAAAAAA=\"}\n')"
    with_record "$SCRATCH_DIR/record.gz" 4611686018427387904
    says_so 'damaged'
}

@test "lying [tar-split data: files outside]" {
    packed "out.write(b'{\"type\":1,\"name\":\"../../../../../../../$VICTIM/file\",\"size\":9,\"payload\":\"AAAAAAAAAAA=\"}\n')"
    with_record "$SCRATCH_DIR/record.gz"
    says_so 'leads out of the layer'
}

# bomb REF gives the commit of REF a root below which each of 43 directories names the next one twice.
bomb() {
    python3 - "$REPO" "$1" "$(ostree ls -d -C "--repo=$REPO" "$1" / | grep -o '[0-9a-f]\{64\}' | tr '\n' ' ')" <<'END'
import hashlib, os, sys
repo, ref, (root, meta) = sys.argv[1], os.path.join(sys.argv[1], "refs/heads", sys.argv[2]), map(bytes.fromhex, sys.argv[3].split())
def put(content, kind):
    name = hashlib.sha256(content).hexdigest()
    os.makedirs(os.path.join(repo, "objects", name[:2]), exist_ok=True)
    with open(os.path.join(repo, "objects", name[:2], f"{name[2:]}.{kind}"), "wb") as f:
        f.write(content)
    return bytes.fromhex(name)
tree = put(b"\0", "dirtree")  # a GVariant (a(say)a(sayay)): no file, no directory
for _ in range(43):
    one, two = (name + b"\0" + tree + meta + bytes([34, 2]) for name in (b"a", b"b"))
    tree = put(one + two + bytes([len(one), len(one + two)]) + b"\0", "dirtree")
with open(ref) as f:
    name = f.read().strip()
with open(os.path.join(repo, "objects", name[:2], name[2:] + ".commit"), "rb") as f:
    commit = f.read()
assert commit.count(root) == 1
with open(ref, "w") as f:
    f.write(put(commit.replace(root, tree), "commit").hex() + "\n")
END
}

@test "lying [directories that name the next one twice]" {
    bomb "ociimage/$LAYER"
    says_so 'the repository is damaged'
    bounded 4 prune
    bounded 0 remove good
}

@test "lying [directories that name the next one twice, in an image]" {
    bomb ociimage/bad_3Alatest
    bounded 4 verify bad
    bounded 4 prune
    bounded 0 remove good
    bounded 0 remove bad
    bounded 0 prune
}

@test "lying [directories that name the next one twice, in a layer of 2017]" {
    must ostree commit "--repo=$REPO" --branch="ociimage/$LAYER" --parent=none "--tree=ref=ociimage/$LAYER" \
        --add-metadata-string=docker.size=4611686018427387904
    bomb "ociimage/$LAYER"
    bounded 4 prune
    bounded 0 remove good
}

@test "lying [a commit of many numbers, and one that is deep]" {
    local metadata tree=()
    mkdir -- "$SCRATCH_DIR/tree"
    for metadata in "numbers=[$(printf '%0.s1,' {1..40000})1]" "deep=$(printf '%0.s<' {1..40})1$(printf '%0.s>' {1..40})"; do
        tree+=("--add-metadata=$metadata")
        must ostree commit "--repo=$REPO" --branch=ociimage/bad_3Alatest "--tree=dir=$VICTIM" "${tree[@]}"
        lists_rest
    done
}

@test "lying [seven commits of 15 million numbers]" {
    must python3 "$INTEGRATION/hostile/bigcommit.py" "$REPO" ociimage/bad_3Alatest 15000000 ociimage/b{ad,ig{1..6}}_3Alatest
    [[ $(ostree show "--repo=$REPO" ociimage/big1_3Alatest) == commit* ]] || fail "ostree cannot read it"
    lists_rest
    says_so 'bytes of memory'
    bounded 4 prune
    bounded 0 remove big1
}

@test "lying [a name that means something to a terminal]" {
    cp -- "$REPO/refs/heads/ociimage/good_3Alatest" "$REPO/refs/heads/ociimage/_1B_5B2J_3A1"
    oi "--repo=$REPO" list
    [[ $output != *$'\e'* ]] || fail "it is printed as it is"
    assert_stdout_has '\x1b[2J:1'
}
