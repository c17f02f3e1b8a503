#!/usr/bin/env bats
# Repositories as the old ostree: transport left them, in 2017 and until 2025, made here with plain ostree commands.

bats_require_minimum_version 1.5.0
load helpers
load export

ZEROS=0000000000000000000000000000000000000000000000000000000000000000

setup_file() {
    ((EUID == 0)) || return 0
    local tool
    for tool in ostree skopeo setcap; do
        command -v "$tool" >/dev/null || return 0
    done
    fixture small
    # Trees and tar-split data as they have always been.
    export NOW=$BATS_FILE_TMPDIR/now
    new_repo "$NOW" bare-user
    oi "--repo=$NOW" pull "oci:$FIXTURES/small/oci:small" small
}

setup() {
    requires root
    requires_tool ostree skopeo setcap jq zstd
    REPO=$BATS_TEST_TMPDIR/repo
    T=$BATS_TEST_TMPDIR
    OCI=$FIXTURES/small/oci
    MANIFEST=$OCI/blobs/sha256/$(manifest_digest "$OCI" small | cut -d: -f2)
    mapfile -t LAYERS < <(manifest_layers "$OCI" small)
    CONFIG=$(jq -r .config.digest "$MANIFEST" | cut -d: -f2)
}

# old_commit REF KEY=VALUE… commits what NOW has under REF as the old transport did: no binding, a parent of zeros.
old_commit() {
    local ref=$1 commit pair args=()
    shift
    for pair in "$@"; do
        args+=("--add-metadata-string=$pair")
    done
    must ostree pull-local "--repo=$REPO" "$NOW" "$(ostree rev-parse "--repo=$NOW" "$ref")"
    must ostree commit "--repo=$REPO" --branch="$ref" --no-bindings "--parent=$ZEROS" --timestamp='@1500000000' \
        "--tree=ref=$(ostree rev-parse "--repo=$NOW" "$ref")" "${args[@]}"
    commit=$(ostree rev-parse "--repo=$NOW" "$ref")
    rm -- "$REPO/objects/${commit:0:2}/${commit:2}.commit"
}

value() { ostree show "--repo=$NOW" "--print-metadata-key=$2" "$1" | sed "s/^'//; s/'$//"; }

# old_repo YEAR makes a repository of that year.
old_repo() {
    local layer
    new_repo "$REPO" bare-user
    for layer in "${LAYERS[@]}"; do
        if [[ $1 == 2017 ]]; then
            old_commit "ociimage/$layer" "docker.size=$(value "ociimage/$layer" docker.size)"
        else
            old_commit "ociimage/$layer" "docker.size=$(value "ociimage/$layer" docker.size)" \
                "docker.uncompressed_size=$(value "ociimage/$layer" docker.uncompressed_size)" \
                "docker.uncompressed_digest=$(value "ociimage/$layer" docker.uncompressed_digest)" \
                "tarsplit.output=$(value "ociimage/$layer" tarsplit.output)"
        fi
    done
    old_commit "ociimage/$CONFIG" "docker.size=$(value "ociimage/$CONFIG" docker.size)"
    if [[ $1 == 2017 ]]; then
        old_commit ociimage/small_3Alatest "docker.manifest=$(cat -- "$MANIFEST")"
    else
        old_commit ociimage/small_3Alatest "docker.manifest=$(cat -- "$MANIFEST")" signatures=0 \
            "docker.digest=$(manifest_digest "$OCI" small)"
    fi
    [[ $(ostree show "--repo=$REPO" --raw ociimage/small_3Alatest) == *"[byte 0x00, 0x00, 0x00"* ]] || fail "it has no parent of zeros"
}

# reads_well: what any year's image must do, but for the proof of its files.
reads_well() {
    oi "--repo=$REPO" list --format=json
    assert_equal "$(jq -r '.[] | [.name, .digest, .layers, .architecture, .signatures] | @tsv' <<<"$output")" \
        "$(printf '%s\t' small:latest "$(manifest_digest "$OCI" small)" 2 "$(jq -r .architecture "$OCI/blobs/sha256/$CONFIG")")0"
    "$OI" "--repo=$REPO" inspect --raw small | cmp - "$MANIFEST"
    "$OI" "--repo=$REPO" inspect --config small | cmp - "$OCI/blobs/sha256/$CONFIG"
    oi "--repo=$REPO" inspect small
    assert_equal "$(jq -r '.Layers[]' <<<"$output")" "$(printf 'sha256:%s\n' "${LAYERS[@]}")"
    oi "--repo=$REPO" prune --dry-run --format=json
    assert_stdout '[]'
}

