#!/usr/bin/env bats
# The short form of make test-crash: see crash.py.

bats_require_minimum_version 1.5.0
load helpers

@test "runs that are killed or interrupted [at random moments]" {
    requires root
    requires_tool ostree tar python3
    run timeout 600 python3 "$INTEGRATION/crash.py" "--program=$OI" "--work=$SCRATCH" --kills=16 --signals=6
    echo "$output"
    [[ $status == 0 ]] || fail "status $status"
}
