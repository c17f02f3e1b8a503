#!/usr/bin/env bats
# What fingers trained by skopeo, podman and ostree type: names, options, other names for an image, registries.

bats_require_minimum_version 1.5.0
load helpers
load export

setup_file() {
    ((EUID == 0)) || return 0
    command -v ostree skopeo setcap umoci >/dev/null || return 0
    fixture small
}

setup() {
    requires root
    requires_tool ostree skopeo setcap umoci jq
    OCI=$FIXTURES/small/oci
    T=$BATS_TEST_TMPDIR
    export OSTREE_REPO=$T/repo
    new_repo "$OSTREE_REPO" bare-user
}

digest_of() { ostree show "--repo=$OSTREE_REPO" --print-metadata-key=docker.digest "ociimage/$1" | tr -d "'"; }

@test "hands [help and version]" {
    oi help
    assert_stdout_has 'Images:'
    oi help pull
    assert_stdout_has 'SOURCE [NAME]'
    oi pull -h
    assert_stdout_has '--tls-verify'
    [[ $output != *'(default: false)'* ]] || fail "a default that says nothing"
    oi -2 help frobnicate
    assert_error 'unknown command "frobnicate"'
    oi --version
    assert_stdout_has 'ostree-image '
    oi -v
    assert_stdout_has 'ostree-image '
}

@test "hands [list: names, digests, templates]" {
    oi pull "oci:$OCI:small" debian:12
    local sum
    sum=$(digest_of debian_3A12)
    oi list --quiet
    assert_equal "$output" debian:12
    oi list --no-trunc
    assert_stdout_has "  $sum  "
    oi list --format='{{.Name}} {{.Layers}} {{json .OS}}'
    assert_equal "$output" "debian:12 $(manifest_layers "$OCI" small | wc -l) \"linux\""
    oi inspect debian:12 -f '{{.Digest}}'
    assert_equal "$output" "$sum"
    oi verify --format '{{.Name}} {{.OK}}'
    assert_equal "$output" "debian:12 true"
    oi -2 list --format='{{.Name'
    assert_error '--format "{{.Name": '
    oi -2 list --format='{{.Nonsense}}'
    assert_error 'Nonsense'
}

