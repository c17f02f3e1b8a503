#!/usr/bin/env bats
# Signatures of our commits, and of images under a policy.

bats_require_minimum_version 1.5.0
load helpers

setup() {
    requires root
    requires_tool ostree python3 gpg skopeo
    new_scratch
    new_repo "$REPO" archive
    local who
    for who in mine other; do
        mkdir -m 700 -- "$SCRATCH_DIR/$who"
        must gpg --homedir "$SCRATCH_DIR/$who" --batch --passphrase '' --quick-gen-key "$who <$who@example.com>" rsa2048 sign never
        must gpg --homedir "$SCRATCH_DIR/$who" --batch --output "$SCRATCH_DIR/$who.gpg" --export
    done
    KEY=$(gpg --homedir "$SCRATCH_DIR/mine" --list-keys --with-colons | awk -F: '/^fpr/ { print $10; exit }')
    must python3 "$INTEGRATION/image.py" files "$SCRATCH_DIR/1.tar" 3000 # its tar-split data has a commit of its own
    must python3 "$INTEGRATION/image.py" oci "$SCRATCH_DIR/oci" x "$SCRATCH_DIR/1.tar"
}

teardown() {
    local who
    for who in mine other; do
        gpgconf --homedir "$SCRATCH_DIR/$who" --kill all || :
    done
    drop_scratch
}

