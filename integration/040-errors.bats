#!/usr/bin/env bats
# What goes wrong: the text, the exit status, and that nothing is left behind.

bats_require_minimum_version 1.5.0
load helpers

setup_file() {
    ((EUID == 0)) || return 0
    fixture small
    fixture bad
    fixture counts
    [[ -z $REGISTRY ]] || in_registry "$REGISTRY" small small
    [[ -z $TLS_REGISTRY ]] || in_registry "$TLS_REGISTRY" small small
}

setup() {
    requires root
    requires_tool ostree python3
    SMALL=oci:$FIXTURES/small/oci:small
    BAD=oci:$FIXTURES/bad/oci
    REPO=$BATS_TEST_TMPDIR/repo
    new_repo "$REPO" bare-user
    oi "--repo=$REPO" pull "oci:$FIXTURES/counts/oci:10" kept
    BEFORE=$(refs "$REPO")
}

# fails STATUS TEXT ARGUMENT… runs the program, wants the status and the text, and that the repository is as before.
fails() {
    local want=$1 text=$2
    shift 2
    oi "-$want" "--repo=$REPO" "$@"
    assert_error "$text"
    assert_untouched "$REPO" "$BEFORE"
}

# a_copy LAYOUT sets copy to a copy of a fixture's layout.
a_copy() {
    copy=$BATS_TEST_TMPDIR/copy
    cp -r -- "$FIXTURES/$1/oci" "$copy"
}

# fake NAME TEXT makes NAME, a program that says TEXT as its version and is the real one otherwise.
fake() {
    printf '#!/bin/sh\ncase $1 in --version) cat <<END\n%s\nEND\n;; *) exec %s "$@" ;; esac\n' "$2" "$1" >"$BATS_TEST_TMPDIR/$1"
    chmod 755 -- "$BATS_TEST_TMPDIR/$1"
}

@test "error [no such repository]" {
    oi -3 "--repo=$BATS_TEST_TMPDIR/none" pull "$SMALL" small
    assert_error "no repository at $BATS_TEST_TMPDIR/none; create it with: ostree init --repo=$BATS_TEST_TMPDIR/none --mode=bare-user"
    oi -3 "--repo=$BATS_TEST_TMPDIR/none" list
    assert_error "no repository at $BATS_TEST_TMPDIR/none; create it with: ostree init --repo=$BATS_TEST_TMPDIR/none --mode=bare-user"
    oi -3 copy "$SMALL" "ostree:small@$BATS_TEST_TMPDIR/no/repo"
    assert_error "repository path \"$BATS_TEST_TMPDIR/no/repo\": its parent directory does not exist"
}

@test "error [a directory that is no repository]" {
    mkdir "$BATS_TEST_TMPDIR/dir"
    oi -3 "--repo=$BATS_TEST_TMPDIR/dir" pull "$SMALL" small
    assert_error "$BATS_TEST_TMPDIR/dir is no OSTree repository"
    [[ -z $(ls -A "$BATS_TEST_TMPDIR/dir") ]] || fail "something is in the directory"
    : >"$BATS_TEST_TMPDIR/file"
    oi -3 "--repo=$BATS_TEST_TMPDIR/file" list
    assert_error "$BATS_TEST_TMPDIR/file is no OSTree repository"
}

@test "error [read-only repository, root]" {
    requires_tool unshare mount
    run --separate-stderr unshare --mount sh -euc \
        'mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"; exec "$2" --insecure-policy --repo="$1" pull "$3" small' sh "$REPO" "$OI" "$SMALL"
    [[ $status == 1 ]] || fail "status $status: $stderr"
    assert_error "the repository $REPO cannot be written: mkdir $REPO/tmp/"
    assert_error 'read-only file system'
    assert_untouched "$REPO" "$BEFORE"
}

@test "error [read-only repository, user]" {
    requires user
    OI_USER=user
    fails 1 "the repository $REPO cannot be written: mkdir $REPO/tmp/" pull "$SMALL" small
    assert_error 'permission denied'
}

