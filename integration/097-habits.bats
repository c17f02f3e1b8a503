#!/usr/bin/env bats
# What fingers trained by skopeo, podman and ostree type, as it stands, a test for each: it does what the model does, or
# says in one line what to type instead.

bats_require_minimum_version 1.5.0
load helpers
load export

setup_file() {
    ((EUID == 0)) || return 0
    command -v ostree skopeo setcap umoci >/dev/null || return 0
    fixture small
    new_repo "$BATS_FILE_TMPDIR/repo" bare-user
    "$OI" --quiet --insecure-policy --repo="$BATS_FILE_TMPDIR/repo" pull "oci:$FIXTURES/small/oci:small" n
}

setup() {
    requires root
    requires_tool ostree skopeo setcap umoci jq
    A=oci:$FIXTURES/small/oci:small
    T=$BATS_TEST_TMPDIR
    R=$T/repo
    export OSTREE_REPO=$R
    cp -a "$BATS_FILE_TMPDIR/repo" "$R"
    DIGEST=$(ostree show "--repo=$R" --print-metadata-key=docker.digest ociimage/n_3Alatest | tr -d "'")
    # A registry on this machine has no certificate, and docker:// asks for short names here.
    printf 'unqualified-search-registries = ["%s"]\nshort-name-mode = "permissive"\n[[registry]]\nlocation = "%s"\ninsecure = true\n' \
        "$REGISTRY" "$REGISTRY" >"$T/registries.conf"
}

