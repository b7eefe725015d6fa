#!/bin/sh
# clang-tidy and cppcheck over one C file, with the flags it is compiled with.
#   analyse.sh FILE       prints what they find, then "clean FILE" or "found by TOOL FILE"
file=$1
work=build/lint
flags="-std=c11 -D_GNU_SOURCE -I. -pthread -DQUIRE_VERSION=\"0\" -DQUIRE_CUDA=0"
case $file in
*avx512bf16*) flags="$flags -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx512bf16 -mavx2 -mfma -mf16c" ;;
*avx512*) flags="$flags -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c" ;;
*avx2*) flags="$flags -mavx2 -mfma -mf16c" ;;
esac

# shellcheck disable=SC2086
key=$({ cat .clang-tidy "$(dirname "$file")/.clang-tidy" tests/.clang-tidy "$0" ; clang -E -C -P $flags "$file" || echo "$file"; clang-tidy --version; } 2>/dev/null | sha256sum | cut -c1-40)
if [ -e "$work/seen/$key" ]; then
    echo "clean $file"
    exit 0
fi
log=$work/$(echo "$file" | tr / -).log
clean=1
# shellcheck disable=SC2086
if ! clang-tidy --quiet "$file" -- $flags >"$log" 2>/dev/null || grep -q 'warning:\|error:' "$log"; then
    cat "$log"
    echo "found by clang-tidy $file"
    clean=0
fi
# It knows nothing of intrinsics, and asserts are ours to keep.
if ! cppcheck --quiet --language=c --std=c11 --enable=warning,performance,portability --inline-suppr \
    --suppress=missingIncludeSystem --suppress=unknownMacro \
    --suppress=varFuncNullUB --suppress=invalidPointerCast --suppress=toomanyconfigs --max-configs=1 \
    --error-exitcode=1 -I. -D_GNU_SOURCE '-DQUIRE_VERSION="0"' -DQUIRE_CUDA=0 "$file" >"$log" 2>&1; then
    cat "$log"
    echo "found by cppcheck $file"
    clean=0
fi
rm -f "$log"
if [ $clean -eq 1 ]; then
    touch "$work/seen/$key"
    echo "clean $file"
fi
