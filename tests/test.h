/* The harness: tests are functions named as the sentence that they prove.
 *
 *     static void grow_is_all_or_nothing(void) { EXPECT(...); EXPECT_INT(a, ==, b); }
 *     int main(void)
 *     {
 *         TEST(grow_is_all_or_nothing);
 *         return test_report();
 *     }
 *
 * A program prints a line for each failed check and ends with "N passed, N failed"
 * (", N skipped" where SKIP was used: it says why). Exit code 1 on a failure. TEST_ONLY=TEXT in the
 * environment runs those alone whose names contain it. TEST_SHARE=K/N does of a long test's cases
 * each N-th, from the K-th on, so that slow tools can have them in N processes.
 */
#ifndef TESTS_TEST_H
#define TESTS_TEST_H

#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int test_passed, test_failed, test_skipped;
static int test_check_failed; /* in the running test */
static int test_was_skipped;

#define EXPECT(condition)                                                                          \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            printf("%s:%d: %s: not true: %s\n", __FILE__, __LINE__, __func__, #condition);         \
            test_check_failed++;                                                                   \
        }                                                                                          \
    } while (0)

#define EXPECT_INT(left, operator, right)                                                          \
    do {                                                                                           \
        int64_t test_left = (int64_t)(left), test_right = (int64_t)(right);                        \
        if (!(test_left operator test_right)) {                                                    \
            printf("%s:%d: %s: %s is %" PRId64 ", not " #operator" %" PRId64 "\n", __FILE__,       \
                   __LINE__, __func__, #left, test_left, test_right);                              \
            test_check_failed++;                                                                   \
        }                                                                                          \
    } while (0)

#define EXPECT_STRING(left, right)                                                                 \
    do {                                                                                           \
        const char *test_left = (left), *test_right = (right);                                     \
        if (test_left == NULL || strcmp(test_left, test_right) != 0) {                             \
            printf("%s:%d: %s: %s is \"%s\", not \"%s\"\n", __FILE__, __LINE__, __func__, #left,   \
                   test_left == NULL ? "(NULL)" : test_left, test_right);                          \
            test_check_failed++;                                                                   \
        }                                                                                          \
    } while (0)

/* Leaves the running test: what it needs is not here. */
#define SKIP(why)                                                                                  \
    do {                                                                                           \
        printf("skipped %s: %s\n", __func__, why);                                                 \
        test_was_skipped = 1;                                                                      \
        return;                                                                                    \
    } while (0)

/* Whether case `index` of a long test is this process's. */
static inline bool test_takes(size_t index)
{
    const char *share = getenv("TEST_SHARE");
    char *end = NULL;

    if (share == NULL)
        return true;
    unsigned long first = strtoul(share, &end, 10);
    unsigned long count = *end == '/' ? strtoul(end + 1, &end, 10) : 0;
    if (count == 0 || first >= count || *end != '\0') {
        printf("TEST_SHARE is no K/N with K below N: %s\n", share);
        exit(1);
    }
    return index % count == first;
}

#define TEST(function) test_run(#function, function)

static inline void test_run(const char *name, void (*function)(void))
{
    const char *only = getenv("TEST_ONLY");

    if (only != NULL && strstr(name, only) == NULL)
        return;
    test_check_failed = 0;
    test_was_skipped = 0;
    function();
    if (test_check_failed > 0) {
        test_failed++;
        printf("FAILED %s\n", name);
    } else if (test_was_skipped) {
        test_skipped++;
    } else {
        test_passed++;
    }
    fflush(stdout);
}

static inline int test_report(void)
{
    if (getenv("TEST_ONLY") != NULL && test_passed + test_failed + test_skipped == 0) {
        printf("no test has TEST_ONLY's text in its name\n");
        return 1;
    }
    if (test_skipped > 0)
        printf("%d passed, %d failed, %d skipped\n", test_passed, test_failed, test_skipped);
    else
        printf("%d passed, %d failed\n", test_passed, test_failed);
    return test_failed > 0 ? 1 : 0;
}

#endif