@test "an image of 2018 to 2025 comes out again" {
    local before
    old_repo 2025
    reads_well
    [[ -z ${stderr-} ]] || fail "something is said"
    oi "--repo=$REPO" verify
    assert_stdout_has 'small:latest  ok'
    oi "--repo=$REPO" push small "docker-archive:$T/out.tar"
    assert_equal "$(facts "docker-archive:$T/out.tar")" "$(facts "oci:$OCI:small")"
    # The compressed bytes were never kept.
    oi -1 "--repo=$REPO" push --preserve-digests small "dir:$T/out"
    assert_error 'compressed bytes are not stored'
    # It is complete, so another name for it imports nothing.
    before=$(refs "$REPO" | grep -v _3A)
    oi "--repo=$REPO" pull "oci:$OCI:small" again
    assert_stderr_lacks 'Importing layer'
    assert_equal "$(refs "$REPO" | grep -v _3A)" "$before"
    oi "--repo=$REPO" remove small again
    [[ -z $(refs "$REPO") ]] || fail "refs are left"
    assert_equal "$(find "$REPO/objects" -type f)" '' "objects are left"
}

@test "an image of 2017 is read, and says what it cannot give" {
    old_repo 2017
    reads_well
    # Its config names diffIDs, and nothing in the repository leads from them to the files.
    oi -4 "--repo=$REPO" verify
    assert_stdout_has 'was stored without what proves its files'
    oi -1 "--repo=$REPO" push small "dir:$T/out"
    assert_error "layer sha256:${LAYERS[0]} was stored without what its exact bytes need"
    assert_stderr_has 'it can be checked out, not exported'
    [[ ! -e $T/out/manifest.json ]] || fail "an image is there all the same"
    oi "--repo=$REPO" remove small
    [[ -z $(refs "$REPO") ]] || fail "refs are left"
}

@test "pulling an image of 2017 again mends it" {
    local layer
    old_repo 2017
    oi "--repo=$REPO" pull "oci:$OCI:small" small
    for layer in "${LAYERS[@]}"; do
        assert_stderr_has "Importing layer sha256:$layer"
    done
    reads_well
    assert_stderr_lacks 'stored without'
    oi "--repo=$REPO" verify
    assert_stdout_has 'small:latest  ok'
    oi "--repo=$REPO" push small "dir:$T/out"
    assert_equal "$(facts "dir:$T/out")" "$(facts "oci:$OCI:small")"
    # Nobody has asked for the blobs themselves.
    ! refs "$REPO" | grep -q tarsplit || fail "the blobs are kept beside"
}

@test "signatures of the old transport: simple ones go, those of sigstore stay behind with a warning" {
    local tree=$T/tree digest
    old_repo 2025
    digest=$(manifest_digest "$OCI" small)
    mkdir -- "$tree"
    cp -- "$MANIFEST" "$tree/manifest.json"
    printf '\0sigstore-json\n{"mimeType":"x","payload":"","annotations":{}}' >"$tree/signature-1"
    must ostree commit "--repo=$REPO" --branch=ociimage/sigstore_3A1 --no-bindings "--parent=$ZEROS" "--tree=dir=$tree" \
        "--add-metadata-string=docker.manifest=$(cat -- "$MANIFEST")" --add-metadata-string=signatures=1 "--add-metadata-string=docker.digest=$digest"
    oi "--repo=$REPO" push sigstore:1 "dir:$T/out"
    assert_stderr_has 'signature 1 is in sigstore form, and is left out'
    assert_equal "$(facts "dir:$T/out")" "$(facts "oci:$OCI:small")"
    [[ ! -e $T/out/signature-1 ]] || fail "the signature went along"

    echo 'not really a signature' >"$tree/signature-2"
    must ostree commit "--repo=$REPO" --branch=ociimage/both_3A1 --no-bindings "--parent=$ZEROS" "--tree=dir=$tree" \
        "--add-metadata-string=docker.manifest=$(cat -- "$MANIFEST")" --add-metadata-string=signatures=2 "--add-metadata-string=docker.digest=$digest"
    oi "--repo=$REPO" list --format=json
    assert_equal "$(jq -r '.[] | select(.name == "both:1") | .signatures' <<<"$output")" 2
    # It covers bytes that were never kept.
    oi -1 "--repo=$REPO" push both:1 "dir:$T/signed"
    assert_error 'export with --remove-signatures'
    oi "--repo=$REPO" push --remove-signatures both:1 "dir:$T/unsigned"
    assert_equal "$(facts "dir:$T/unsigned")" "$(facts "oci:$OCI:small")"
    # With the bytes it can go.
    oi "--repo=$REPO" pull --preserve-digests "oci:$OCI:small" small
    oi "--repo=$REPO" push both:1 "dir:$T/signed"
    assert_equal "$(cat -- "$T/signed/signature-1")" 'not really a signature'
    assert_equal "$(raw_digest "dir:$T/signed")" "$digest"
    oi "--repo=$REPO" verify
}
