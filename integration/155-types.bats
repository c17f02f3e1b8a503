#!/usr/bin/env bats
# Manifests and layers of all types: what can be pulled can be pushed.

bats_require_minimum_version 1.5.0
load helpers
load export

setup_file() {
    ((EUID == 0)) || return 0
    fixture types
}

# make_types: an OCI layout with an image for each odd type.
make_types() {
    set -ex
    mkdir tree
    echo content >tree/file
    tar --create --file=layer.tar --directory=tree --owner=0 --group=0 --mtime=@1700000000 file
    gzip --keep layer.tar
    zstd --quiet layer.tar
    python3 - <<'END'
import hashlib, json, os

OCI = "application/vnd.oci.image."
DOCKER = "application/vnd.docker."


def put(data):
    if not isinstance(data, bytes):
        data = json.dumps(data).encode()
    digest = hashlib.sha256(data).hexdigest()
    os.makedirs("oci/blobs/sha256", exist_ok=True)
    with open(f"oci/blobs/sha256/{digest}", "wb") as f:
        f.write(data)
    return {"digest": "sha256:" + digest, "size": len(data)}


def read(name):
    with open(name, "rb") as f:
        return f.read()


manifests = []
diff_id = "sha256:" + hashlib.sha256(read("layer.tar")).hexdigest()


def image(name, layers, config_type=OCI + "config.v1+json", own_type=OCI + "manifest.v1+json", diff_ids=None, config=None, **more):
    if config is None:
        config = {"architecture": os.environ.get("NATIVE", "amd64"), "os": "linux", "config": {},
                  "rootfs": {"type": "layers", "diff_ids": diff_ids or [diff_id] * len(layers)}}
    m = {"schemaVersion": 2, "config": {"mediaType": config_type, **put(config)}, "layers": layers}
    if own_type:
        m["mediaType"] = own_type
    m["config"].update(more.get("change", {}))
    manifests.append({"mediaType": own_type or OCI + "manifest.v1+json", **put(m), "annotations": {"org.opencontainers.image.ref.name": name}})


gz, plain, zst = put(read("layer.tar.gz")), put(read("layer.tar")), put(read("layer.tar.zst"))
tar_gz = {"mediaType": OCI + "layer.v1.tar+gzip", **gz}
image("docker-layers", [{"mediaType": DOCKER + "image.rootfs.diff.tar.gzip", **gz}])
image("docker-and-oci-layers", [{"mediaType": DOCKER + "image.rootfs.diff.tar.gzip", **gz}, tar_gz])
image("no-own-type", [tar_gz], own_type=None)
image("no-layer-type", [gz])
image("empty-layer-type", [{"mediaType": "", **gz}, tar_gz])
image("docker-foreign", [{"mediaType": DOCKER + "image.rootfs.foreign.diff.tar.gzip", **gz}, tar_gz])
image("foreign", [{"mediaType": OCI + "layer.nondistributable.v1.tar+gzip", **gz}, tar_gz])
image("encrypted", [{"mediaType": OCI + "layer.v1.tar+gzip+encrypted", **put(b"secret" * 100)}, tar_gz])
image("squashfs", [{"mediaType": OCI + "layer.v1.squashfs", **put(b"hsqs" + bytes(1000))}, tar_gz])
image("docker-zstd", [{"mediaType": DOCKER + "image.rootfs.diff.tar.zstd", **zst}])
oras = {"config_type": "application/vnd.unknown.config.v1+json", "config": b"{}"}
tar_type = {"mediaType": OCI + "layer.v1.tar"}
image("oras-text", [{**tar_type, **put(b"no tar at all\n")}], **oras)
image("oras-long", [{**tar_type, **put(b"no tar at all\n" * 300000)}], **oras)
image("oras-empty", [{**tar_type, **put(b"")}], **oras)
image("oras-several", [{**tar_type, **put(b"BZh9 is no bzip2")}, {**tar_type, **plain}, {**tar_type, **put(b"{}")}, {**tar_type, **put(bytes(range(256)))}], **oras)
image("image-text", [{**tar_type, **put(b"no tar at all\n")}])
image("image-late-text", [tar_gz, {**tar_type, **put(b"no tar at all\n")}])
image("config-size", [tar_gz], change={"size": 1})
image("config-size-0", [tar_gz], change={"size": 0})
none = "sha256:" + "0" * 64
chunked = {"io.github.containers.zstd-chunked.manifest-checksum": none, "io.github.containers.zstd-chunked.manifest-position": "1:2:3:1"}
stargz = {"containerd.io/snapshot/stargz/toc.digest": none, "io.containers.estargz.uncompressed-size": "1"}
image("chunked", [{"mediaType": OCI + "layer.v1.tar+zstd", **zst, "annotations": {**chunked, "org.example.kept": "kept"}}])
image("stargz", [{**tar_gz, "annotations": {**stargz, "org.example.kept": "kept"}}])
with open("oci/index.json", "w") as f:
    json.dump({"schemaVersion": 2, "manifests": manifests}, f)
with open("oci/oci-layout", "w") as f:
    f.write('{"imageLayoutVersion": "1.0.0"}')
END
}

