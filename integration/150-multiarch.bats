#!/usr/bin/env bats
# Images for several architectures, artifacts, and images without layers.

bats_require_minimum_version 1.5.0
load helpers
load export

setup_file() {
    ((EUID == 0)) || return 0
    local tool
    for tool in ostree skopeo setcap; do
        command -v "$tool" >/dev/null || return 0
    done
    fixture multi
}

# make_multi: an index of three platforms that share a layer; its layers plain, and compressed; artifacts; no layers.
make_multi() {
    set -ex
    local arch
    mkdir shared
    echo shared >shared/shared
    tar --create --file=plain-shared.tar --directory=shared --owner=0 --group=0 --mtime=@1700000000 shared
    cp plain-shared.tar shared.tar
    for arch in amd64 arm64 s390x; do
        mkdir "$arch"
        echo "$arch" >"$arch/arch"
        tar --create --file="plain-$arch.tar" --directory="$arch" --owner=0 --group=0 --mtime=@1700000000 arch
        cp "plain-$arch.tar" "$arch.tar"
        python3 "$INTEGRATION/image.py" --arch "$arch" oci plain "$arch" plain-shared.tar "plain-$arch.tar"
        python3 "$INTEGRATION/image.py" --arch "$arch" oci packed "$arch" shared.tar "$arch.tar"
    done
    python3 - <<'END'
import hashlib, json, os

OCI = "application/vnd.oci."


def put(layout, data):
    if not isinstance(data, bytes):
        data = json.dumps(data).encode()
    digest = hashlib.sha256(data).hexdigest()
    os.makedirs(f"{layout}/blobs/sha256", exist_ok=True)
    with open(f"{layout}/blobs/sha256/{digest}", "wb") as f:
        f.write(data)
    return {"digest": "sha256:" + digest, "size": len(data)}


def tag(layout, name, kind, data):
    return {"mediaType": kind, **put(layout, data), "annotations": {"org.opencontainers.image.ref.name": name}}


def write(layout, manifests):
    with open(f"{layout}/index.json", "w") as f:
        json.dump({"schemaVersion": 2, "manifests": manifests}, f)
    with open(f"{layout}/oci-layout", "w") as f:
        f.write('{"imageLayoutVersion": "1.0.0"}')


for layout in "plain", "packed":
    with open(f"{layout}/index.json") as f:
        entries = json.load(f)["manifests"]
    instances = []
    for m in entries:
        arch = m["annotations"]["org.opencontainers.image.ref.name"]
        instances.append({"mediaType": m["mediaType"], "digest": m["digest"], "size": m["size"],
                          "platform": {"os": "linux", "architecture": arch}})
    index = {"schemaVersion": 2, "mediaType": OCI + "image.index.v1+json", "manifests": instances}
    write(layout, entries + [tag(layout, "all", OCI + "image.index.v1+json", index)])

layout = "artifacts"
empty = {"mediaType": OCI + "empty.v1+json", **put(layout, b"{}")}
manifests = []


def artifact(name, config, layers, **more):
    m = {"schemaVersion": 2, "mediaType": OCI + "image.manifest.v1+json", **more, "config": config, "layers": layers}
    manifests.append(tag(layout, name, OCI + "image.manifest.v1+json", m))


text = {"mediaType": "text/plain", **put(layout, b"hello\n" * 1000), "annotations": {"org.opencontainers.image.title": "hello.txt"}}
binary = {"mediaType": "application/octet-stream", **put(layout, bytes(range(256)) * 4000)}
artifact("text", empty, [text], artifactType="application/vnd.example")
artifact("several", {"mediaType": "application/vnd.example.config+json", **put(layout, {"a": 1})}, [text, binary, text])
artifact("empty", empty, [empty], artifactType="application/vnd.example")
artifact("no-layers", empty, [], artifactType="application/vnd.example")
image = {"architecture": os.environ.get("NATIVE", "amd64"), "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": []}}
artifact("image-without-layers", {"mediaType": OCI + "image.config.v1+json", **put(layout, image)}, [])
write(layout, manifests)
END
}

setup() {
    requires root
    requires_tool ostree skopeo setcap jq zstd
    REPO=$BATS_TEST_TMPDIR/repo
    T=$BATS_TEST_TMPDIR
    M=$FIXTURES/multi
}

# tree_sums DIR prints the digests of the files of an image's directory.
tree_sums() { (cd -- "$1" && find . -type f ! -name version ! -name oci-layout ! -name index.json -exec sha256sum {} + | LC_ALL=C sort); }

