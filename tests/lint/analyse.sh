#!/bin/sh
# clang-tidy and cppcheck over one C file, with the flags it is compiled with.
#   analyse.sh FILE       prints what they find, then "clean FILE" or "found by TOOL FILE"
file=$1
work=build/lint
set -- -std=c11 -D_GNU_SOURCE -I. -pthread '-DQUIRE_VERSION="0"' -DQUIRE_CUDA=0
case $file in
*avx512bf16*) set -- "$@" -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx512bf16 -mavx2 -mfma -mf16c ;;
*avx512*) set -- "$@" -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c ;;
*avx2*) set -- "$@" -mavx2 -mfma -mf16c ;;
esac

# What both tools see: settings, the preprocessed file with its comments, their versions.
key=$({
    cat .clang-tidy "$(dirname "$file")/.clang-tidy" tests/.clang-tidy "$0"
    clang -E -C -P "$@" "$file" || echo "$file"
    clang-tidy --version
} 2>/dev/null | sha256sum | cut -c1-40)
if [ -e "$work/seen/$key" ]; then
    echo "clean $file"
    exit 0
fi
log=$work/$(echo "$file" | tr / -).log
clean=1
if ! clang-tidy --quiet "$file" -- "$@" >"$log" 2>/dev/null || grep -q 'warning:\|error:' "$log"; then
    cat "$log"
    echo "found by clang-tidy $file"
    clean=0
fi
# It does not know macros of libraries, nor that the compiler already checks variadic calls.
if ! cppcheck --quiet --language=c --std=c11 --enable=warning,performance,portability --inline-suppr \
    --suppress=missingIncludeSystem --suppress=unknownMacro --suppress=varFuncNullUB \
    --suppress=invalidPointerCast --suppress=toomanyconfigs --max-configs=1 --error-exitcode=1 \
    -I. -D_GNU_SOURCE '-DQUIRE_VERSION="0"' -DQUIRE_CUDA=0 "$file" >"$log" 2>&1; then
    cat "$log"
    echo "found by cppcheck $file"
    clean=0
fi
rm -f "$log"
if [ $clean -eq 1 ]; then
    touch "$work/seen/$key"
    echo "clean $file"
fi
