#!/bin/sh
# Runs test programs one after another and adds up their closing lines.
#   run.sh OUT SIM_SEEDS PROGRAM...
out=$1 seeds=$2
shift 2
passed=0 failed=0 skipped=0
mkdir -p "$out/log"
for program; do
    name=$(basename "$program")
    log=$out/log/$name.log
    case $name in
    sim_scheduler) set -- 1 "$seeds" ;;
    *) set -- ;;
    esac
    start=$(date +%s)
    "$program" "$@" >"$log" 2>&1
    code=$?
    line=$(grep -E '^[0-9]+ passed, [0-9]+ failed(, [0-9]+ skipped)?$' "$log" | tail -1)
    printf '%-28s %4ss  %s\n' "$name" "$(($(date +%s) - start))" "${line:-no result, exit code $code}"
    grep '^skipped ' "$log"
    # shellcheck disable=SC2086
    set -- $line
    passed=$((passed + ${1:-0}))
    failed=$((failed + ${3:-0}))
    skipped=$((skipped + ${5:-0}))
    if [ $code -ne 0 ] || [ -z "$line" ]; then
        [ "${3:-0}" -gt 0 ] || failed=$((failed + 1))
        tail -40 "$log"
    fi
done
if [ $skipped -gt 0 ]; then
    echo "$passed passed, $failed failed, $skipped skipped"
else
    echo "$passed passed, $failed failed"
fi
[ $failed -eq 0 ]