@test "an index and all its instances go round byte for byte" {
    local layout options
    new_repo "$REPO" bare-user
    for layout in plain packed; do
        options=()
        [[ $layout == plain ]] || options=(--preserve-digests)
        oi "--repo=$REPO" pull --all "${options[@]}" "oci:$M/$layout:all" "$layout"
        "$OI" "--repo=$REPO" inspect --raw "$layout" | sha256sum | grep -q "$(manifest_digest "$M/$layout" all | cut -d: -f2)"
        must skopeo --insecure-policy copy -q --all "oci:$M/$layout:all" "dir:$T/$layout-want"
        oi "--repo=$REPO" push --all "${options[@]}" "$layout" "dir:$T/$layout"
        assert_equal "$(tree_sums "$T/$layout")" "$(tree_sums "$T/$layout-want")" "the index is not what it was"
        if [[ -n $REGISTRY ]]; then
            local name
            name=$(own_name)
            oi "--repo=$REPO" push --all --preserve-digests --dest-tls-verify=false "$layout" "docker://$name:1"
            assert_equal "$(raw_digest "docker://$name:1")" "$(manifest_digest "$M/$layout" all)"
            must skopeo --insecure-policy copy -q --all --src-tls-verify=false "docker://$name:1" "dir:$T/$layout-registry"
            assert_equal "$(tree_sums "$T/$layout-registry")" "$(tree_sums "$T/$layout-want")"
        fi
    done
    oi "--repo=$REPO" list --format=json
    assert_equal "$(jq -r '.[] | [.name, .layers, (.size > 0), .mediaType] | @tsv' <<<"$output")" \
        "$(printf 'packed:latest\t4\ttrue\tapplication/vnd.oci.image.index.v1+json\nplain:latest\t4\ttrue\tapplication/vnd.oci.image.index.v1+json')"
    oi "--repo=$REPO" verify --format=json
    assert_equal "$(jq -c '[.[] | .ok]' <<<"$output")" '[true,true]'
    oi "--repo=$REPO" prune --format=json
    assert_stdout '[]'
}

@test "compressed layers of an index: without its bytes it says so" {
    new_repo "$REPO" archive
    oi "--repo=$REPO" pull --all "oci:$M/packed:all" packed
    oi -1 "--repo=$REPO" push --all --preserve-digests packed "dir:$T/out"
    assert_error 'compressed bytes are not stored'
    # A changed index goes where it may change.
    oi "--repo=$REPO" push --all packed "oci:$T/oci:all"
    local arch
    for arch in amd64 arm64 s390x; do
        assert_equal "$(skopeo inspect --override-arch="$arch" --config --raw "oci:$T/oci:all" | sha256sum)" \
            "$(skopeo inspect --config --raw "oci:$M/packed:$arch" | sha256sum)"
    done
}

@test "one instance is picked, on the way in and on the way out" {
    local arch
    new_repo "$REPO" bare-user
    oi "--repo=$REPO" --override-arch=arm64 pull "oci:$M/packed:all" one
    "$OI" "--repo=$REPO" inspect --raw one | sha256sum | grep -q "$(manifest_digest "$M/packed" arm64 | cut -d: -f2)"
    assert_equal "$(refs "$REPO" | wc -l)" 4
    oi "--repo=$REPO" pull --all "oci:$M/packed:all" all
    for arch in amd64 arm64 s390x; do
        oi "--repo=$REPO" "--override-arch=$arch" inspect all
        assert_equal "$(jq -r .Architecture <<<"$output")" "$arch"
        oi "--repo=$REPO" "--override-arch=$arch" push all "dir:$T/$arch"
        assert_equal "$(facts "dir:$T/$arch")" "$(facts "oci:$M/packed:$arch")"
    done
    oi -1 "--repo=$REPO" --override-arch=mips64le push all "dir:$T/none"
    assert_error 'mips64le'
    # An instance that shares its layer with another image leaves it there.
    oi "--repo=$REPO" remove all
    oi "--repo=$REPO" verify
    assert_equal "$(refs "$REPO" | wc -l)" 4
}

