#!/usr/bin/env bats
# The short form of make test-stress: see stress.py.

bats_require_minimum_version 1.5.0
load helpers

@test "copies, removals and prunes side by side" {
    requires root
    requires_tool ostree tar python3
    run timeout 600 python3 "$INTEGRATION/stress.py" "--program=$OI" "--work=$SCRATCH" --seconds=5
    echo "$output"
    [[ $status == 0 ]] || fail "status $status"
}