@test "--gpg-sign: every published commit is signed, what was there before too" {
    local before signature
    oi "--repo=$REPO" pull "oci:$SCRATCH_DIR/oci:x" x
    must skopeo --insecure-policy copy -q --dest-compress "oci:$SCRATCH_DIR/oci:x" "oci:$SCRATCH_DIR/oci:kept"
    oi "--repo=$REPO" pull --preserve-digests "oci:$SCRATCH_DIR/oci:kept" kept
    before=$(refs "$REPO")
    oi -1 "--repo=$REPO" verify --gpg-verify "--gpg-homedir=$SCRATCH_DIR/mine"
    assert_error "$SCRATCH_DIR/mine holds no *.gpg file"
    cp -- "$SCRATCH_DIR/mine.gpg" "$SCRATCH_DIR/mine/"
    cp -- "$SCRATCH_DIR/other.gpg" "$SCRATCH_DIR/other/"
    oi -4 "--repo=$REPO" verify --gpg-verify "--gpg-homedir=$SCRATCH_DIR/mine"
    assert_stdout_has 'has no good signature by a key in'
    oi "--repo=$REPO" "--record=$SCRATCH_DIR/record" pull "--gpg-sign=$KEY" "--gpg-homedir=$SCRATCH_DIR/mine" "oci:$SCRATCH_DIR/oci:x" x
    oi "--repo=$REPO" pull "--gpg-sign=$KEY" "--gpg-homedir=$SCRATCH_DIR/mine" "oci:$SCRATCH_DIR/oci:kept" kept
    assert_equal "$(refs "$REPO")" "$before" "a signature changed a commit"
    assert_equal "$(find "$REPO/objects" -name '*.commitmeta' | wc -l)" "$(wc -l <<<"$before")" "commits that are signed"
    oi "--repo=$REPO" verify --gpg-verify "--gpg-homedir=$SCRATCH_DIR/mine"
    oi -4 "--repo=$REPO" verify --gpg-verify "--gpg-homedir=$SCRATCH_DIR/other"
    for signature in "$REPO"/objects/*/*.commitmeta; do # of the image, or of one of its blobs
        mv -- "$signature" "$SCRATCH_DIR/signature"
        oi -4 "--repo=$REPO" verify --gpg-verify "--gpg-homedir=$SCRATCH_DIR/mine"
        mv -- "$SCRATCH_DIR/signature" "$signature"
    done
    assert_fsck "$REPO"
    ! grep -rqa 'PRIVATE KEY' "$SCRATCH_DIR/record" || fail "a key is in the record"
    ! grep -q gpg "$SCRATCH_DIR/record/commands.sh" || fail "the record wants the key"
    oi --quiet replay "$SCRATCH_DIR/record"
}

@test "--gpg-sign: a key that is not there, and an ostree that signs nothing" {
    oi -1 "--repo=$REPO" pull --gpg-sign=DEADBEEF "--gpg-homedir=$SCRATCH_DIR/mine" "oci:$SCRATCH_DIR/oci:x" x
    assert_error 'No gpg key found with ID DEADBEEF'
    assert_untouched "$REPO" ''
    oi -2 "--repo=$REPO" verify --gpg-verify
    assert_error '--gpg-homedir'
    printf '#!/bin/sh\n[ "$1" = --version ] || exec ostree "$@"\nostree --version | grep -v gpgme\n' >"$SCRATCH_DIR/ostree"
    chmod +x "$SCRATCH_DIR/ostree"
    oi -1 "--repo=$REPO" "--ostree=$SCRATCH_DIR/ostree" pull "--gpg-sign=$KEY" "--gpg-homedir=$SCRATCH_DIR/mine" "oci:$SCRATCH_DIR/oci:x" x
    assert_error 'built without the feature gpgme'
}

@test "--sign: where ostree has no such signatures, and where it has" {
    ! ostree --version | grep -q ed25519 || skip "this ostree has ed25519"
    oi -1 "--repo=$REPO" pull --sign=c2VjcmV0 "oci:$SCRATCH_DIR/oci:x" x
    assert_error 'built without the feature sign-ed25519'
    assert_stderr_lacks c2VjcmV0
    assert_untouched "$REPO" ''
    oi -2 "--repo=$REPO" pull --sign-type=ed25519 "oci:$SCRATCH_DIR/oci:x" x
    assert_error '--sign or --keys-file, which are not given'
    oi -2 copy --sign=c2VjcmV0 "oci:$SCRATCH_DIR/oci:x" "dir:$SCRATCH_DIR/out"
    assert_error 'dir: makes none'

    # An ostree that says it has: what the commits are asked for.
    cat >"$SCRATCH_DIR/ostree" <<'EOF'
#!/bin/sh
case $1 in
--version) ostree --version && echo ' - sign-ed25519' ;;
commit)
    echo "$*" >>"$0.calls"
    for a; do
        shift
        case $a in --sign=* | --sign-type=*) ;; *) set -- "$@" "$a" ;; esac
    done
    exec ostree "$@"
    ;;
*) exec ostree "$@" ;;
esac
EOF
    chmod +x "$SCRATCH_DIR/ostree"
    oi "--repo=$REPO" "--ostree=$SCRATCH_DIR/ostree" "--log-commands=$SCRATCH_DIR/log" pull --sign=c2VjcmV0 "oci:$SCRATCH_DIR/oci:x" x
    assert_equal "$(grep -c -- '--sign=c2VjcmV0 --sign-type=ed25519' "$SCRATCH_DIR/ostree.calls")" "$(refs "$REPO" | wc -l)" "commits that are to be signed"
    ! grep -q c2VjcmV0 "$SCRATCH_DIR/log" || fail "the key is in the log"

    # By a file, whose keys are in nobody's arguments.
    echo c2VjcmV0 >"$SCRATCH_DIR/keys"
    cat >"$SCRATCH_DIR/ostree" <<'EOF'
#!/bin/sh
echo "$*" >>"$0.calls"
case $1 in
--version) ostree --version && echo ' - sign-ed25519' ;;
sign) ;;
*) exec ostree "$@" ;;
esac
EOF
    : >"$SCRATCH_DIR/ostree.calls"
    oi -1 "--repo=$REPO" "--ostree=$SCRATCH_DIR/ostree" pull "--keys-file=$SCRATCH_DIR/none" "oci:$SCRATCH_DIR/oci:x" x
    assert_error "$SCRATCH_DIR/none"
    oi "--repo=$REPO" "--ostree=$SCRATCH_DIR/ostree" "--log-commands=$SCRATCH_DIR/log" pull "--keys-file=$SCRATCH_DIR/keys" "oci:$SCRATCH_DIR/oci:x" x
    assert_equal "$(grep -c -- "^sign .*--sign-type=ed25519 --keys-file=$SCRATCH_DIR/keys [0-9a-f]*\$" "$SCRATCH_DIR/ostree.calls")" "$(refs "$REPO" | wc -l)"
    ! grep -q c2VjcmV0 "$SCRATCH_DIR/log" "$SCRATCH_DIR/ostree.calls" || fail "the key is to be seen"
}

@test "policy.json: accepted, rejected, unsigned, in and out" {
    local who
    must skopeo --insecure-policy copy -q "oci:$SCRATCH_DIR/oci:x" "dir:$SCRATCH_DIR/plain"
    cp -r -- "$SCRATCH_DIR/plain" "$SCRATCH_DIR/signed"
    GNUPGHOME=$SCRATCH_DIR/mine must skopeo standalone-sign "$SCRATCH_DIR/plain/manifest.json" example.com/x:1 "$KEY" -o "$SCRATCH_DIR/signed/signature-1"
    for who in mine other; do
        printf '{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"%s","signedIdentity":{"type":"exactReference","dockerReference":"example.com/x:1"}}]}' \
            "$SCRATCH_DIR/$who.gpg" >"$SCRATCH_DIR/$who.json"
    done
    OI_POLICY=''
    oi -4 "--repo=$REPO" "--policy=$SCRATCH_DIR/mine.json" pull "dir:$SCRATCH_DIR/plain" x
    assert_error 'A signature was required, but no signature exists'
    oi -4 "--repo=$REPO" "--policy=$SCRATCH_DIR/other.json" pull "dir:$SCRATCH_DIR/signed" x
    assert_untouched "$REPO" ''
    oi "--repo=$REPO" "--policy=$SCRATCH_DIR/mine.json" pull "dir:$SCRATCH_DIR/signed" x
    oi -4 "--repo=$REPO" "--policy=$SCRATCH_DIR/other.json" push x "dir:$SCRATCH_DIR/out"
    oi "--repo=$REPO" "--policy=$SCRATCH_DIR/mine.json" push x "dir:$SCRATCH_DIR/out"
    cmp "$SCRATCH_DIR/signed/signature-1" "$SCRATCH_DIR/out/signature-1"
}
