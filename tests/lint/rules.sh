#!/bin/sh
# Does every rule of tidy.awk find what it is for? Writes files that break each of them and one that
# breaks none. Prints the rules that kept silent, or spoke without a reason.
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder" || exit 1
mkdir -p kvcache kernels scheduler server tests

cat >kvcache/bad.c <<'END'
#include "scheduler/scheduler.h"
#include <microhttpd.h>
typedef struct bad bad;
int bad_thing(void)
{
#ifdef NDEBUG
    char *text = malloc(1); /* TODO: free */
#endif
    printf("%s", getenv("X"));
    strcpy(text, "/root/x");
    return rand();
}
/* 3456789 123456789 123456789 123456789 123456789 123456789 123456789 123456789 123456789 123456789 */
END
cat >kernels/bad.h <<'END'
/* A request. */
int kernels_bad(void);

int kernels_uncommented(void);
END
{
    echo '/* Long. */'
    echo 'int long_one(void)'
    echo '{'
    i=0
    while [ $i -lt 800 ]; do echo '    i++;'; i=$((i + 1)); done
    echo '}'
} >scheduler/long.c
cat >kvcache/good.c <<'END'
/* Breaks nothing, though it speaks of malloc(), printf() and "getenv(". */
#include "kvcache/kvcache.h"

struct kvcache *kvcache_create(const struct kvcache_config *config)
{
    return calloc(1, config->bytes); /* "malloc(" */
}

#ifdef KVCACHE_CHECK
/* Whole functions may be chosen. */
int kvcache_checked(void)
{
    return strcmp("printf(", "TO" "DO");
}
#endif
END

LC_ALL=C awk -f "$here/tidy.awk" kvcache/bad.c kernels/bad.h scheduler/long.c >finds
code=0
for rule in line-length file-length function-length first-comment include-direction include-library \
    header-comment conditional-in-function open-ends own-machine words print allocation purity \
    environment unbounded typedef; do
    grep -q "^$rule " finds || { echo "the rule $rule finds nothing"; code=1; }
done
LC_ALL=C awk -f "$here/tidy.awk" kvcache/good.c >finds
if [ -s finds ]; then
    cat finds
    code=1
fi
exit $code