setup() {
    requires root
    requires_tool ostree skopeo jq zstd
    REPO=$BATS_TEST_TMPDIR/repo
    T=$BATS_TEST_TMPDIR
    M=$FIXTURES/types/oci
    new_repo "$REPO" bare-user
}

# sums DIR prints the digests of the files of an image's directory.
sums() { (cd -- "$1" && find . -type f ! -name version -exec sha256sum {} + | LC_ALL=C sort); }

# goes_round NAME holds that an image that was pulled is pushed as skopeo copies it, to a directory and to a registry.
goes_round() {
    must skopeo --insecure-policy copy -q "oci:$M:$1" "dir:$T/$1-want"
    oi "--repo=$REPO" push "$1" "dir:$T/$1"
    assert_equal "$(sums "$T/$1")" "$(sums "$T/$1-want")" "$1 is not what it was"
    [[ -n $REGISTRY ]] || return 0
    local to
    to=docker://$(own_name):1
    oi "--repo=$REPO" push --dest-tls-verify=false "$1" "$to"
    assert_equal "$(raw_digest "$to")" "$(manifest_digest "$M" "$1")" "$1 is not what it was in a registry"
}

@test "types that no manifest can be changed for: exact bytes go in and out" {
    local name
    for name in docker-layers docker-and-oci-layers no-layer-type empty-layer-type encrypted squashfs docker-zstd; do
        oi "--repo=$REPO" pull "oci:$M:$name" "$name"
        goes_round "$name"
    done
    oi "--repo=$REPO" verify
    oi "--repo=$REPO" list
}

@test "types that the library knows go out again" {
    local name
    for name in no-own-type docker-foreign foreign; do
        oi "--repo=$REPO" pull "oci:$M:$name" "$name"
        oi "--repo=$REPO" push "$name" "dir:$T/$name"
        oi "--repo=$REPO" push "$name" "oci:$T/oci:$name"
        must skopeo --insecure-policy copy -q "dir:$T/$name" "oci:$T/again:$name"
    done
    oi "--repo=$REPO" verify
}

@test "layers that are there already in other bytes are fetched again where the exact ones are needed" {
    oi "--repo=$REPO" pull "oci:$M:no-own-type" first
    oi "--repo=$REPO" pull "oci:$M:docker-layers" docker-layers
    goes_round docker-layers
    oi "--repo=$REPO" verify
}

@test "files under the type of a tar layer: an artifact is stored, an image is refused" {
    local name
    for name in oras-text oras-long oras-empty oras-several; do
        oi "--repo=$REPO" pull "oci:$M:$name" "$name"
        goes_round "$name"
        oi "--repo=$REPO" pull "oci:$M:$name" "$name"
    done
    oi "--repo=$REPO" verify
    oi "--repo=$REPO" list --format=json
    assert_equal "$(jq length <<<"$output")" 4
    local before
    before=$(refs "$REPO")
    for name in image-text image-late-text; do
        oi -1 "--repo=$REPO" pull "oci:$M:$name" "$name"
        assert_error 'not a tar archive'
    done
    assert_equal "$(refs "$REPO")" "$before"
    assert_clean "$REPO"
}

@test "a config of another size than its manifest says is refused" {
    local name
    for name in config-size config-size-0; do
        oi -4 "--repo=$REPO" pull "oci:$M:$name" "$name"
        assert_error 'the manifest names'
    done
    assert_equal "$(refs "$REPO")" ""
}

@test "annotations that describe compressed bytes stay with these" {
    local name
    for name in chunked stargz; do
        oi "--repo=$REPO" pull "oci:$M:$name" "$name"
        oi "--repo=$REPO" push "$name" "dir:$T/$name-plain"
        assert_equal "$(jq -c '.layers[0].annotations' "$T/$name-plain/manifest.json")" '{"org.example.kept":"kept"}'
        oi "--repo=$REPO" pull --preserve-digests "oci:$M:$name" "$name-kept"
        oi "--repo=$REPO" push --preserve-digests "$name-kept" "dir:$T/$name-exact"
        assert_equal "$(jq '.layers[0].annotations | length' "$T/$name-exact/manifest.json")" 3
    done
}