@test "hands [tag, untag, names that are digests]" {
    oi pull "oci:$OCI:small" one:1
    local sum hex
    sum=$(digest_of one_3A1)
    hex=${sum#sha256:}
    oi tag one:1 two
    assert_equal "$(digest_of two_3Alatest)" "$sum"
    oi verify
    oi tag "${hex:0:10}" three:1
    assert_equal "$(digest_of three_3A1)" "$sum"
    oi -2 tag one:1 one:1
    oi -3 tag nothing:1 four:1
    oi -2 remove "$hex"
    assert_error "has the names one:1, three:1, two:latest"
    oi untag three:1 two
    oi list -q
    assert_equal "$output" one:1
    oi checkout "$sum" "$T/root"
    oi push "${hex:0:8}" "dir:$T/out"
    [[ -e $T/out/manifest.json && -d $T/root/etc ]] || fail "it is not there"
    oi inspect "$hex" --format '{{.Name}}'
    assert_equal "$output" one:1
    oi -3 inspect ffffffffffff
    assert_equal "$stderr" "ostree-image: no image ffffffffffff:latest in the repository $OSTREE_REPO; see ostree-image list"
    oi remove "${hex:0:8}"
    oi list -q
    assert_equal "$output" ''
    assert_fsck "$OSTREE_REPO"
}

@test "hands [a tag for an image of another platform]" {
    must skopeo --insecure-policy copy -q "oci:$OCI:small" "oci:$T/oci:small"
    must umoci config --image "$T/oci:small" --architecture=s390x
    oi pull --override-arch=s390x "oci:$T/oci:small" one:1
    oi tag one:1 two:1
    assert_equal "$(digest_of two_3A1)" "$(digest_of one_3A1)"
}

@test "hands [remove --all, --force]" {
    oi pull "oci:$OCI:small" one
    oi pull "oci:$OCI:small" two
    oi -2 remove
    oi -2 remove --all one
    oi -3 remove one nothing
    oi remove --force one nothing
    oi list -q
    assert_equal "$output" two:latest
    oi remove -a
    oi list --format=json
    assert_equal "$output" '[]'
    assert_equal "$(ostree refs "--repo=$OSTREE_REPO")" ''
    oi remove --all
}

@test "hands [a registry without HTTPS, and a name without transport]" {
    requires registry
    in_registry "$REGISTRY" small small
    oi -1 pull "docker://$image_name" a
    assert_error '--tls-verify=false'
    oi pull "$image_name" --tls-verify=false
    oi list --quiet
    assert_equal "$output" "$image_name"
    oi push "$image_name" "docker://$REGISTRY/hands:2" --tls-verify=false
    oi inspect "docker://$REGISTRY/hands:2" --tls-verify=false --format '{{.Name}} {{json .RepoTags}}'
    assert_equal "$output" "$REGISTRY/hands [\"2\"]"
    oi inspect --raw "docker://$REGISTRY/hands:2" --tls-verify=false
    assert_equal "$(jq -r .config.digest <<<"$output")" "$(skopeo inspect --tls-verify=false --raw "docker://$REGISTRY/hands:2" | jq -r .config.digest)"
    oi -3 inspect --tls-verify=false "docker://$REGISTRY/hands:3"
    oi -2 copy "$image_name" ostree:b
    assert_error "did you mean docker://$image_name?"
    printf 'unqualified-search-registries = ["%s"]\nshort-name-mode = "permissive"\n[[registry]]\nlocation = "%s"\ninsecure = true\n' \
        "$REGISTRY" "$REGISTRY" >"$T/registries.conf"
    oi pull hands:2 short --registries-conf "$T/registries.conf"
    oi inspect short --format '{{.Digest}}'
    : >"$T/empty.conf"
    oi -2 pull hands:2 short --registries-conf "$T/empty.conf"
    assert_error 'docker://hands:2'
}

@test "hands [compression of what is pushed]" {
    oi pull "oci:$OCI:small" a
    oi push a "oci:$T/zstd:a" --dest-compress-format zstd --dest-compress-level 3
    oi inspect "oci:$T/zstd:a" --raw
    assert_equal "$(jq -r '.layers[].mediaType' <<<"$output" | sort -u)" application/vnd.oci.image.layer.v1.tar+zstd
    oi -2 push a "oci:$T/x:a" --dest-compress-format lzma
}

@test "hands [instances of an index]" {
    requires_tool buildah
    local arch sum
    mkdir -- "$T/oci"
    for arch in amd64 arm64 s390x; do
        must skopeo --insecure-policy copy -q "oci:$OCI:small" "oci:$T/oci:$arch"
        must umoci config --image "$T/oci:$arch" --architecture="$arch"
    done
    must python3 - "$T/oci" <<'PY'
import hashlib, json, os, sys
top = sys.argv[1]
with open(os.path.join(top, "index.json")) as f:
    index = json.load(f)
manifests = [dict(m, platform={"os": "linux", "architecture": m["annotations"]["org.opencontainers.image.ref.name"]}) for m in index["manifests"]]
for m in manifests:
    del m["annotations"]
blob = json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests}).encode()
name = hashlib.sha256(blob).hexdigest()
with open(os.path.join(top, "blobs/sha256", name), "wb") as f:
    f.write(blob)
index["manifests"].append({"mediaType": "application/vnd.oci.image.index.v1+json", "digest": "sha256:" + name, "size": len(blob),
                           "annotations": {"org.opencontainers.image.ref.name": "all"}})
with open(os.path.join(top, "index.json"), "w") as f:
    json.dump(index, f)
