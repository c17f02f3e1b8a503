#!/usr/bin/env bats
# Every example of the help, and so of the man pages, is run: only registries and directories have other names here.

bats_require_minimum_version 1.5.0
load helpers
load export

setup() {
    requires root registry
    requires_tool ostree skopeo setcap umoci jq script
    fixture small
    T=$BATS_TEST_TMPDIR
    export HOME=$T/home XDG_DATA_HOME=$T/home/data
    mkdir -p "$T/bin" "$T/etc" "$T/start" "$HOME/.config/containers"
    ln -s "$OI" "$T/bin/ostree-image"
    echo '{"default": [{"type": "insecureAcceptAnything"}]}' >"$HOME/.config/containers/policy.json"
    printf '[[registry]]\nlocation = "%s"\ninsecure = true\n' "$REGISTRY" >"$HOME/.config/containers/registries.conf"
}

# prepare makes what the examples find: a repository, an archive, a record, an image in a registry, a password.
prepare() {
    cd -- "$T/start" || return
    new_repo "$T/start/repo" bare-user
    local name oi=("$OI" --quiet "--repo=$T/start/repo")
    must "${oi[@]}" --record=record pull "oci:$FIXTURES/small/oci:small" debian:12
    must "${oi[@]}" tag debian:12 debian:11
    must "${oi[@]}" tag debian:12 debian:latest
    must skopeo copy -q "oci:$FIXTURES/small/oci:small" oci-archive:debian.tar
    must skopeo copy -q "oci:$FIXTURES/small/oci:small" oci:images:12
    must skopeo copy -q --dest-tls-verify=false "oci:$FIXTURES/small/oci:small" "docker://$REGISTRY/podman/stable:latest"
    must tar -czf record.tar.gz record
    echo secret >secret
    prefix=$("$OI" "--repo=$T/start/repo" inspect debian:12 --format '{{.Digest}}')
    prefix=${prefix:7:8}
}

# here LINE prints an example with the names that things have on this machine.
here() {
    sed -e "s#oci:/images/debian:#oci:images:#g; s#/ostree/repo#$T/work/repo#g; s#/srv/images#$T/work/repo#g; s#/srv/debian#$T/work/srv#g" \
        -e "s#registry.example.com#$REGISTRY#g; s#quay.io#$REGISTRY#g; s#\\b99cbbc2a\\b#$prefix#g; s#/etc/bash_completion.d#$T/etc#g" \
        -e "s# | source# >$T/etc/fish#" <<<"$1"
}

@test "examples [of every command]" {
    local command commands example line count=0 prefix status
    prepare
    commands=$("$OI" help | sed -n '/^COMMANDS:/,/^GLOBAL/s/^     \([a-z]*\).*/\1/p')
    for command in $commands; do
        while IFS= read -r example; do
            rm -rf -- "$T/work"
            cp -a -- "$T/start" "$T/work"
            cd -- "$T/work" || return
            [[ $example != *push*oci-archive:* ]] || rm debian.tar
            line=$(here "$example")
            # shellcheck disable=SC2030
            export OSTREE_REPO=$T/work/repo PATH=$T/bin:$PATH
            status=0
            if [[ $example == *' logout '* ]]; then
                must ostree-image login -u me --password-stdin "$REGISTRY" <secret
            fi
            if [[ $example == 'ostree-image login quay.io' ]]; then # asks on a terminal
                printf 'me\nsecret\n' | script -qec "$line" /dev/null >"$T/out" 2>&1 || status=$?
            else
                bash -c "$line" >"$T/out" 2>&1 || status=$?
            fi
            echo "$example"
            [[ $status == 0 ]] || fail "status $status of $line: $(cat "$T/out")"
            count=$((count + 1))
        done < <("$OI" help "$command" | sed -n '/^EXAMPLES:/,/^[A-Z ]*OPTIONS:/s/^   \(ostree-image.*\)/\1/p')
    done
    ((count >= 30)) || fail "only $count examples"
}
