#!/usr/bin/env bash
# Runs the tests of a build and counts their cases: scripts/test.sh [BUILD_DIR [LABEL]]
#
# LABEL: those with this label only (tests/CMakeLists.txt); without one, all but `large`.
# A line per suite, the log of every suite that fails, and at the very end 'N passed, N failed'.
# A suite that crashes, times out or does not start counts as one failed case.
set -uo pipefail

build=${1:-build}
label=${2:-}
which=(--label-exclude '^large$')
[[ -n $label ]] && which=(--label-regex "^$label\$")
log=$build/Testing/Temporary/LastTest.log

# Two suites of several threads each run at once: a thread that waits must not spin on the other's core.
export OMP_WAIT_POLICY=passive

rm -f "$log"
ctest --test-dir "$build" --parallel 2 --output-on-failure --no-tests=error "${which[@]}"
status=$?

if [[ ! -f $log ]]; then
    echo "0 passed, 1 failed"
    exit 1
fi

# An example is one case. Every other suite, cmocka's and Python's, ends with '[  PASSED  ] N test(s)' and, if need be, '[  FAILED  ] N test(s)'.
awk -v status="$status" '
    function count(line, word,    n) {
        n = 0
        while (match(line, "\\[  " word "  \\] [0-9]+ test\\(s\\)")) {
            n += substr(line, RSTART + 13, RLENGTH - 13)
            line = substr(line, RSTART + RLENGTH)
        }
        return n
    }
    /^[0-9]+\/[0-9]+ Testing: / { suite_passed = suite_failed = ok = 0; example = $3 ~ /^example_/ }
    { suite_passed += count($0, "PASSED"); suite_failed += count($0, "FAILED") }
    /^Test Passed\.$/ { ok = 1; suite_passed += example }
    /^".*" end time: / {
        if ((!ok || suite_passed == 0) && suite_failed == 0)
            suite_failed = 1
        passed += suite_passed
        failed += suite_failed
        suite_passed = suite_failed = 0
    }
    END {
        if (status != 0 && failed == 0)
            failed = 1
        printf "%d passed, %d failed\n", passed, failed
        exit failed > 0
    }
' "$log"
