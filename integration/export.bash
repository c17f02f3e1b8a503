# shellcheck shell=bash
# What the suites of exports, mirrors and management share.

# facts IMAGE prints what an image is, as skopeo and sha256sum see it: the digest of its config, and of each layer's tar
# stream, as far as that is what the config says.
facts() {
    local dir
    dir=$(mktemp -d -- "$BATS_TEST_TMPDIR/facts.XXXXXX")
    must skopeo --insecure-policy copy -q --src-tls-verify=false "$1" "dir:$dir" || return 1
    dir_facts "$dir"
    rm -rf -- "$dir"
}

# dir_facts DIR does so for a dir: image.
dir_facts() {
    local config layer type sums=()
    config=$(jq -r .config.digest "$1/manifest.json")
    [[ sha256:$(sha256sum <"$1/${config#*:}" | cut -d' ' -f1) == "$config" ]] || echo "the config is not $config"
    while read -r layer type; do
        [[ $(sha256sum <"$1/${layer#*:}" | cut -d' ' -f1) == "${layer#*:}" ]] || echo "a layer is not $layer"
        local unpack=(zcat -f)
        [[ $type != *zstd ]] || unpack=(zstd -dcq)
        sums+=("sha256:$("${unpack[@]}" "$1/${layer#*:}" | sha256sum | cut -d' ' -f1)")
    done < <(jq -r '.layers[] | .digest + " " + .mediaType' "$1/manifest.json")
    [[ $(jq -r '.rootfs.diff_ids | join(" ")' "$1/${config#*:}") == "${sums[*]}" ]] || echo "the layers are not those of the config"
    printf '%s\n' "$config" "${sums[@]}"
}

# raw_digest IMAGE prints the digest of an image's manifest.
raw_digest() { skopeo inspect --raw --tls-verify=false "$1" | sha256sum | sed 's/ .*//; s/^/sha256:/'; }

# own_name prints an image name in the registry that no other test uses.
own_name() { echo "$REGISTRY/test-$BATS_SUITE_TEST_NUMBER-$RANDOM"; }

# free_port prints a port of the loopback interface that nothing listens on.
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