PY
    oi pull "oci:$T/oci:all" two --platform linux/arm64 --platform=linux/s390x
    oi verify two
    assert_equal "$(ostree ls "--repo=$OSTREE_REPO" ociimage/two_3Alatest /instances | grep -c sha256)" 0
    assert_equal "$(ostree ls "--repo=$OSTREE_REPO" ociimage/two_3Alatest /instances | grep -c '^d.* /instances/.')" 2
    oi pull "oci:$T/oci:all" one --platform linux/arm64
    oi inspect one --format '{{.Architecture}} {{len .Layers}}'
    assert_equal "$output" "arm64 $(manifest_layers "$OCI" small | wc -l)"
    oi -1 pull "oci:$T/oci:all" none --platform linux/riscv64
    oi pull "oci:$T/oci:all" all --multi-arch all
    assert_equal "$(ostree ls "--repo=$OSTREE_REPO" ociimage/all_3Alatest /instances | grep -c '^d.* /instances/.')" 3
    oi verify all
    oi -2 pull "oci:$T/oci:all" x --multi-arch some
    oi -2 pull "oci:$T/oci:all" x --multi-arch all --all
    oi -2 pull "oci:$T/oci:all" x --platform arm64
}

@test "hands [the name of an archive]" {
    must skopeo --insecure-policy copy -q "oci:$OCI:small" "docker-archive:$T/a.tar:example.com/small:1"
    oi pull "docker-archive:$T/a.tar"
    oi list -q
    assert_equal "$output" example.com/small:1
}

@test "hands [login, logout]" {
    requires tls-registry
    in_registry "$TLS_REGISTRY" small small
    local options=(--authfile "$T/auth.json")
    run --separate-stderr "$OI" login "$TLS_REGISTRY" -u importer --password-stdin --cert-dir "$TLS_DIR/client" "${options[@]}" <<<wrong
    [[ $status == 4 ]] || fail "status $status: $stderr"
    run --separate-stderr "$OI" login "$TLS_REGISTRY" -u importer --password-stdin --cert-dir "$TLS_DIR/client" "${options[@]}" <<<'s3cr3t-Passw0rd'
    [[ $status == 0 && $output == 'Login Succeeded!' ]] || fail "status $status: $stderr"
    assert_equal "$(stat -c %a "$T/auth.json")" 600
    oi login --get-login "$TLS_REGISTRY" "${options[@]}"
    assert_equal "$output" importer
    oi pull "docker://$image_name" a --src-cert-dir "$TLS_DIR/client" "${options[@]}"
    oi logout "$TLS_REGISTRY" "${options[@]}"
    oi -3 logout "$TLS_REGISTRY" "${options[@]}"
    oi -3 login --get-login "$TLS_REGISTRY" "${options[@]}"
    oi -1 pull "docker://$image_name" b --src-cert-dir "$TLS_DIR/client" "${options[@]}"
}

# completed LINE has bash complete a line, and sets output to what it offers.
completed() {
    run -0 bash -c 'source <("$1" completion bash); COMP_LINE=$2 COMP_POINT=${#2}; compopt() { :; }
        _ostree_image; printf "%s\n" "${COMPREPLY[@]}"' bash "$OI" "$OI $1"
}

@test "hands [completion]" {
    oi pull "oci:$OCI:small" debian:12
    oi pull "oci:$OCI:small" debian:11
    completed pu
    assert_equal "$(xargs <<<"$output")" "pull push"
    completed 'inspect deb'
    assert_equal "$(xargs <<<"$output")" "debian:11 debian:12"
    completed 'inspect debian:'
    assert_equal "$(xargs <<<"$output")" "11 12" # bash has the rest
    completed 'push debian:12 oci-'
    assert_equal "$output" oci-archive:
    completed 'pull --unp'
    assert_equal "$output" --unpack
    completed 'pull --unpack '
    assert_equal "$(xargs <<<"$output")" "auto stream tar"
    completed '-q checkout debian:12 '
    assert_equal "$output" '' # a directory is for the shell to know
    oi completion zsh
    assert_stdout_has '#compdef ostree-image'
    oi -2 completion tcsh
    if command -v fish >/dev/null; then
        ln -s -- "$OI" "$T/ostree-image"
        PATH=$T:$PATH HOME=$T run -0 fish -c 'ostree-image completion fish | source; complete -C "ostree-image inspect debian:1"'
        assert_equal "$(xargs <<<"$output")" "debian:11 debian:12"
    fi
}
