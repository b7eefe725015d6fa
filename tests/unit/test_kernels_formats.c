/* Formats: the table, and dequantisation bit for bit. */
#include "kernels/formats.h"

#include "tests/test.h"
#include "tests/unit/formats_golden.h"

#include <math.h>

static void the_table_finds_formats_by_their_file_id(void)
{
    for (int32_t format = 0; format < FORMAT_COUNT; format++) {
        const struct format_info *info = format_info(format);

        EXPECT_INT(format_by_gguf_id(info->gguf_id), ==, format);
        EXPECT_STRING(format_gguf_name(info->gguf_id), info->name);
    }
}

static void types_that_are_not_here_have_names_alone(void)
{
    EXPECT_INT(format_by_gguf_id(16), ==, -1);
    EXPECT_STRING(format_gguf_name(16), "IQ2_XXS");
    EXPECT_STRING(format_gguf_name(4), "Q4_2");
    EXPECT_STRING(format_gguf_name(35), "TQ2_0");
    EXPECT_STRING(format_gguf_name(42), "Q2_0");
    EXPECT(format_gguf_name(43) == NULL);
    EXPECT(format_gguf_name(-1) == NULL);
    EXPECT_INT(format_by_gguf_id(-1), ==, -1);
    EXPECT_INT(format_by_gguf_id(INT64_MAX), ==, -1);
}

static void rows_have_the_bytes_of_their_blocks(void)
{
    EXPECT_INT(format_row_bytes(FORMAT_F32, 3), ==, 12);
    EXPECT_INT(format_row_bytes(FORMAT_BF16, 5), ==, 10);
    EXPECT_INT(format_row_bytes(FORMAT_Q8_0, 640), ==, 680);
    EXPECT_INT(format_row_bytes(FORMAT_Q6_K, 2048), ==, 1680);
    EXPECT_INT(format_row_bytes(FORMAT_Q4_K, 0), ==, 0);
}

#define GOLDEN(format, name)                                                                       \
    {                                                                                              \
        format, name##_block, sizeof name##_block, name##_value,                                   \
            sizeof name##_value / sizeof name##_value[0]                                           \
    }

static void quantised_blocks_give_the_reference_values_bit_for_bit(void)
{
    static const struct {
        enum format format;
        const uint8_t *block;
        size_t byte_count;
        const uint32_t *value;
        size_t value_count;
    } golden[] = {
        GOLDEN(FORMAT_Q4_0, q4_0),   GOLDEN(FORMAT_Q4_1, q4_1),     GOLDEN(FORMAT_Q5_0, q5_0),
        GOLDEN(FORMAT_Q5_1, q5_1),   GOLDEN(FORMAT_Q8_0, q8_0),     GOLDEN(FORMAT_Q2_K, q2_k),
        GOLDEN(FORMAT_Q3_K, q3_k),   GOLDEN(FORMAT_Q4_K, q4_k),     GOLDEN(FORMAT_Q5_K, q5_k),
        GOLDEN(FORMAT_Q6_K, q6_k),   GOLDEN(FORMAT_IQ4_NL, iq4_nl), GOLDEN(FORMAT_IQ4_XS, iq4_xs),
        GOLDEN(FORMAT_MXFP4, mxfp4),
    };

    for (size_t i = 0; i < sizeof golden / sizeof golden[0]; i++) {
        const struct format_info *info = format_info(golden[i].format);
        int64_t blocks = (int64_t)golden[i].byte_count / info->block_bytes;
        float value[256];
        int32_t wrong = 0;

        EXPECT_INT(golden[i].value_count, ==, blocks * info->block_values);
        EXPECT_INT(golden[i].byte_count, ==, blocks * info->block_bytes);
        format_dequantise(golden[i].format, golden[i].block, blocks, value);
        for (size_t j = 0; j < golden[i].value_count; j++)
            wrong += memcmp(&value[j], &golden[i].value[j], 4) != 0;
        if (wrong > 0)
            printf("%s: %d values differ\n", info->name, wrong);
        EXPECT_INT(wrong, ==, 0);
    }
}

static void halves_are_exact(void)
{
    static const uint16_t half[] = {0x3c00, 0xc000, 0x0001, 0x03ff, 0x0400,
                                    0x7bff, 0x8000, 0x7c00, 0xfc00, 0x3555};
    static const float expected[] = {1,     -2,    0x1p-24F, 0x1.ff8p-15F, 0x1p-14F,
                                     65504, -0.0F, INFINITY, -INFINITY,    0x1.554p-2F};
    float value[10], not_a_number = 0;

    format_dequantise(FORMAT_F16, half, 10, value);
    EXPECT(memcmp(value, expected, sizeof value) == 0);
    format_dequantise(FORMAT_F16, &(uint16_t){0x7e01}, 1, &not_a_number);
    EXPECT(isnan(not_a_number));
}

static void brain_halves_are_the_upper_bits_of_a_float(void)
{
    static const uint16_t half[] = {0x3f80, 0xbfc0, 0x0001, 0x7f80};
    static const float expected[] = {1, -1.5F, 0x1p-133F, INFINITY};
    float value[4];

    format_dequantise(FORMAT_BF16, half, 4, value);
    EXPECT(memcmp(value, expected, sizeof value) == 0);
}

static void floats_are_copied(void)
{
    static const float source[] = {1.5F, -0.0F, 0x1p-149F};
    float value[3];

    format_dequantise(FORMAT_F32, source, 3, value);
    EXPECT(memcmp(value, source, sizeof value) == 0);
}

static void every_exponent_of_mxfp4_is_a_power_of_two(void)
{
    for (int32_t exponent = 0; exponent < 255; exponent++) {
        uint8_t block[17] = {(uint8_t)exponent, 0x2};
        float value[32];

        format_dequantise(FORMAT_MXFP4, block, 1, value);
        EXPECT(value[0] == ldexpf(1, exponent - 127));
    }
}

int main(void)
{
    TEST(the_table_finds_formats_by_their_file_id);
    TEST(types_that_are_not_here_have_names_alone);
    TEST(rows_have_the_bytes_of_their_blocks);
    TEST(quantised_blocks_give_the_reference_values_bit_for_bit);
    TEST(halves_are_exact);
    TEST(brain_halves_are_the_upper_bits_of_a_float);
    TEST(floats_are_copied);
    TEST(every_exponent_of_mxfp4_is_a_power_of_two);
    return test_report();
}