@test "error [no ostree]" {
    fails 1 '/none/ostree: not found: install the package ostree (libostree 2022.7 or newer), or name the program with --ostree' --ostree=/none/ostree pull "$SMALL" small
    run --separate-stderr env PATH=/none "$OI" --insecure-policy "--repo=$REPO" pull "$SMALL" small
    [[ $status == 1 ]] || fail "status $status"
    assert_error 'ostree: not found: install the package ostree (libostree 2022.7 or newer), or name the program with --ostree'
}

@test "error [no tar]" {
    fails 1 '/none/tar: not found: install GNU tar (the package tar), or name the program with --tar' --tar=/none/tar pull --unpack=tar "$SMALL" small
    oi "--repo=$REPO" --tar=/none/tar pull "$SMALL" small # the other engine needs none
}

@test "error [ostree too old]" {
    fake ostree "libostree:
 Version: '2020.3'
 Features:
  - libarchive"
    fails 1 "$BATS_TEST_TMPDIR/ostree: version 2020.3 is too old: install the package ostree (libostree 2022.7 or newer), or name the program with --ostree" \
        "--ostree=$BATS_TEST_TMPDIR/ostree" pull "$SMALL" small
}

@test "error [no ostree at all behind the name]" {
    fake ostree 'nobody'
    fails 1 "asking $BATS_TEST_TMPDIR/ostree for its version: it answers \"nobody\\n\", which is not what ostree says" \
        "--ostree=$BATS_TEST_TMPDIR/ostree" pull "$SMALL" small
}

@test "error [ostree without libarchive]" {
    fake ostree "libostree:
 Version: '2022.7'
 Features:
  - gpgme"
    fails 1 '--unpack=stream: this ostree (2022.7) is built without libarchive; use --unpack=tar' \
        "--ostree=$BATS_TEST_TMPDIR/ostree" pull --unpack=stream "$SMALL" small
    oi --debug "--repo=$REPO" "--ostree=$BATS_TEST_TMPDIR/ostree" pull "$SMALL" small
    assert_stderr_has '+ tar -x'
}

@test "error [tar of another kind, or too old]" {
    fake tar 'bsdtar 3.6.2 - libarchive 3.6.2 zlib/1.2.13'
    fails 1 "$BATS_TEST_TMPDIR/tar: not GNU tar: install GNU tar" "--tar=$BATS_TEST_TMPDIR/tar" pull --unpack=tar "$SMALL" small
    fake tar 'tar (GNU tar) 1.26'
    fails 1 "$BATS_TEST_TMPDIR/tar: version 1.26 is too old: install GNU tar" "--tar=$BATS_TEST_TMPDIR/tar" pull --unpack=tar "$SMALL" small
}

@test "error [image not found, layout without it]" {
    fails 3 "initializing source oci:$FIXTURES/small/oci:none: no descriptor found for reference \"none\"" pull "oci:$FIXTURES/small/oci:none" small
}

@test "error [image not found, no layout]" {
    fails 3 'initializing source oci:/none:none: open index.json: no such file or directory' pull oci:/none:none small
    fails 3 'archive file not found: "/none.tar"' pull oci-archive:/none.tar:none small
    fails 3 'open /none/manifest.json: no such file or directory' pull dir:/none small
    fails 3 'open /none.tar: no such file or directory' pull docker-archive:/none.tar:none:1 small
}

@test "error [image not found, registry]" {
    requires registry
    fails 3 'manifest unknown' pull --src-tls-verify=false "docker://$REGISTRY/small/small:none" small
    fails 3 'manifest unknown' pull --src-tls-verify=false "docker://$REGISTRY/none/none:1" small
}

@test "error [image not found, repository]" {
    fails 3 'none:latest' copy ostree:none "dir:$BATS_TEST_TMPDIR/dir"
    [[ ! -e $BATS_TEST_TMPDIR/dir/manifest.json ]] || fail "something was written"
}

