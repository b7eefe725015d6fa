/* The GGUF reader: what it accepts, and every kind of broken file that it refuses. */
#include "model/load/gguf.h"
#include "tests/gguf_writer.h"
#include "tests/test.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

static char message[512];
static char folder[] = "/tmp/quire-gguf-XXXXXX";

/* A small good file: three keys, two tensors. */
static void write_good(struct gguf_writer *writer)
{
    static const float values[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    static const int64_t dim[2] = {4, 2};

    gguf_write_text(writer, "general.architecture", "test");
    gguf_write_u32(writer, "test.count", 7);
    gguf_write_list(writer, "test.list", GGUF_F32, values, sizeof(float), 8);
    gguf_write_tensor(writer, "first.weight", 0, 2, dim, values, sizeof(values));
    gguf_write_tensor(writer, "second.weight", 0, 1, dim, values, 4 * sizeof(float));
}

/* Parses what was written and frees the writer; the status. */
static int parse(struct gguf_writer *writer, struct gguf **gguf, unsigned char **data)
{
    size_t bytes;
    int status;

    *data = gguf_writer_finish(writer, &bytes);
    gguf_writer_free(writer);
    message[0] = '\0';
    status = gguf_open_memory(gguf, *data, bytes, message, sizeof(message));
    return status;
}

static void expect_refusal(struct gguf_writer *writer, int status, const char *reason)
{
    struct gguf *gguf;
    unsigned char *data;

    EXPECT_INT(parse(writer, &gguf, &data), ==, status);
    EXPECT(gguf == NULL);
    if (strstr(message, reason) == NULL || strchr(message, '\n') != NULL)
        EXPECT_STRING(message, reason);
    gguf_close(gguf);
    free(data);
}

/* ---- accepted ---- */

static void keys_and_tensors_are_found_by_name(void)
{
    struct gguf_writer writer = {0};
    struct gguf *gguf;
    unsigned char *data;
    const struct gguf_tensor *tensor;
    int64_t number = 0;
    double real = 0;
    float value;

    write_good(&writer);
    EXPECT_INT(parse(&writer, &gguf, &data), ==, 0);
    EXPECT_INT(gguf->tensor_count, ==, 2);
    EXPECT(gguf_find(gguf, "test.missing") == NULL);
    EXPECT(gguf_int(gguf_find(gguf, "test.count"), 0, &number));
    EXPECT_INT(number, ==, 7);
    EXPECT(gguf_real(gguf_find(gguf, "test.list"), 7, &real));
    EXPECT(real == 8.0);
    EXPECT(!gguf_real(gguf_find(gguf, "test.list"), 8, &real));
    EXPECT(!gguf_int(gguf_find(gguf, "test.list"), 0, &number));
    EXPECT_INT(gguf_text(gguf_find(gguf, "general.architecture")).count, ==, 4);
    EXPECT_INT(gguf_text(gguf_find(gguf, "test.count")).count, ==, 0);
    tensor = gguf_tensor(gguf, "second.weight");
    EXPECT(gguf_tensor(gguf, "third.weight") == NULL);
    EXPECT_INT(tensor->dim[0], ==, 4);
    EXPECT_INT(tensor->dim[1], ==, 1);
    memcpy(&value, tensor->data + 3 * sizeof(float), sizeof(value));
    EXPECT(value == 4.0f);
    gguf_close(gguf);
    free(data);
}

static void version_2_is_the_same(void)
{
    struct gguf_writer writer = {.version = 2};
    struct gguf *gguf;
    unsigned char *data;

    write_good(&writer);
    EXPECT_INT(parse(&writer, &gguf, &data), ==, 0);
    EXPECT_INT(gguf->part[0].version, ==, 2);
    gguf_close(gguf);
    free(data);
}

static void integers_of_every_type_are_read(void)
{
    static const enum gguf_type types[] = {GGUF_U8,  GGUF_I8,  GGUF_U16, GGUF_I16,
                                           GGUF_U32, GGUF_I32, GGUF_U64, GGUF_I64};
    struct gguf_writer writer = {0};
    struct gguf *gguf;
    unsigned char *data;
    int64_t number = 0;
    bool truth = false;

    gguf_write_int(&writer, "key.0", GGUF_U8, 100);
    for (int i = 1; i < 8; i++) {
        char key[24];

        snprintf(key, sizeof(key), "key.%d", i);
        gguf_write_int(&writer, key, types[i], i % 2 == 1 ? -100 : 100);
    }
    gguf_write_int(&writer, "huge", GGUF_U64, -1);
    gguf_write_int(&writer, "true", GGUF_BOOL, 1);
    EXPECT_INT(parse(&writer, &gguf, &data), ==, 0);
    for (int i = 0; i < 8; i++) {
        char key[24];

        snprintf(key, sizeof(key), "key.%d", i);
        EXPECT(gguf_int(gguf_find(gguf, key), 0, &number));
        EXPECT_INT(number, ==, i % 2 == 1 ? -100 : 100);
    }
    EXPECT(!gguf_int(gguf_find(gguf, "huge"), 0, &number));
    EXPECT(!gguf_int(gguf_find(gguf, "true"), 0, &number));
    EXPECT(gguf_truth(gguf_find(gguf, "true"), 0, &truth) && truth);
    EXPECT(gguf_truth(gguf_find(gguf, "key.3"), 0, &truth) && truth);
    gguf_close(gguf);
    free(data);
}

static void lists_of_strings_are_walked(void)
{
    static const char *const words[] = {"one", "", "three"};
    struct gguf_writer writer = {0};
    struct gguf *gguf;
    unsigned char *data;
    const unsigned char *cursor;

    gguf_write_texts(&writer, "words", words, 3);
    EXPECT_INT(parse(&writer, &gguf, &data), ==, 0);
    EXPECT_INT(gguf_find(gguf, "words")->count, ==, 3);
    cursor = gguf_find(gguf, "words")->data;
    for (int i = 0; i < 3; i++) {
        struct gguf_string word = gguf_next(&cursor);

        EXPECT(word.count == strlen(words[i]) && memcmp(word.byte, words[i], word.count) == 0);
    }
    gguf_close(gguf);
    free(data);
}

static void every_supported_type_has_its_size(void)
{
    for (int format = 0; format < FORMAT_COUNT; format++) {
        const struct format_info *info = format_info((enum format)format);
        struct gguf_writer writer = {0};
        unsigned char block[3 * 256 * 4] = {0}, *data;
        int64_t dim[2] = {info->block_values, 3};
        struct gguf *gguf;

        gguf_write_tensor(&writer, "a", (uint32_t)info->gguf_id, 2, dim, block,
                          3 * (size_t)info->block_bytes);
        gguf_write_tensor(&writer, "b", 0, 1, dim, block, (size_t)dim[0] * 4);
        EXPECT_INT(parse(&writer, &gguf, &data), ==, 0);
        if (gguf != NULL)
            EXPECT_INT(gguf_tensor(gguf, "a")->bytes, ==, 3 * info->block_bytes);
        gguf_close(gguf);
        free(data);
    }
}

static void another_alignment_is_kept(void)
{
    struct gguf_writer writer = {.alignment = 64};
    struct gguf *gguf;
    unsigned char *data;

    gguf_write_u32(&writer, "general.alignment", 64);
    write_good(&writer);
    EXPECT_INT(parse(&writer, &gguf, &data), ==, 0);
    if (gguf != NULL)
        EXPECT_INT((gguf_tensor(gguf, "second.weight")->data - data) % 64, ==, 0);
    gguf_close(gguf);
    free(data);
}

/* ---- refused: the head ---- */

static void files_that_are_something_else_are_refused(void)
{
    static const char *const text[][2] = {
        {"", "ends at byte 0"},
        {"GG", "ends at byte 2"},
        {"PK\3\4 a zip file that is long enough", "not a GGUF file"},
        {"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"},
        {"GGUF", "ends at byte 4"},
        {"GGUF\3\0\0", "ends at byte 7"},
    };
    static const size_t bytes[] = {0, 2, 36, 43, 4, 7};
    struct gguf *gguf;

    for (size_t i = 0; i < sizeof(bytes) / sizeof(*bytes); i++) {
        EXPECT_INT(gguf_open_memory(&gguf, text[i][0], bytes[i], message, sizeof(message)), ==,
                   -EINVAL);
        EXPECT(strstr(message, text[i][1]) != NULL);
    }
}

static void other_versions_are_refused(void)
{
    struct gguf_writer one = {.version = 1}, four = {.version = 4}, swapped = {.version = 3u << 24};

    write_good(&one);
    expect_refusal(&one, -ENOTSUP, "version 1");
    write_good(&four);
    expect_refusal(&four, -ENOTSUP, "version 4");
    write_good(&swapped);
    expect_refusal(&swapped, -EINVAL, "other byte order");
}

static void counts_beyond_the_file_are_refused(void)
{
    static const int64_t lies[] = {1, 100, 1 << 20, INT64_MAX / 2, -100, INT64_MIN / 2};

    for (size_t i = 0; i < sizeof(lies) / sizeof(*lies); i++) {
        struct gguf_writer keys = {.value_lie = lies[i]}, tensors = {.tensor_lie = lies[i]};

        write_good(&keys);
        expect_refusal(&keys, -EINVAL, "");
        write_good(&tensors);
        expect_refusal(&tensors, -EINVAL, "");
    }
}

/* ---- refused: keys ---- */

static void raw_key(struct gguf_writer *writer, const char *key, uint32_t type, const void *data,
                    size_t bytes)
{
    uint64_t count = strlen(key);

    writer->value_count++;
    gguf_write_raw(writer, &count, sizeof(count));
    gguf_write_raw(writer, key, strlen(key));
    gguf_write_raw(writer, &type, sizeof(type));
    gguf_write_raw(writer, data, bytes);
}

static void keys_that_are_wrong_are_refused(void)
{
    static const uint64_t zero[2], long_string = 1u << 30;
    struct gguf_writer empty = {0}, twice = {0}, type = {0}, truth = {0}, overlong = {0};

    raw_key(&empty, "", GGUF_U64, zero, 8);
    expect_refusal(&empty, -EINVAL, "is empty");
    gguf_write_u32(&twice, "same", 1);
    gguf_write_u32(&twice, "other", 1);
    gguf_write_u32(&twice, "same", 1);
    expect_refusal(&twice, -EINVAL, "key same is there twice");
    raw_key(&type, "strange", 13, zero, 8);
    expect_refusal(&type, -EINVAL, "value type 13");
    raw_key(&truth, "truth", GGUF_BOOL, "\2", 1);
    expect_refusal(&truth, -EINVAL, "a bool is 0 or 1");
    raw_key(&overlong, "text", GGUF_STRING, &long_string, 8);
    expect_refusal(&overlong, -EINVAL, "text at byte");
}

struct list_head {
    uint32_t type;
    uint64_t count;
} __attribute__((packed));

static void lists_that_are_wrong_are_refused(void)
{
    static const struct {
        struct list_head head;
        const char *reason;
    } cases[] = {
        {{GGUF_ARRAY, 1}, "array of arrays"}, {{99, 1}, "value type 99"},
        {{GGUF_U8, UINT64_MAX}, "elements"},  {{GGUF_F64, (uint64_t)1 << 61}, "elements"},
        {{GGUF_STRING, 1 << 20}, "elements"}, {{GGUF_U32, 1000}, "elements"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct gguf_writer writer = {0};

        raw_key(&writer, "list", GGUF_ARRAY, &cases[i].head, sizeof(cases[i].head));
        expect_refusal(&writer, -EINVAL, cases[i].reason);
    }
}

static void alignments_that_are_no_power_of_two_are_refused(void)
{
    static const int64_t bad[] = {0, 1, 4, 7, 33, 1 << 21, -32};

    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        struct gguf_writer writer = {0};

        gguf_write_int(&writer, "general.alignment", GGUF_I64, bad[i]);
        write_good(&writer);
        expect_refusal(&writer, -EINVAL, "general.alignment");
    }
}

/* ---- refused: tensors ---- */

static void write_one(struct gguf_writer *writer, const char *name, uint32_t id, int32_t dim_count,
                      const int64_t *dim)
{
    static const unsigned char zero[1024];

    gguf_write_tensor(writer, name, id, dim_count, dim, zero, sizeof(zero));
}

static void tensor_names_that_are_wrong_are_refused(void)
{
    static const int64_t dim[1] = {256};
    static const char long_name[] =
        "a-name-of-64-bytes-------------------------------------------xyz";
    struct gguf_writer empty = {0}, overlong = {0}, twice = {0};

    write_one(&empty, "", 0, 1, dim);
    expect_refusal(&empty, -EINVAL, "has 0 bytes");
    EXPECT_INT(strlen(long_name), ==, 64);
    write_one(&overlong, long_name, 0, 1, dim);
    expect_refusal(&overlong, -EINVAL, "has 64 bytes");
    write_one(&twice, "same", 0, 1, dim);
    write_one(&twice, "other", 0, 1, dim);
    write_one(&twice, "same", 0, 1, dim);
    expect_refusal(&twice, -EINVAL, "tensor same is there twice");
}

static void dimensions_that_are_wrong_are_refused(void)
{
    static const struct {
        int64_t dim[5];
        int32_t dim_count;
        uint32_t id;
        const char *reason;
    } cases[] = {
        {{1}, 0, 0, "0 dimensions"},
        {{1, 1, 1, 1, 1}, 5, 0, "5 dimensions"},
        {{0}, 1, 0, "below 1"},
        {{-4, 2}, 2, 0, "below 1"},
        {{1LL << 40, 1LL << 40}, 2, 0, "can be counted"},
        {{INT64_MAX, 1}, 2, 0, "can be counted"},
        {{INT64_MAX / 8, 1}, 2, 0, "but the file has"},
        {{33}, 1, 8, "blocks of 32"},
        {{32}, 1, 12, "blocks of 256"},
        {{1LL << 32}, 1, 8, "but the file has"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct gguf_writer writer = {0};

        write_one(&writer, "tensor", cases[i].id, cases[i].dim_count, cases[i].dim);
        expect_refusal(&writer, -EINVAL, cases[i].reason);
    }
}

static void types_that_are_not_known_are_refused_by_name(void)
{
    static const int64_t dim[1] = {256};
    struct gguf_writer named = {0}, retired = {0}, unknown = {0};

    write_one(&named, "tensor", 16, 1, dim);
    expect_refusal(&named, -ENOTSUP, "IQ2_XXS, which is not supported");
    write_one(&retired, "tensor", 4, 1, dim);
    expect_refusal(&retired, format_gguf_name(4) == NULL ? -EINVAL : -ENOTSUP, "tensor has type");
    write_one(&unknown, "tensor", 12345, 1, dim);
    expect_refusal(&unknown, -EINVAL, "type 12345, which is unknown");
}

static void offsets_that_overlap_or_leave_gaps_are_refused(void)
{
    static const int64_t lies[] = {32, -32, 1, INT64_MAX / 2, -1024, INT64_MIN / 2};
    static const int64_t dim[1] = {256};

    for (size_t i = 0; i < sizeof(lies) / sizeof(*lies); i++) {
        struct gguf_writer writer = {0};

        write_one(&writer, "first", 0, 1, dim);
        writer.offset_lie = lies[i];
        write_one(&writer, "second", 0, 1, dim);
        expect_refusal(&writer, -EINVAL, "tensor second starts at offset");
    }
}

static void every_cut_of_a_file_is_refused(void)
{
    struct gguf_writer writer = {0};
    size_t bytes, whole;
    unsigned char *data;

    write_good(&writer);
    data = gguf_writer_finish(&writer, &bytes);
    gguf_writer_free(&writer);
    whole = bytes - 16; /* the padding of the last tensor may be missing */
    for (size_t count = 0; count <= bytes; count++) {
        unsigned char *part = malloc(count + 1); /* so that a sanitizer sees a read beyond */
        struct gguf *gguf;
        int status;

        memcpy(part, data, count);
        status = gguf_open_memory(&gguf, part, count, message, sizeof(message));
        EXPECT_INT(status, ==, count < whole ? -EINVAL : 0);
        gguf_close(gguf);
        free(part);
    }
    free(data);
}

/* ---- files ---- */

static const char *in_folder(const char *name)
{
    static char path[256];

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    return path;
}

static int open_file(const char *name, struct gguf **gguf)
{
    return gguf_open(gguf, in_folder(name), message, sizeof(message));
}

static void paths_that_are_no_file_are_refused_by_name(void)
{
    struct gguf *gguf;
    FILE *empty = fopen(in_folder("empty.gguf"), "wb");

    EXPECT(empty != NULL && fclose(empty) == 0);
    EXPECT_INT(open_file("missing.gguf", &gguf), ==, -ENOENT);
    EXPECT(strstr(message, "missing.gguf: No such file") != NULL);
    EXPECT_INT(open_file("empty.gguf", &gguf), ==, -EINVAL);
    EXPECT(strstr(message, "the file is empty") != NULL);
    EXPECT_INT(open_file(".", &gguf), ==, -EISDIR);
    EXPECT_INT(gguf_open(&gguf, "/dev/null", message, sizeof(message)), ==, -EINVAL);
    EXPECT(strstr(message, "not a file") != NULL);
}

/* Part `index` of `count`, holding one tensor. */
static void save_part(int32_t index, int32_t count, int32_t stated_index, const char *tensor)
{
    static const int64_t dim[1] = {256};
    struct gguf_writer writer = {0};
    char name[64];

    if (index == 0)
        gguf_write_text(&writer, "general.architecture", "test");
    gguf_write_int(&writer, "split.no", GGUF_U16, stated_index);
    gguf_write_int(&writer, "split.count", GGUF_U16, count);
    gguf_write_int(&writer, "split.tensors.count", GGUF_I32, count);
    write_one(&writer, tensor, 0, 1, dim);
    snprintf(name, sizeof(name), "part-%05d-of-%05d.gguf", (int)index + 1, (int)count);
    EXPECT(gguf_writer_save(&writer, in_folder(name)));
    gguf_writer_free(&writer);
}

static void a_split_model_is_one(void)
{
    struct gguf *gguf;

    save_part(0, 3, 0, "a");
    save_part(1, 3, 1, "b");
    save_part(2, 3, 2, "c");
    EXPECT_INT(open_file("part-00001-of-00003.gguf", &gguf), ==, 0);
    EXPECT_INT(gguf->tensor_count, ==, 3);
    EXPECT(gguf_tensor(gguf, "c") != NULL);
    gguf_close(gguf);
    EXPECT_INT(open_file("part-00002-of-00003.gguf", &gguf), ==, -EINVAL);
    EXPECT(strstr(message, "not the first of 3") != NULL);
}

static void a_split_model_with_a_wrong_part_is_refused(void)
{
    struct gguf *gguf;
    char other[256];

    save_part(0, 3, 0, "a");
    save_part(1, 3, 1, "a");
    save_part(2, 3, 2, "c");
    EXPECT_INT(open_file("part-00001-of-00003.gguf", &gguf), ==, -EINVAL);
    EXPECT(strstr(message, "tensor a is there twice") != NULL);
    save_part(1, 3, 2, "b");
    EXPECT_INT(open_file("part-00001-of-00003.gguf", &gguf), ==, -EINVAL);
    EXPECT(strstr(message, "part-00002-of-00003.gguf: split.no is 2") != NULL);
    EXPECT_INT(unlink(in_folder("part-00002-of-00003.gguf")), ==, 0);
    EXPECT_INT(open_file("part-00001-of-00003.gguf", &gguf), ==, -ENOENT);
    EXPECT(strstr(message, "part-00002-of-00003.gguf: No such file") != NULL);
    snprintf(other, sizeof(other), "%s/renamed.gguf", folder);
    EXPECT_INT(rename(in_folder("part-00001-of-00003.gguf"), other), ==, 0);
    EXPECT_INT(open_file("renamed.gguf", &gguf), ==, -EINVAL);
    EXPECT(strstr(message, "does not end in -00001-of-00003.gguf") != NULL);
}

static void a_split_model_must_have_all_its_tensors(void)
{
    static const int64_t dim[1] = {256};
    struct gguf_writer writer = {0};
    struct gguf *gguf;

    save_part(1, 2, 1, "b");
    gguf_write_int(&writer, "split.no", GGUF_U16, 0);
    gguf_write_int(&writer, "split.count", GGUF_U16, 2);
    gguf_write_int(&writer, "split.tensors.count", GGUF_I32, 3);
    write_one(&writer, "a", 0, 1, dim);
    EXPECT(gguf_writer_save(&writer, in_folder("part-00001-of-00002.gguf")));
    gguf_writer_free(&writer);
    EXPECT_INT(open_file("part-00001-of-00002.gguf", &gguf), ==, -EINVAL);
    EXPECT(strstr(message, "split.tensors.count is 3, but the parts hold 2") != NULL);
}

static void remove_folder(void)
{
    char command[128];

    snprintf(command, sizeof(command), "rm -rf %s", folder);
    EXPECT_INT(system(command), ==, 0);
}

int main(void)
{
    if (mkdtemp(folder) == NULL)
        return 1;
    TEST(keys_and_tensors_are_found_by_name);
    TEST(version_2_is_the_same);
    TEST(integers_of_every_type_are_read);
    TEST(lists_of_strings_are_walked);
    TEST(every_supported_type_has_its_size);
    TEST(another_alignment_is_kept);
    TEST(files_that_are_something_else_are_refused);
    TEST(other_versions_are_refused);
    TEST(counts_beyond_the_file_are_refused);
    TEST(keys_that_are_wrong_are_refused);
    TEST(lists_that_are_wrong_are_refused);
    TEST(alignments_that_are_no_power_of_two_are_refused);
    TEST(tensor_names_that_are_wrong_are_refused);
    TEST(dimensions_that_are_wrong_are_refused);
    TEST(types_that_are_not_known_are_refused_by_name);
    TEST(offsets_that_overlap_or_leave_gaps_are_refused);
    TEST(every_cut_of_a_file_is_refused);
    TEST(paths_that_are_no_file_are_refused_by_name);
    TEST(a_split_model_is_one);
    TEST(a_split_model_with_a_wrong_part_is_refused);
    TEST(a_split_model_must_have_all_its_tensors);
    remove_folder();
    return test_report();
}
