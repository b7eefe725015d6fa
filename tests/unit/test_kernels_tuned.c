/* The table of `quire tune`: lines to text and back, what is none, and which line holds. */
#include "kernels/tuned.h"
#include "tests/test.h"

static struct tuned_line line_of(enum tuned_kind kind, int32_t out, int32_t token_count,
                                 int32_t columns)
{
    return (struct tuned_line){{kind, out, 4096}, token_count, {true, 1, columns, 1, 2, 48}};
}

static void a_line_comes_back_from_its_text(void)
{
    for (int kind = 0; kind < TUNED_KINDS; kind++) {
        struct tuned_line line = line_of((enum tuned_kind)kind, 28672, 64 + kind, 64), back;
        char text[TUNED_TEXT_MAX], again[TUNED_TEXT_MAX];

        line.way.few = kind != 1;
        tuned_print(&line, text);
        EXPECT(tuned_parse(&back, text));
        EXPECT_INT(back.product.kind, ==, kind);
        EXPECT_INT(back.way.few, ==, kind != 1);
        tuned_print(&back, again);
        EXPECT_STRING(again, text);
    }
    struct tuned_line line = line_of(TUNED_GATED, 28672, 64, 64);
    char text[TUNED_TEXT_MAX];
    tuned_print(&line, text);
    EXPECT_STRING(text, "gated 28672 4096 64: few 1 64 1 2 rows 48");
}

static void what_is_no_line_is_refused(void)
{
    static const char *const bad[] = {
        "",
        "bf16",
        "f16 28672 4096 64: few 1 64 1 2 rows 48",
        "bf16 28672 4096 64: some 1 64 1 2 rows 48",
        "bf16 28672 4096 64: few 1 64 1 2 rows 48 more",
        "bf16 28672 4096 64: few 1 64 1 2 rows",
        "bf16 28672 4096 0: few 1 64 1 2 rows 48",
        "bf16 -28672 4096 64: few 1 64 1 2 rows 48",
        "bf16 28672 4096 64: few 1 64 1 2 rows 0",
        "bf16 28672 4096 64 few 1 64 1 2 rows 48",
        "bf16 99999999999 4096 64: few 1 64 1 2 rows 48",
    };
    struct tuned_line line;

    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
        if (tuned_parse(&line, bad[i]))
            EXPECT_STRING(bad[i], "refused");
}

static int32_t columns_for(const struct tuned_table *table, enum tuned_kind kind, int32_t out,
                           int32_t token_count)
{
    const struct tuned_product product = {kind, out, 4096};
    const struct tuned_line *line = tuned_find(table, &product, token_count);

    return line == NULL ? 0 : line->way.columns;
}

static void a_line_holds_down_to_the_one_before(void)
{
    static const int32_t count[] = {64, 1, 256, 16, 1024};
    struct tuned_table table = {0};

    for (size_t i = 0; i < sizeof(count) / sizeof(*count); i++)
        for (int32_t out = 100; out <= 300; out += 100) {
            struct tuned_line line = line_of(TUNED_BF16, out, count[i], count[i] * 8);
            EXPECT(tuned_add(&table, &line));
        }
    EXPECT_INT(table.count, ==, 15);
    EXPECT_INT(columns_for(&table, TUNED_BF16, 200, 1), ==, 8);
    EXPECT_INT(columns_for(&table, TUNED_BF16, 200, 2), ==, 128);
    EXPECT_INT(columns_for(&table, TUNED_BF16, 200, 64), ==, 512);
    EXPECT_INT(columns_for(&table, TUNED_BF16, 200, 65), ==, 2048);
    EXPECT_INT(columns_for(&table, TUNED_BF16, 200, 1024), ==, 8192);
    EXPECT_INT(columns_for(&table, TUNED_BF16, 200, 1025), ==, 0);
    EXPECT_INT(columns_for(&table, TUNED_BF16, 300, 1025), ==, 0);
    EXPECT_INT(columns_for(&table, TUNED_BF16, 150, 1), ==, 0);
    EXPECT_INT(columns_for(&table, TUNED_GATED, 200, 1), ==, 0);
    tuned_release(&table);
}

static void a_line_takes_the_place_of_its_like(void)
{
    struct tuned_table table = {0};

    for (int32_t i = 1; i <= 3; i++) {
        struct tuned_line line = line_of(TUNED_F32, 100, 64, i);
        EXPECT(tuned_add(&table, &line));
    }
    EXPECT_INT(table.count, ==, 1);
    EXPECT_INT(columns_for(&table, TUNED_F32, 100, 64), ==, 3);
    tuned_release(&table);
}

/* ---- configs/tune ---- */

/* One of the built-in tables' devices, with what the files say of it. */
struct section {
    char device[TUNED_TEXT_MAX];
    struct tuned_table table;
    int32_t line_count;
};

enum { SECTIONS_MAX = 32 };

static struct section *section_of(struct section *section, const char *device)
{
    int32_t i = 0;

    while (i < SECTIONS_MAX - 1 && section[i].device[0] != '\0' &&
           strcmp(section[i].device, device) != 0)
        i++;
    snprintf(section[i].device, sizeof(section[i].device), "%s", device);
    return &section[i];
}

/* Each line is one, of a device that was named before it. */
static void read_builtin(struct section *list)
{
    struct section *section = NULL;
    struct tuned_line line;

    for (const char *at = tuned_builtin; *at != '\0'; at += strcspn(at, "\n") + 1) {
        char text[TUNED_TEXT_MAX];

        snprintf(text, sizeof(text), "%.*s", (int)strcspn(at, "\n"), at);
        if (text[0] == '\0' || text[0] == '#')
            continue;
        if (strncmp(text, "device ", 7) == 0) {
            section = section_of(list, text + 7);
            continue;
        }
        if (section == NULL || !tuned_parse(&line, text)) {
            EXPECT_STRING(text, "a line of a table, behind its device");
            continue;
        }
        section->line_count++;
        EXPECT(tuned_add(&section->table, &line));
        if (section->table.count != section->line_count)
            EXPECT_STRING(text, "the only line for its product and tokens");
        section->line_count = section->table.count;
    }
}

static void the_tables_that_come_with_the_source_are_sound(void)
{
    struct section list[SECTIONS_MAX] = {0};
    bool has_h200 = false;

    read_builtin(list);
    for (int32_t i = 0; i < SECTIONS_MAX; i++) {
        const struct section *section = &list[i];

        if (section->device[0] == '\0')
            continue;
        has_h200 = has_h200 || strcmp(section->device, "NVIDIA H200") == 0;
        if (strncmp(section->device, "NVIDIA ", 7) != 0 || strchr(section->device, ',') != NULL ||
            section->line_count == 0)
            EXPECT_STRING(section->device,
                          "a device's name as describe() begins, and lines for it");
        tuned_release(&list[i].table);
    }
    EXPECT(has_h200);
}

int main(void)
{
    TEST(a_line_comes_back_from_its_text);
    TEST(what_is_no_line_is_refused);
    TEST(a_line_holds_down_to_the_one_before);
    TEST(a_line_takes_the_place_of_its_like);
    TEST(the_tables_that_come_with_the_source_are_sound);
    return test_report();
}