@test "error [registry down]" {
    local port
    port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
    fails 1 "pinging container registry 127.0.0.1:$port" pull --src-tls-verify=false "docker://127.0.0.1:$port/a/b:1" small
    assert_error 'connect: connection refused'
}

@test "error [registry without TLS]" {
    requires registry
    fails 1 'server gave HTTP response to HTTPS client' pull "docker://$REGISTRY/small/small:1" small
}

@test "error [registry of an unknown authority]" {
    requires tls-registry
    fails 1 'x509: certificate signed by unknown authority' pull "docker://$TLS_REGISTRY/small/small:1" small
}

@test "error [wrong credentials]" {
    requires tls-registry
    local image=docker://$TLS_REGISTRY/small/small:1
    fails 1 'authentication required' pull "--src-cert-dir=$TLS_DIR/client" --src-creds=importer:wrong-Secret "$image" small
    assert_stderr_lacks wrong-Secret
    fails 1 'authentication required' pull "--src-cert-dir=$TLS_DIR/client" --src-no-creds "$image" small
    fails 2 'the source: credentials must be USER:PASSWORD' pull "--src-cert-dir=$TLS_DIR/client" --src-creds=importer "$image" small
    fails 2 'the source: credentials and no credentials are mutually exclusive' pull --src-no-creds --src-creds=a:b "$image" small
}

@test "error [registry breaks off]" {
    requires registry
    slow_proxy "${REGISTRY##*:}" 0 100000
    fails 1 'unexpected EOF' pull --src-tls-verify=false "docker://$proxy/small/small:1" small
    kill "$proxy_pid"
}

@test "error [truncated blob]" {
    a_copy small
    local layer
    layer=$(manifest_layers "$copy" small | head -n 1)
    truncate --size=-100 "$copy/blobs/sha256/$layer"
    fails 4 "$layer" pull "oci:$copy:small" small
    fails 4 "$layer" pull --unpack=tar "oci:$copy:small" small
}

@test "error [blob too long]" {
    a_copy small
    local layer
    layer=$(manifest_layers "$copy" small | head -n 1)
    echo more >>"$copy/blobs/sha256/$layer"
    fails 4 "$layer" pull "oci:$copy:small" small
}

# flip FILE OFFSET changes a byte.
flip() {
    python3 - "$@" <<'END'
import sys
with open(sys.argv[1], "r+b") as f:
    f.seek(int(sys.argv[2]))
    b = f.read(1)[0]
    f.seek(int(sys.argv[2]))
    f.write(bytes([b ^ 1]))
END
}

@test "error [wrong digest of a layer]" {
    a_copy small
    local layer
    layer=$(manifest_layers "$copy" small | head -n 1)
    flip "$copy/blobs/sha256/$layer" 4 # gzip's time: all else is as it was
    fails 4 "$layer" pull "oci:$copy:small" small
    fails 4 "$layer" pull --unpack=tar "oci:$copy:small" small
    flip "$copy/blobs/sha256/$layer" 4
    flip "$copy/blobs/sha256/$layer" 100000 # in its data
    fails 4 "$layer" pull "oci:$copy:small" small
}

@test "error [wrong digest of a config]" {
    a_copy small
    local config
    config=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["config"]["digest"][7:])' "$copy/blobs/sha256/$(manifest_digest "$copy" small | cut -d : -f 2)")
    sed -i 's/amd64/AMD64/; s/linux/Linux/' "$copy/blobs/sha256/$config"
    fails 4 "$config" pull "oci:$copy:small" small
}

@test "error [the name asks for another digest]" {
    local other
    other=$(printf '%064d' 1)
    fails 4 "its name asks for sha256:$other" pull "$SMALL" "small@sha256:$other"
}

@test "error [names that are not UTF-8]" {
    fails 1 'the file name "a\xff" is not UTF-8, and OSTree holds no other' pull "$BAD:name-not-utf8" bad
    fails 1 'the target "b\xff" of the symbolic link "a" is not UTF-8, and OSTree holds no other' pull "$BAD:target-not-utf8" bad
    fails 1 'the file name "a\xff" is not UTF-8, and OSTree holds no other' pull --unpack=tar "$BAD:name-not-utf8" bad
}