# in_small_registry pushes the small image to the registry, and sets image_name and short to its names.
in_small_registry() {
    requires registry
    in_registry "$REGISTRY" small small
    short=${image_name#"$REGISTRY/"}
}

# lists NAME… fails unless these are the images of the repository.
lists() {
    oi list -q
    assert_equal "$output" "$(printf '%s\n' "$@" | LC_ALL=C sort)"
}

@test "habits [copy -q A B]" {
    oi copy -q "$A" ostree:b
    assert_equal "$output$stderr" ""
    lists n:latest b:latest
}

@test "habits [copy A B -q]" {
    oi copy "$A" ostree:b -q
    assert_equal "$output$stderr" ""
    lists n:latest b:latest
}

@test "habits [list --repo=R]" {
    export OSTREE_REPO=/nonexistent
    oi list --repo="$R"
    assert_stdout_has 'n:latest  '
}

@test "habits [--repo R list]" {
    export OSTREE_REPO=/nonexistent
    oi --repo "$R" list
    assert_stdout_has 'n:latest  '
}

@test "habits [ls -q]" {
    oi ls -q
    assert_equal "$output" n:latest
}

@test "habits [list --format '{{.Name}} {{.Digest}}']" {
    oi list --format '{{.Name}} {{.Digest}}'
    assert_equal "$output" "n:latest $DIGEST"
}

@test "habits [inspect --format '{{.Digest}}' N]" {
    oi inspect --format '{{.Digest}}' n
    assert_equal "$output" "$DIGEST"
}

@test "habits [inspect docker://…]" {
    in_small_registry
    oi inspect --tls-verify=false "docker://$image_name"
    assert_equal "$(jq -r .Digest <<<"$output")" "$(skopeo inspect --tls-verify=false "docker://$image_name" | jq -r .Digest)"
}

@test "habits [inspect N --raw]" {
    oi inspect n --raw
    assert_equal "sha256:$("$OI" inspect n --raw | sha256sum | cut -d' ' -f1)" "$DIGEST"
}

@test "habits [pull -q docker://…]" {
    in_small_registry
    oi pull -q "docker://$image_name" --registries-conf "$T/registries.conf"
    assert_equal "$output$stderr" ""
    lists "$image_name" n:latest
}

@test "habits [pull alpine]" {
    in_small_registry
    oi pull "$short" --registries-conf "$T/registries.conf"
    lists "$image_name" n:latest
    : >"$T/none.conf"
    oi -2 pull no-alias --registries-conf "$T/none.conf"
    assert_error 'docker://no-alias'
}

@test "habits [pull quay.io/a/b]" {
    in_small_registry
    oi pull "$image_name" --registries-conf "$T/registries.conf"
    lists "$image_name" n:latest
}

@test "habits [pull --tls-verify=false …]" {
    in_small_registry
    oi pull --tls-verify=false "docker://$image_name"
    lists "$image_name" n:latest
}

@test "habits [copy --multi-arch all]" {
    oi copy --multi-arch all "$A" ostree:b
    lists n:latest b:latest
}

@test "habits [pull --platform linux/arm64 …]" {
    oi -1 pull --platform linux/arm64 "$A" b
    assert_error 'the image is for linux/'
    assert_error 'and linux/arm64 is wanted'
    oi pull --platform "linux/$(skopeo inspect "$A" | jq -r .Architecture)" "$A" b
    lists n:latest b:latest
}

@test "habits [push N]" {
    oi -2 push n
    assert_error 'push: DESTINATION is missing; usage: ostree-image push NAME DESTINATION'
}

@test "habits [push N docker://… --dest-creds u:p]" {
    requires tls-registry
    oi push n "docker://$TLS_REGISTRY/habits:1" --dest-creds 'importer:s3cr3t-Passw0rd' --dest-cert-dir "$TLS_DIR/client"
    oi inspect "docker://$TLS_REGISTRY/habits:1" --creds 'importer:s3cr3t-Passw0rd' --cert-dir "$TLS_DIR/client"
}

@test "habits [rm --all]" {
    oi rm --all
    oi list -q
    assert_equal "$output" ""
}

@test "habits [tag a b]" {
    oi tag n b
    lists n:latest b:latest
}

@test "habits [help pull]" {
    oi help pull
    assert_stdout_has 'SOURCE [NAME]'
}

@test "habits [pull -h]" {
    oi pull -h
    assert_stdout_has 'SOURCE [NAME]'
}

@test "habits [--version]" {
    oi --version
    assert_stdout_has 'ostree-image '
}

@test "habits [version --format json]" {
    oi version --format json
    assert_equal "$(jq -r .ostree <<<"$output")" "$(ostree --version | sed -n "s/^ Version: '\\(.*\\)'/\\1/p")"
}

@test "habits [lsit]" {
    oi -2 lsit
    assert_error 'did you mean list?'
}

@test "habits [copy 127.0.0.1:5000/x …]" {
    oi -2 copy 127.0.0.1:5000/x ostree:b
    assert_error 'did you mean docker://127.0.0.1:5000/x?'
}

@test "habits [inspect 3f2a…]" {
    local hex=${DIGEST#sha256:}
    oi inspect "${hex:0:12}" --format '{{.Digest}}'
    assert_equal "$output" "$DIGEST"
}

@test "habits [pull X:1@sha256:…]" {
    in_small_registry
    local sum
    sum=$(skopeo inspect --tls-verify=false "docker://$image_name" | jq -r .Digest)
    oi pull "docker://$image_name@$sum" --registries-conf "$T/registries.conf"
    [[ $stderr == *tag* ]] || fail "the tag is dropped, and nothing says so: $stderr"
    lists "${image_name%:1}@$sum" n:latest
}

@test "habits [login 127.0.0.1:5000]" {
    requires registry
    printf 'x\n' >"$T/password"
    run --separate-stderr "$OI" login "$REGISTRY" -u u --password-stdin --authfile "$T/auth.json" <"$T/password"
    [[ $status != 0 && ${#stderr_lines[@]} == 1 && $stderr == *--tls-verify=false* ]] || fail "status $status: $stderr"
    run --separate-stderr "$OI" login "$REGISTRY" --tls-verify=false -u u --password-stdin --authfile "$T/auth.json" <"$T/password"
    [[ $status == 0 ]] || fail "status $status: $stderr"
}

@test "habits [ostree image list]" {
    mkdir "$T/bin"
    ln -s "$OI" "$T/bin/ostree-image"
    PATH=$T/bin:$PATH run -0 ostree image list --repo="$R"
    [[ $output == *n:latest* ]] || fail "it lists $output"
}

@test "habits [ostree --repo=R image list]" {
    mkdir "$T/bin"
    ln -s "$OI" "$T/bin/ostree-image"
    export OSTREE_REPO=/nonexistent
    PATH=$T/bin:$PATH run -0 ostree --repo="$R" image list
    [[ $output == *n:latest* ]] || fail "it lists $output"
}

@test "habits [checkout N D -H]" {
    oi -1 checkout n "$T/root" -H
    assert_error '--user-mode'
    oi checkout n "$T/root" -H -U
    [[ -d $T/root/usr || -d $T/root/etc ]] || fail "$(ls "$T/root")"
    [[ -n $(find "$T/root" -type f -links +1) ]] || fail "no hard links: $(ls -lR "$T/root")"
}

@test "habits [list | head -1]" {
    run -0 --separate-stderr bash -c '"$0" list | head -1' "$OI"
    [[ $output == NAME* && -z $stderr ]] || fail "$output $stderr"
}

@test "habits [list --format json | jq .]" {
    run -0 bash -c '"$0" list --format json | jq -r ".[].name"' "$OI"
    assert_equal "$output" n:latest
}

@test "habits [verify N --quiet]" {
    oi verify n --quiet
    assert_equal "$stderr" ""
}

@test "habits [--progress json, --log-level, TERM=dumb, NO_COLOR]" {
    oi copy --progress json "$A" ostree:b
    jq -es 'all(.event != null) and any(.event == "copied")' <<<"$stderr" >/dev/null || fail "no events: $stderr"
    oi -3 inspect nothing --progress=json
    assert_equal "$(jq -r .event <<<"$stderr")" error
    oi copy --progress none "$A" ostree:c
    assert_equal "$stderr" ""
    oi -2 list --progress=loud
    assert_error 'auto, plain, json or none'
    oi -2 list --log-level=loud
    assert_error 'error, warn, info or debug'
    oi list --log-level=debug
    [[ $stderr == *'ostree refs'* ]] || fail "no commands: $stderr"
    requires_tool script
    run -0 env TERM=dumb NO_COLOR=1 script -qec "'$OI' --insecure-policy copy '$A' ostree:d" /dev/null
    [[ $output != *$'\e'* ]] || fail "it moves the cursor: $output"
}
