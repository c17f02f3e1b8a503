#!/usr/bin/env bats
# Names, repositories and the commands around an import.

bats_require_minimum_version 1.5.0
load helpers

setup_file() {
    ((EUID == 0)) || return 0
    fixture small
    fixture counts
    [[ -z $REGISTRY ]] || in_registry "$REGISTRY" small small
    [[ -z $TLS_REGISTRY ]] || in_registry "$TLS_REGISTRY" small small
}

setup() {
    requires root
    requires_tool ostree python3
    SMALL=oci:$FIXTURES/small/oci:small
    TEN=oci:$FIXTURES/counts/oci:10
    REPO=$BATS_TEST_TMPDIR/repo
}

has_ref() { [[ -e $1/refs/heads/ociimage/$2 ]] || fail "no ref ociimage/$2 in $1: $(refs "$1")"; }

@test "pull [the source's full name]" {
    requires registry
    new_repo "$REPO" bare-user
    oi "--repo=$REPO" pull --src-tls-verify=false "docker://$REGISTRY/small/small:1"
    has_ref "$REPO" "127.0.0.1_3A${REGISTRY##*:}_2Fsmall_2Fsmall_3A1"
    local digest
    digest=$(manifest_digest "$FIXTURES/small/oci" small)
    oi "--repo=$REPO" pull --src-tls-verify=false "docker://$REGISTRY/small/small@$digest"
    has_ref "$REPO" "127.0.0.1_3A${REGISTRY##*:}_2Fsmall_2Fsmall_40sha256_3A${digest#sha256:}"
}

@test "pull [docker-archive's own name]" {
    requires_tool skopeo
    new_repo "$REPO" bare-user
    must skopeo --insecure-policy copy -q "$SMALL" "docker-archive:$BATS_TEST_TMPDIR/a.tar:debian:12"
    oi "--repo=$REPO" pull "docker-archive:$BATS_TEST_TMPDIR/a.tar:debian:12"
    has_ref "$REPO" docker.io_2Flibrary_2Fdebian_3A12
}

@test "pull [oci has no name of its own]" {
    new_repo "$REPO" bare-user
    oi -2 "--repo=$REPO" pull "$SMALL"
    assert_error "$SMALL has no name of its own; give a NAME to store it under"
    [[ -z $(refs "$REPO") ]] || fail "something was stored"
}

@test "pull [TLS and a password]" {
    requires tls-registry
    new_repo "$REPO" bare-user
    oi "--repo=$REPO" pull "--src-cert-dir=$TLS_DIR/client" --src-creds='importer:s3cr3t-Passw0rd' "docker://$TLS_REGISTRY/small/small:1" one
    printf '{"auths": {"%s": {"auth": "%s"}}}' "$TLS_REGISTRY" "$(printf 'importer:s3cr3t-Passw0rd' | base64)" >"$BATS_TEST_TMPDIR/auth.json"
    oi "--repo=$REPO" "--authfile=$BATS_TEST_TMPDIR/auth.json" pull "--src-cert-dir=$TLS_DIR/client" "docker://$TLS_REGISTRY/small/small:1" two
    oi "--repo=$REPO" pull "--src-authfile=$BATS_TEST_TMPDIR/auth.json" --src-tls-verify=false "docker://$TLS_REGISTRY/small/small:1" three
    has_ref "$REPO" one_3Alatest
    has_ref "$REPO" two_3Alatest
    has_ref "$REPO" three_3Alatest
}

@test "names [kept as they are written]" {
    new_repo "$REPO" bare-user
    oi "--repo=$REPO" pull "$TEN" debian
    oi "--repo=$REPO" pull "$TEN" docker.io/library/debian
    oi "--repo=$REPO" pull "$TEN" a/b_c/d.e-f:T.a_g-1
    oi "--repo=$REPO" copy "$TEN" "ostree:debian:12@$REPO"
    oi "--repo=$REPO" pull "$TEN" "ostree:debian:13@$REPO"
    has_ref "$REPO" debian_3Alatest
    has_ref "$REPO" docker.io_2Flibrary_2Fdebian_3Alatest
    has_ref "$REPO" a_2Fb_5Fc_2Fd.e-f_3AT.a_5Fg-1
    has_ref "$REPO" debian_3A12
    has_ref "$REPO" debian_3A13
    oi "--repo=$REPO" list --format=json
    run -0 python3 -c 'import json, sys; print(*(i["name"] for i in json.load(sys.stdin)))' <<<"$output"
    assert_stdout 'a/b_c/d.e-f:T.a_g-1 debian:12 debian:13 debian:latest docker.io/library/debian:latest'
}