@test "error [a name that leads out]" {
    fails 1 'the file name "a/../../b" leads out of the layer with ".."' pull "$BAD:name-dotdot" bad
}

@test "error [no tar archive]" {
    fails 1 'not a tar archive' pull "$BAD:no-tar" bad
    fails 1 'the tar archive breaks off in its entry 2' pull "$BAD:cut-header" bad
    fails 1 'the tar archive breaks off in its entry 1' pull "$BAD:cut-payload" bad
    fails 1 'the tar archive breaks off in its entry 1' pull --unpack=tar "$BAD:cut-payload" bad
}

@test "error [layers that make no sense]" {
    fails 1 'placing "a/b": "a" lies below a file' pull "$BAD:below-file" bad
    fails 1 'leads through more than 40 symbolic links' pull "$BAD:link-loop" bad
    fails 1 'the hard link "b" leads to the directory "a"' pull "$BAD:link-to-dir" bad
}

@test "error [wrong architecture or OS]" {
    local arch
    arch=$(python3 -c "import sys; sys.path.insert(0, '$INTEGRATION'); import image; print(image.native_arch())")
    fails 1 "the image is for linux/s390x, and linux/$arch is wanted; to store it all the same, use --override-os=linux --override-arch=s390x" pull "$BAD:s390x" other
    fails 1 "the image is for plan9/$arch, and linux/$arch is wanted; to store it all the same, use --override-os=plan9 --override-arch=$arch" pull "$BAD:plan9" other
    oi "--repo=$REPO" --override-os=linux --override-arch=s390x pull "$BAD:s390x" other
}

@test "error [image name too long]" {
    local name
    name=$(printf 'a%.0s' {1..200}):$(printf 't%.0s' {1..60})
    fails 2 "image name \"$name\" is too long: its ref has 263 bytes, and 255 is the most" pull "$SMALL" "$name"
    name=$(printf 'a%.0s' {1..200}):$(printf 't%.0s' {1..52})
    oi "--repo=$REPO" pull "$SMALL" "$name"
    [[ -e $REPO/refs/heads/ociimage/${name/:/_3A} ]] || fail "no such ref"
}

@test "error [bad names]" {
    fails 2 'image name "UPPER": invalid reference format: repository name must be lowercase' pull "$SMALL" UPPER
    fails 2 'image name "a:b:c": invalid reference format' pull "$SMALL" a:b:c
    fails 2 'image name "x:bad+tag": invalid reference format' pull "$SMALL" x:bad+tag
    fails 2 'image name "UPPER"' copy "$SMALL" ostree:UPPER
    fails 2 'the image name is empty; it is NAME[:TAG|@DIGEST]' copy "$SMALL" ostree:
    fails 2 'the image name is empty; it is NAME[:TAG|@DIGEST]' copy "$SMALL" "ostree:@$REPO"
    fails 2 'the image name is empty; it is NAME[:TAG|@DIGEST]' pull "$SMALL" ostree:
    fails 2 'a colon cannot stand in it' copy "$SMALL" "ostree:a@/tmp/a:b"
    fails 2 'unknown transport "nonsense"' copy nonsense:a ostree:a
}

# An empty NAME is a mistake in a script, such as an unset variable: it is not the same as none.
@test "error [an empty NAME]" {
    requires registry
    fails 2 'the image name is empty; it is NAME[:TAG|@DIGEST]' pull --src-tls-verify=false "docker://$REGISTRY/small/small:1" ''
}

@test "error [sigstore signatures]" {
    requires_tool skopeo
    must skopeo --insecure-policy copy -q "$SMALL" "dir:$BATS_TEST_TMPDIR/dir"
    printf '\0sigstore-json\n{"mimeType":"application/vnd.dev.cosign.simplesigning.v1+json","payload":"e30=","annotations":{"dev.cosignproject.cosign/signature":"MEUC"}}' \
        >"$BATS_TEST_TMPDIR/dir/signature-1"
    fails 1 'the image has sigstore signatures, which ostree: cannot hold; leave them behind with --remove-signatures' pull "dir:$BATS_TEST_TMPDIR/dir" small
    oi "--repo=$REPO" pull --remove-signatures "dir:$BATS_TEST_TMPDIR/dir" small
}

