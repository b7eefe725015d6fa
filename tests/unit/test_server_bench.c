/* The arithmetic of `quire bench`: percentiles, Poisson gaps, floors. */
#include "server/bench_figure.h"
#include "server/config.h"
#include "server/json_read.h"
#include "server/json_write.h"
#include "tests/test.h"

#include <math.h>

static struct bench_spread spread_of(const int64_t *value, int64_t count)
{
    struct bench_samples samples;

    EXPECT(bench_samples_init(&samples, count));
    for (int64_t i = 0; i < count; i++)
        bench_samples_add(&samples, value[i]);
    struct bench_spread spread = bench_spread(&samples);
    bench_samples_release(&samples);
    return spread;
}

static void percentiles_are_values_that_were_measured(void)
{
    static const int64_t one[] = {7}, two[] = {9, 1}, ten[] = {10, 9, 8, 7, 6, 5, 4, 3, 2, 1};
    struct bench_spread spread = spread_of(one, 1);

    EXPECT(spread.mean == 7 && spread.p50 == 7 && spread.p90 == 7 && spread.p99 == 7);
    spread = spread_of(two, 2);
    EXPECT(spread.mean == 5 && spread.p50 == 1 && spread.p90 == 9);
    spread = spread_of(ten, 10);
    EXPECT(spread.mean == 5.5);
    EXPECT_INT(spread.p50, ==, 5);
    EXPECT_INT(spread.p90, ==, 9);
    EXPECT_INT(spread.p99, ==, 10);
}

static void of_many_values_one_in_a_hundred_is_above_p99(void)
{
    static int64_t value[1000];

    for (int64_t i = 0; i < 1000; i++)
        value[i] = (i * 617 + 5) % 1000 + 1; /* 1 to 1000 in some order */
    struct bench_spread spread = spread_of(value, 1000);
    EXPECT_INT(spread.p50, ==, 500);
    EXPECT_INT(spread.p90, ==, 900);
    EXPECT_INT(spread.p99, ==, 990);
}

static void no_samples_and_too_many_are_no_trouble(void)
{
    struct bench_samples samples;
    struct bench_spread spread = spread_of(NULL, 0);

    EXPECT(spread.mean == 0 && spread.p99 == 0);
    EXPECT(bench_samples_init(&samples, 2));
    for (int64_t i = 0; i < 5; i++)
        bench_samples_add(&samples, i);
    EXPECT_INT(samples.count, ==, 2);
    bench_samples_release(&samples);
    bench_samples_release(&samples);
}

static void gaps_between_arrivals_are_exponential(void)
{
    enum { COUNT = 200000 };
    const double rate = 50;
    double sum = 0, square = 0;
    int64_t longer = 0;
    uint64_t state = 1;

    EXPECT_INT(bench_gap_us(rate, 0), ==, 0);
    EXPECT(bench_gap_us(rate, UINT64_MAX) > 700000 && bench_gap_us(rate, UINT64_MAX) < 800000);
    EXPECT_INT(bench_gap_us(rate, UINT64_MAX / 2 + 1), ==, llround(log(2) / rate * 1e6));
    for (int i = 0; i < COUNT; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        double gap = (double)bench_gap_us(rate, state) * 1e-6;
        sum += gap;
        square += gap * gap;
        longer += gap > 1 / rate;
    }
    double mean = sum / COUNT, deviation = sqrt(square / COUNT - mean * mean);
    EXPECT(fabs(mean * rate - 1) < 0.01);
    EXPECT(fabs(deviation * rate - 1) < 0.02); /* as large as the mean */
    EXPECT(fabs((double)longer / COUNT - exp(-1)) < 0.005);
}

static void a_floor_is_bytes_over_rate(void)
{
    /* 8 GB of weights and 1 GB of KV at 4.5 TB/s, in each of two steps that took 4 ms. */
    struct bench_reads reads = {.bytes = 18000000000, .taken_us = 8000, .step_count = 2};
    struct bench_reads none = {.bytes = 1};

    EXPECT(fabs(bench_floor_us(&reads, 4.5e12) - 4000) < 1e-6);
    EXPECT(fabs(bench_floor_share(&reads, 4.5e12) - 0.5) < 1e-12);
    EXPECT(bench_floor_share(&none, 1e9) == 0);
}

static void a_figure_is_one_line_of_json_whatever_the_model_is_called(void)
{
    struct config config = {.device = CONFIG_DEVICE_CUDA};
    struct model_info info = {.name = "a \"b\"\n\\c\xff", .device = "GPU", .read_rate = 2e9};
    struct bench_latency latency = {.request_rate = 2.5, .ttft_us = {1.5, 1, 2, 3}};
    struct bench_figure figure = {.name = "requests",
                                  .batch = 3,
                                  .repeat = 1,
                                  .reads = {.bytes = 4000, .taken_us = 8, .step_count = 2},
                                  .latency = &latency};
    struct json text = {0};
    struct json_value value;
    const char *why;
    size_t offset;

    EXPECT(bench_samples_init(&figure.taken_us, 1) && bench_samples_init(&figure.rate_millis, 1));
    bench_samples_add(&figure.taken_us, 8);
    bench_samples_add(&figure.rate_millis, 1500);
    bench_write(&text, &config, &info, &figure);
    EXPECT(!text.lost && text.bytes > 0);
    EXPECT(memchr(text.text, '\n', text.bytes) == text.text + text.bytes - 1);
    EXPECT(json_check(text.text, text.bytes, &value, &offset, &why));
    json_bytes(&text, "", 1);
    EXPECT(strstr(text.text, "\"read_bytes\": 4000, ") != NULL);
    EXPECT(strstr(text.text, "\"floor_us\": 2.0, \"share_of_floor\": 0.250, ") != NULL);
    EXPECT(strstr(text.text, "\"tokens_per_s\": 1.5, ") != NULL);
    EXPECT(strstr(text.text, "{\"mean\": 1.5, \"p50\": 1, \"p90\": 2, \"p99\": 3}") != NULL);
    json_release(&text);
    bench_samples_release(&figure.taken_us);
    bench_samples_release(&figure.rate_millis);
}

int main(void)
{
    TEST(percentiles_are_values_that_were_measured);
    TEST(of_many_values_one_in_a_hundred_is_above_p99);
    TEST(no_samples_and_too_many_are_no_trouble);
    TEST(gaps_between_arrivals_are_exponential);
    TEST(a_floor_is_bytes_over_rate);
    TEST(a_figure_is_one_line_of_json_whatever_the_model_is_called);
    return test_report();
}
