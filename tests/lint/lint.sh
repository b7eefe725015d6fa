#!/bin/sh
# Everything that a machine can say about the sources. Prints what it finds, then one line a check,
# and ends with "N passed, N failed".
#
# clang-tidy and cppcheck are kept by what they saw (the preprocessed file and their settings) under
# build/lint, so that a second run looks only at what changed.
export LC_ALL=C
cd "$(dirname "$0")/../.." || exit 1
mkdir -p build/lint/seen
here=tests/lint
work=build/lint
passed=0 failed=0

# check NAME COUNT: COUNT finds were printed.
check() {
    if [ "$2" -eq 0 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        printf 'FAILED %s: %s\n' "$1" "$2"
    fi
}

sources() {
    # What git knows and what is new; not what was deleted.
    git ls-files --cached --others --exclude-standard -- "$@" | while read -r file; do
        [ -e "$file" ] && echo "$file"
    done
}
code=$(sources '*.c' '*.h' '*.cu' '*.cuh')
c_files=$(sources '*.c')

# ---- our own rules ----
sh $here/rules.sh
check "rules find what they are for" $?
# shellcheck disable=SC2086
awk -f $here/tidy.awk $code >$work/tidy.log
sed 's/^\([a-z-]*\) \(.*\)$/\2 [\1]/' $work/tidy.log
for rule in line-length file-length function-length first-comment include-direction include-library \
    header-comment conditional-in-function open-ends own-machine words print allocation purity \
    environment unbounded typedef; do
    check "$rule" "$(grep -c "^$rule " $work/tidy.log)"
done
own=$(sources '*.md' '*.sh' '*.py' '*.yaml' '*.service' Makefile '*.awk' '.ci/*' | grep -v '^tests/lint/' |
    xargs grep -nE '/(work|root)/|/home/')
[ -z "$own" ] || echo "$own"
check "own machine, other files" "$(printf '%s' "$own" | grep -c .)"
for pillar in kvcache scheduler; do
    density=$(awk -f $here/density.awk $pillar/*.c)
    check "assertions of $pillar" $?
    echo "$pillar: $density"
done

# ---- format ----
# shellcheck disable=SC2086
clang-format --dry-run -Werror $code 2>$work/format.log
grep -E 'error:' $work/format.log | sed 's/ \[-W.*//' | sort -t: -k1,1 -u
check format "$(grep -E 'error:' $work/format.log | cut -d: -f1 | sort -u | wc -l)"

# ---- what is made from tables, and that it was made ----
make -s build >$work/build.log 2>&1 || cat $work/build.log
made() {
    build/quire docs "$1" >$work/made 2>&1 && diff -u "$2" $work/made | head -20
    build/quire docs "$1" 2>/dev/null | cmp -s - "$2"
    check "$2 is what 'quire docs $1' prints" $?
}
made config docs/config.md
made yaml configs/quire.yaml
made api docs/api.md
# Both tables are printed into docs/api.md: what is in the headers must be in the page.
unnamed=0
for name in $(sed -n 's/^ *[A-Z]*(METRIC_[A-Z_]*, "\([a-z_0-9]*\)".*/\1/p' server/metrics.h | sort -u); do
    grep -qF "quire_$name" docs/api.md && continue
    echo "docs/api.md names no metric quire_$name"
    unnamed=$((unnamed + 1))
done
check "metrics that docs name" $unnamed

# ---- links between pages ----
broken=$(sources '*.md' | while read -r page; do
    grep -oE '\]\([^):#]+[)#]' "$page" | sed 's/^](//; s/[)#]$//' | while read -r target; do
        [ -e "$(dirname "$page")/$target" ] || echo "$page: no $target"
    done
done)
[ -z "$broken" ] || echo "$broken"
check "links in docs" "$(printf '%s' "$broken" | grep -c .)"

# ---- options that nobody reads ----
unread=0
for member in $(sed -n 's/.*OPTION([A-Z]*, [A-Z]*, \([a-z_]*\),.*/\1/p' server/config.h); do
    # shellcheck disable=SC2046
    grep -qE "(config|config\([a-z]+\))(->|\.)$member\>" $(sources 'server/*.c' | grep -v '/config_') && continue
    echo "server/config.h: nobody reads the option $member"
    unread=$((unread + 1))
done
check "options that are read" $unread

# ---- clang-tidy and cppcheck ----
# shellcheck disable=SC2086
printf '%s\n' $c_files | grep -vE '^tests/(fuzz|unit/formats_golden)' |
    xargs -P "$(nproc)" -n 1 sh $here/analyse.sh 2>&1 | tee $work/analyse.log | grep -v '^clean '
check clang-tidy "$(grep -c '^found by clang-tidy ' $work/analyse.log)"
check cppcheck "$(grep -c '^found by cppcheck ' $work/analyse.log)"
check "files analysed" "$([ "$(grep -c '^clean \|^found by clang-tidy' $work/analyse.log)" -gt 0 ]; echo $?)"

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