@test "error [signature policy]" {
    OI_POLICY=''
    echo '{"default": [{"type": "reject"}]}' >"$BATS_TEST_TMPDIR/policy.json"
    fails 4 'is rejected by policy' "--policy=$BATS_TEST_TMPDIR/policy.json" pull "$SMALL" small
    fails 1 'reading the signature policy (name one with --policy, or accept every image with --insecure-policy)' --policy=/none pull "$SMALL" small
    echo '{"default": [{"type": "insecureAcceptAnything"}]}' >"$BATS_TEST_TMPDIR/policy.json"
    oi "--repo=$REPO" "--policy=$BATS_TEST_TMPDIR/policy.json" pull "$SMALL" small
}

@test "error [--command-timeout]" {
    printf '#!/bin/sh\ncase $1 in commit) sleep 100 & sleep 100 ;; *) exec ostree "$@" ;; esac\n' >"$BATS_TEST_TMPDIR/ostree"
    chmod 755 -- "$BATS_TEST_TMPDIR/ostree"
    local began=$SECONDS
    fails 1 "$BATS_TEST_TMPDIR/ostree commit: stopped after 1s, the limit of --command-timeout" "--ostree=$BATS_TEST_TMPDIR/ostree" --command-timeout=1s pull "$SMALL" small
    ((SECONDS - began < 8)) || fail "it waits for the command's own children"
}

@test "error [--tmpdir]" {
    fails 1 'the temporary directory /none cannot be used' --tmpdir=/none pull "$SMALL" small
    mkdir "$BATS_TEST_TMPDIR/tmp"
    oi "--repo=$REPO" "--tmpdir=$BATS_TEST_TMPDIR/tmp" pull "$SMALL" small
    [[ -z $(ls -A "$BATS_TEST_TMPDIR/tmp") ]] || fail "something is left"
    assert_clean "$REPO"
}

@test "error [a failing ostree says why]" {
    printf '#!/bin/sh\ncase $1 in pull-local) echo "error: the moon is full" >&2; exit 1 ;; *) exec ostree "$@" ;; esac\n' >"$BATS_TEST_TMPDIR/ostree"
    chmod 755 -- "$BATS_TEST_TMPDIR/ostree"
    fails 1 "publishing the blobs: $BATS_TEST_TMPDIR/ostree pull-local: exit status 1: the moon is full" "--ostree=$BATS_TEST_TMPDIR/ostree" pull "$SMALL" small
}

@test "error [disk full]" {
    requires_tool unshare mount
    run --separate-stderr unshare --mount sh -euc '
        mkdir "$1"; mount -t tmpfs -o size=3m none "$1"; ostree init --repo="$1/repo" --mode=bare-user
        head -c "$(($(df --output=avail -B1 "$1" | tail -n 1) - 200000))" /dev/urandom >"$1/fill"
        s=0; "$2" --insecure-policy --repo="$1/repo" pull "$3" small || s=$?
        ostree refs --repo="$1/repo" >&2; ls "$1/repo/tmp" >&2; ostree fsck --repo="$1/repo" >/dev/null; exit "$s"' sh "$BATS_TEST_TMPDIR/full" "$OI" "$SMALL"
    echo "$stderr"
    [[ $status == 1 ]] || fail "status $status"
    [[ $stderr == *'No space left on device'* || $stderr == *'no space left on device'* || $stderr == *'min-free-space-percent'* ]] || fail "no word of it"
    assert_stderr_lacks 'ociimage/'
    [[ $(tail -n 1 <<<"$stderr") == cache || $(tail -n 1 <<<"$stderr") == 'ostree-image: '* ]] || fail "something is left in tmp/"
}