@test "repository [--repo before OSTREE_REPO]" {
    new_repo "$REPO" bare-user
    new_repo "$REPO-2" archive
    export OSTREE_REPO=$REPO-2
    oi "--repo=$REPO" pull "$TEN" ten
    [[ -z $(refs "$REPO-2") ]] || fail "stored in the wrong repository"
    oi pull "$TEN" other
    has_ref "$REPO" ten_3Alatest
    has_ref "$REPO-2" other_3Alatest
    oi copy "$TEN" "ostree:third@$REPO"
    has_ref "$REPO" third_3Alatest
}

@test "repository [a relative path, a symbolic link]" {
    new_repo "$REPO" bare-user
    cd "$BATS_TEST_TMPDIR"
    ln -s repo link
    oi --repo=repo pull "$TEN" ten
    oi --repo=link pull "$TEN" two
    has_ref "$REPO" ten_3Alatest
    has_ref "$REPO" two_3Alatest
}

@test "repository [the default, root]" {
    [[ ! -e /ostree/repo ]] || skip "this system has /ostree/repo"
    export XDG_DATA_HOME=$BATS_TEST_TMPDIR/data
    oi list
    [[ -d $XDG_DATA_HOME/ostree-image/repo ]] || fail "not made at first use"
    oi pull "$TEN" ten
    run -0 ostree config "--repo=$XDG_DATA_HOME/ostree-image/repo" get core.mode
    assert_stdout bare
    has_ref "$XDG_DATA_HOME/ostree-image/repo" ten_3Alatest
    oi list
    assert_stdout_has 'ten:latest'
}

@test "repository [the default, user]" {
    requires user
    [[ ! -e /ostree/repo ]] || skip "this system has /ostree/repo"
    OI_USER=user
    rm -rf -- "$UNPRIVILEGED_HOME/.local"
    oi pull "$TEN" ten
    local repo=$UNPRIVILEGED_HOME/.local/share/ostree-image/repo
    run -0 ostree config "--repo=$repo" get core.mode
    assert_stdout bare-user
    has_ref "$repo" ten_3Alatest
    rm -rf -- "$UNPRIVILEGED_HOME/.local"
}

