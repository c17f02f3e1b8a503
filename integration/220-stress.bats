#!/usr/bin/env bats
# The short form of make test-stress: see stress.py.

bats_require_minimum_version 1.5.0
load helpers

# What the runs side by side meet now and then, at the one moment that matters.
@test "a blob goes while an image is copied [the copy starts over]" {
    requires_tool ostree python3
    fixture counts
    local repo=$BATS_TEST_TMPDIR/repo fake=$BATS_TEST_TMPDIR/ostree
    new_repo "$repo" archive
    oi "--repo=$repo" pull "oci:$FIXTURES/counts/oci:10" first
    # The second list of refs is that of a copy which holds the lock. It lists those only that it needs.
    cat >"$fake" <<EOF
#!/bin/sh
if [ "\$1" = refs ]; then
    echo >>"$fake.lists"
    [ "\$(wc -l <"$fake.lists")" != 2 ] || ostree refs "--repo=$repo" --delete "ociimage/$(manifest_layers "$FIXTURES/counts/oci" 10)"
fi
exec ostree "\$@"
EOF
    chmod 755 -- "$fake"
    oi "--repo=$repo" "--ostree=$fake" pull "oci:$FIXTURES/counts/oci:10" second
    assert_stderr_has 'was removed from the repository while the image was copied'
    oi "--repo=$repo" verify
    assert_fsck "$repo"
    assert_clean "$repo"
}

@test "copies, removals and prunes side by side" {
    requires root
    requires_tool ostree tar python3
    run timeout 600 python3 "$INTEGRATION/stress.py" "--program=$OI" "--work=$SCRATCH" --seconds=5
    echo "$output"
    [[ $status == 0 ]] || fail "status $status"
}