@test "a name with an index's digest" {
    requires registry
    local name index instance before
    name=$(own_name)
    must skopeo --insecure-policy copy -q --all --dest-tls-verify=false "oci:$M/packed:all" "docker://$name:1"
    index=$(manifest_digest "$M/packed" all)
    instance=$(manifest_digest "$M/packed" arm64)
    new_repo "$REPO" bare-user
    local options=("--repo=$REPO" --override-arch=arm64)
    # What is asked for is the index, what is stored of it is the instance.
    oi "${options[@]}" pull --src-tls-verify=false "docker://$name@$index"
    "$OI" "--repo=$REPO" inspect --raw "$name@$index" | cmp - "$M/packed/blobs/sha256/${index#sha256:}"
    oi "${options[@]}" inspect "$name@$index"
    assert_equal "$(jq -r '.Digest, .Instance, .Architecture' <<<"$output")" "$(printf '%s\n' "$index" "$instance" arm64)"
    oi "${options[@]}" inspect --format=table "$name@$index"
    [[ $output == *"$index"*"$instance"* ]] || fail "a digest is not shown: $output"
    assert_equal "$(refs "$REPO" | wc -l)" 4
    oi "--repo=$REPO" verify
    oi "${options[@]}" checkout "$name@$index" "$T/rootfs"
    assert_equal "$(cat "$T/rootfs/arch")" arm64
    oi "${options[@]}" push "$name@$index" "dir:$T/out"
    assert_equal "$(facts "dir:$T/out")" "$(facts "oci:$M/packed:arm64")"
    # Once more, with a tag that means nothing: nothing is new.
    before=$(refs "$REPO")
    oi "${options[@]}" pull --src-tls-verify=false "docker://$name:none@$index"
    assert_equal "$(grep -c 'the tag is ignored' <<<"$stderr")" 1
    assert_equal "$(refs "$REPO")" "$before"
    oi "${options[@]}" inspect "$name:other@$index"
    assert_equal "$(jq -r .Name <<<"$output")" "$name@$index"
    # All of it, and another instance, under the same name.
    oi "--repo=$REPO" pull --all --src-tls-verify=false "docker://$name@$index"
    oi "--repo=$REPO" verify
    oi "--repo=$REPO" --override-arch=s390x inspect "$name@$index"
    assert_equal "$(jq -r .Architecture <<<"$output")" s390x
    # A plain image whose name asks for another.
    oi -4 "--repo=$REPO" pull "oci:$M/packed:arm64" "$name@$index"
    oi -4 "--repo=$REPO" --override-arch=s390x pull "oci:$M/packed:all" "short@$instance"
    [[ $(refs "$REPO") != *short_40* ]] || fail "it is there"
    oi "${options[@]}" pull "oci:$M/packed:all" "short@$index"
    "$OI" "--repo=$REPO" inspect --raw "short@$index" | cmp - "$M/packed/blobs/sha256/${index#sha256:}"
}

@test "a signed index keeps the bytes of all instances" {
    requires_tool gpg
    export GNUPGHOME=$T/gnupg
    mkdir -m 700 -- "$GNUPGHOME"
    must gpg --batch --passphrase '' --quick-generate-key signer@example.com default default never
    must skopeo --insecure-policy copy -q --all "oci:$M/packed:all" "dir:$T/signed"
    must skopeo standalone-sign "$T/signed/manifest.json" example.com/all:1 signer@example.com -o "$T/signed/signature-1"
    gpgconf --kill all
    new_repo "$REPO" bare-user
    oi "--repo=$REPO" pull --all "dir:$T/signed" example.com/all:1
    oi "--repo=$REPO" push --all example.com/all:1 "dir:$T/out"
    assert_equal "$(tree_sums "$T/out")" "$(tree_sums "$T/signed")"
    oi "--repo=$REPO" verify
}

@test "artifacts, and images without layers" {
    local name
    new_repo "$REPO" bare-user
    for name in text several empty no-layers image-without-layers; do
        oi "--repo=$REPO" pull "oci:$M/artifacts:$name" "$name"
        must skopeo --insecure-policy copy -q "oci:$M/artifacts:$name" "dir:$T/$name-want"
        oi "--repo=$REPO" push --preserve-digests "$name" "dir:$T/$name"
        assert_equal "$(tree_sums "$T/$name")" "$(tree_sums "$T/$name-want")" "$name is not what it was"
        oi "--repo=$REPO" push "$name" "oci:$T/$name-oci:$name"
        assert_equal "$(raw_digest "oci:$T/$name-oci:$name")" "$(manifest_digest "$M/artifacts" "$name")"
        if [[ -n $REGISTRY ]]; then
            local to
            to=docker://$(own_name):1
            oi "--repo=$REPO" push --dest-tls-verify=false "$name" "$to"
            assert_equal "$(raw_digest "$to")" "$(manifest_digest "$M/artifacts" "$name")"
        fi
        oi "--repo=$REPO" inspect "$name"
        assert_equal "$(jq -r .Digest <<<"$output")" "$(manifest_digest "$M/artifacts" "$name")"
        "$OI" "--repo=$REPO" inspect --config "$name" | cmp - "$M/artifacts/blobs/sha256/$(jq -r .config.digest "$T/$name/manifest.json" | cut -d: -f2)"
    done
    oi "--repo=$REPO" list --format=json
    assert_equal "$(jq -r '.[] | .name + " " + (.layers | tostring)' <<<"$output")" "empty:latest 1
image-without-layers:latest 0
no-layers:latest 0
several:latest 3
text:latest 1"
    oi "--repo=$REPO" verify
    oi "--repo=$REPO" remove text empty
    oi "--repo=$REPO" verify
    oi "--repo=$REPO" push several "dir:$T/again"
    assert_equal "$(tree_sums "$T/again")" "$(tree_sums "$T/several-want")"
}