@test "list [table]" {
    new_repo "$REPO" bare-user
    oi "--repo=$REPO" list
    assert_stdout 'NAME  DIGEST  LAYERS  SIZE  CREATED'
    oi "--repo=$REPO" pull "$TEN" ten
    oi "--repo=$REPO" list
    [[ ${#lines[@]} == 2 ]] || fail "not two lines"
    [[ ${lines[0]} =~ ^NAME\ +DIGEST\ +LAYERS\ +SIZE\ +CREATED$ ]] || fail "the head"
    local digest
    digest=$(manifest_digest "$FIXTURES/counts/oci" 10)
    [[ ${lines[1]} =~ ^ten:latest\ +${digest:7:12}\ +1\ +[0-9.]+k?B\ +2023-04-05\ 06:07:08$ ]] || fail "the image"
    oi "--repo=$REPO" ls
    [[ ${#lines[@]} == 2 ]] || fail "ls is not list"
}

@test "list [json]" {
    new_repo "$REPO" archive
    oi "--repo=$REPO" list --format=json
    assert_stdout '[]'
    oi "--repo=$REPO" pull "$SMALL" small
    oi "--repo=$REPO" list --format=json
    run -0 python3 - "$FIXTURES/small" "$REPO" "$output" <<'END'
import json, os, subprocess, sys
sys.path.insert(0, os.environ["INTEGRATION"])
import image
fixture, repo, text = sys.argv[1:]
(i,) = json.loads(text)
want = ["name", "ref", "commit", "digest", "mediaType", "created", "os", "architecture", "layers", "size", "uncompressedSize", "signatures"]
assert list(i) == want, list(i)
found = image.find(fixture + "/oci", "small")
with open(f"{fixture}/oci/blobs/{found['digest'].replace(':', '/')}") as f:
    m = json.load(f)
commit = subprocess.check_output(["ostree", "rev-parse", "--repo=" + repo, "ociimage/small_3Alatest"], text=True).strip()
expected = {
    "name": "small:latest", "ref": "ociimage/small_3Alatest", "commit": commit, "digest": found["digest"], "mediaType": image.MANIFEST,
    "created": image.CREATED, "os": "linux", "architecture": image.native_arch(), "layers": 2, "signatures": 0,
    "uncompressedSize": sum(os.path.getsize(f"{fixture}/{n}.tar") for n in ("second", "third")),
}
for key, value in expected.items():
    assert i[key] == value, (key, i[key], value)
blobs = m["config"]["size"] + sum(l["size"] for l in m["layers"])
assert i["size"] in (blobs, blobs + found["size"]), (i["size"], blobs)
END
}

@test "list [what is no image stays out]" {
    new_repo "$REPO" bare-user
    oi "--repo=$REPO" pull "$TEN" ten
    mkdir "$BATS_TEST_TMPDIR/tree"
    must ostree commit "--repo=$REPO" --branch=other/branch "--tree=dir=$BATS_TEST_TMPDIR/tree"
    must ostree commit "--repo=$REPO" --branch=ociimage/tmp.AbCdEf "--tree=dir=$BATS_TEST_TMPDIR/tree"
    oi "--repo=$REPO" list --format=json
    run -0 python3 -c 'import json, sys; print(*(i["name"] for i in json.load(sys.stdin)))' <<<"$output"
    assert_stdout 'ten:latest'
}

@test "list [an image that is broken]" {
    new_repo "$REPO" bare-user
    oi "--repo=$REPO" pull "$TEN" ten
    mkdir "$BATS_TEST_TMPDIR/tree"
    must ostree commit "--repo=$REPO" --branch=ociimage/bad_3Alatest "--tree=dir=$BATS_TEST_TMPDIR/tree"
    oi -4 "--repo=$REPO" list
    assert_stdout_has 'ten:latest'
    assert_stderr_has 'image bad:latest: '
    assert_stderr_has 'some images cannot be read'
}

@test "pull [--quiet prints nothing]" {
    new_repo "$REPO" bare-user
    oi --quiet "--repo=$REPO" pull "$SMALL" small
    assert_stdout ''
    assert_stderr ''
    oi -q "--repo=$REPO" pull "$SMALL" other
    assert_stdout ''
    assert_stderr ''
}

@test "pull [--digestfile]" {
    new_repo "$REPO" bare-user
    oi "--repo=$REPO" pull "--digestfile=$BATS_TEST_TMPDIR/digest" "$SMALL" small
    assert_equal "$(cat "$BATS_TEST_TMPDIR/digest")" "$(manifest_digest "$FIXTURES/small/oci" small)"
}

# dates prints the times of the commits of a layer, a config and the image.
dates() {
    local ref
    for ref in "$(manifest_layers "$FIXTURES/counts/oci" 10)" ten_3Alatest; do
        ostree show "--repo=$REPO" "ociimage/$ref" | sed -n 's/^Date: *//p'
    done
}

@test "timestamps [the image's own]" {
    new_repo "$REPO" bare-user
    oi "--repo=$REPO" pull "$TEN" ten
    assert_equal "$(dates)" "1970-01-01 00:00:00 +0000
2023-04-05 06:07:08 +0000"
}

@test "timestamps [--timestamp]" {
    new_repo "$REPO" bare-user
    oi "--repo=$REPO" pull --timestamp=1234567890 "$TEN" ten
    assert_equal "$(dates)" "2009-02-13 23:31:30 +0000
2009-02-13 23:31:30 +0000"
    rm -rf -- "$REPO"
    new_repo "$REPO" bare-user
    oi "--repo=$REPO" pull --timestamp=1 "$TEN" ten
    assert_equal "$(dates)" "1970-01-01 00:00:01 +0000
1970-01-01 00:00:01 +0000"
    oi -2 "--repo=$REPO" pull --timestamp=yesterday "$TEN" ten
    assert_error 'timestamp "yesterday": it is "now" or a number of seconds since 1970'
}

@test "timestamps [now]" {
    new_repo "$REPO" bare-user
    local before at
    before=$(date +%s)
    oi "--repo=$REPO" pull --timestamp=now "$TEN" ten
    at=$(date --date="$(dates | tail -n 1)" +%s)
    ((before <= at && at <= $(date +%s))) || fail "$at"
}

@test "timestamps [SOURCE_DATE_EPOCH]" {
    new_repo "$REPO" bare-user
    export SOURCE_DATE_EPOCH=1234567890
    oi "--repo=$REPO" pull "$TEN" ten
    assert_equal "$(dates)" "2009-02-13 23:31:30 +0000
2009-02-13 23:31:30 +0000"
    rm -rf -- "$REPO"
    new_repo "$REPO" bare-user
    oi "--repo=$REPO" pull --timestamp=1 "$TEN" ten
    assert_equal "$(dates | head -n 1)" "1970-01-01 00:00:01 +0000"
}

@test "the environment does not reach the commands" {
    new_repo "$REPO" bare-user
    export TAR_OPTIONS='--checkpoint=1 --checkpoint-action=exec=exit' G_MESSAGES_DEBUG=all LC_ALL=C LANG=C POSIXLY_CORRECT=1 OSTREE_DEBUG_HTTP=1
    umask 077
    oi "--repo=$REPO" pull --unpack=tar "$SMALL" small
    unset TAR_OPTIONS G_MESSAGES_DEBUG POSIXLY_CORRECT
    export LC_ALL=C.UTF-8
    check_layer "$REPO" bare-user "ociimage/$(manifest_layers "$FIXTURES/small/oci" small | head -n 1)" "$FIXTURES/small/second.tar"
}

@test "an OCI artifact is kept as it is" {
    new_repo "$REPO" bare-user
    local layout=$BATS_TEST_TMPDIR/layout
    python3 - "$layout" <<'END'
import json, os, sys
sys.path.insert(0, os.environ["INTEGRATION"])
import image
layout = sys.argv[1]
manifest = {"schemaVersion": 2, "mediaType": image.MANIFEST, "artifactType": "text/x-poem",
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", **image.put_blob(layout, b"{}")},
            "layers": [{"mediaType": "text/plain", **image.put_blob(layout, b"no tar, just text\n")}]}
index = {"schemaVersion": 2, "manifests": [{"mediaType": image.MANIFEST, **image.put_blob(layout, json.dumps(manifest).encode()),
                                            "annotations": {"org.opencontainers.image.ref.name": "poem"}}]}
with open(layout + "/index.json", "w") as f:
    json.dump(index, f)
with open(layout + "/oci-layout", "w") as f:
    f.write('{"imageLayoutVersion":"1.0.0"}')
END
    oi "--repo=$REPO" pull "oci:$layout:poem" poem
    run -0 ostree cat "--repo=$REPO" "ociimage/$(printf 'no tar, just text\n' | sha256sum | cut -d ' ' -f 1)" /content
    assert_stdout 'no tar, just text'
    assert_fsck "$REPO"
}

@test "ostree image [as a subcommand of ostree]" {
    new_repo "$REPO" bare-user
    oi "--repo=$REPO" pull "$TEN" ten
    mkdir "$BATS_TEST_TMPDIR/bin"
    cp -- "$OI" "$BATS_TEST_TMPDIR/bin/ostree-image" # ostree also looks in PATH
    run --separate-stderr env "PATH=$BATS_TEST_TMPDIR/bin:$PATH" ostree image list
    [[ $status != 127 ]] || fail "not found"
    run -0 --separate-stderr env "PATH=$BATS_TEST_TMPDIR/bin:$PATH" "OSTREE_REPO=$REPO" ostree image list
    assert_stdout_has 'ten:latest'
    run -0 --separate-stderr env "PATH=$BATS_TEST_TMPDIR/bin:$PATH" ostree "--repo=$REPO" image list
    assert_stdout_has 'ten:latest'
    run -0 --separate-stderr env "PATH=$BATS_TEST_TMPDIR/bin:$PATH" ostree image "--repo=$REPO" list --format=json
    assert_stdout_has '"ten:latest"'
}
