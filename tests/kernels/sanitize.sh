#!/bin/sh
# Tests of kernels under compute-sanitizer: memcheck, racecheck and synccheck, kernels of Hopper and
# of any GPU. Usage: sanitize.sh TEST...; ends with "N passed, N failed".
#
# SHARES processes (default 8) take the long tests' cases in turn (tests/test.h), TOOLS and BACKENDS
# say which. One of test_steps' launches is refused on purpose, which is no error to report.
SHARES=${SHARES:-8}
TOOLS=${TOOLS:-memcheck racecheck synccheck}
BACKENDS=${BACKENDS:-cuda portable}
passed=0 failed=0
logs=$(mktemp -d) || exit 1
trap 'rm -rf "$logs"' EXIT

# check TOOL BACKEND TEST SHARE/SHARES LOG
check() {
    TEST_SHARE=$4 compute-sanitizer --error-exitcode 1 --report-api-errors no --tool "$1" "$3" \
        --backend "$2" >"$5" 2>&1 || echo "$1 $3 --backend $2, TEST_SHARE=$4" >>"$5.failed"
}

# check_all TOOL BACKEND TEST: its shares side by side; those of tests that have none are one.
check_all() {
    case $3 in
    *attention* | *sample*) shares=$SHARES ;;
    *) shares=1 ;;
    esac
    rm -f "$logs"/*
    share=0
    while [ $share -lt "$shares" ]; do
        check "$1" "$2" "$3" $share/"$shares" "$logs/$share" &
        share=$((share + 1))
    done
    wait
    if ls "$logs"/*.failed >/dev/null 2>&1; then
        failed=$((failed + 1))
        for log in "$logs"/*.failed; do
            cat "$log" && tail -40 "${log%.failed}"
        done
    else
        passed=$((passed + 1))
        echo "$1 ${3##*/} $2: silent"
    fi
}

for tool in $TOOLS; do
    for backend in $BACKENDS; do
        for test in "$@"; do
            check_all "$tool" "$backend" "$test"
        done
    done
done
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
