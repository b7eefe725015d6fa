/* Speed of the CPU backend's linear: JSON lines, one a case.
 *
 *     bench_linear [smoke] [THREADS] [ISA]
 *
 * Shapes are those of Gemma 3 270M. Weights rotate through copies that no cache holds. The shares
 * are of what this machine reaches just before with as many threads: bytes read in a row, and
 * multiply-adds of 16-bit activations out of registers (f32 ones for float formats).
 */
#include "kernels/cpu/linear.h"
#include "tests/bench/measure.h"

#include <immintrin.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REPEAT_MAX = 64, PEAK_CHAINS = 8 };

struct bench {
    struct pool *pool;
    enum cpu_isa isa;
    bool smoke;
    size_t rotate_bytes;
    double read_peak; /* bytes a second */
    double dot_peak;  /* multiply-adds a second: 16-bit activations times codes */
    double fma_peak;  /* and f32 */
};

static double now_s(void)
{
    return now_us() * 1e-6;
}

static void *aligned(size_t bytes)
{
    void *memory = aligned_alloc(LINEAR_ALIGN, (bytes / LINEAR_ALIGN + 1) * LINEAR_ALIGN);

    if (memory == NULL) {
        fprintf(stderr, "could not allocate %zu bytes\n", bytes);
        exit(1);
    }
    return memory;
}

/* ---- peaks ---- */

struct reading {
    const uint8_t *data;
    int64_t bytes;
    int32_t task_count;
    _Atomic uint64_t sink;
};

static void read_task(void *context, int32_t task, int32_t worker)
{
    struct reading *reading = context;
    const uint64_t *word = (const void *)(reading->data);
    int64_t first = pool_task_first(reading->bytes / 64, reading->task_count, task) * 8;
    int64_t end = pool_task_first(reading->bytes / 64, reading->task_count, task + 1) * 8;
    uint64_t sum[8] = {0}, total = 0;

    (void)worker;
    for (int64_t i = first; i < end; i += 8) {
        __builtin_prefetch(word + i + 512);
        for (int32_t j = 0; j < 8; j++)
            sum[j] += word[i + j];
    }
    for (int32_t j = 0; j < 8; j++)
        total += sum[j];
    reading->sink += total;
}

static double read_peak(const struct bench *bench)
{
    struct reading reading = {.bytes = (int64_t)bench->rotate_bytes};
    uint8_t *data = aligned(bench->rotate_bytes);
    double best = 1e9;

    memset(data, 1, bench->rotate_bytes);
    reading.data = data;
    reading.task_count = pool_task_count(bench->pool, reading.bytes, 1 << 16);
    for (int32_t i = 0; i < 5; i++) {
        double start = now_s();

        pool_run(bench->pool, read_task, &reading, reading.task_count);
        best = now_s() - start < best ? now_s() - start : best;
    }
    free(data);
    return (double)reading.bytes / best;
}

enum { PEAK_LOOPS = 1000000 };

/* Eight chains by name, so that they stay in registers. */
__attribute__((target("avx512f,avx512bw,avx512vnni"))) static void
vnni_task(void *context, int32_t task, int32_t worker)
{
    __m512i one = _mm512_set1_epi8(1), a = _mm512_set1_epi32(task), b = a, c = a, d = a;
    __m512i e = a, f = a, g = a, h = a;
    int32_t *sink = context;

    for (int32_t loop = 0; loop < PEAK_LOOPS; loop++) {
        a = _mm512_dpbusd_epi32(a, one, one);
        b = _mm512_dpbusd_epi32(b, one, one);
        c = _mm512_dpbusd_epi32(c, one, one);
        d = _mm512_dpbusd_epi32(d, one, one);
        e = _mm512_dpbusd_epi32(e, one, one);
        f = _mm512_dpbusd_epi32(f, one, one);
        g = _mm512_dpbusd_epi32(g, one, one);
        h = _mm512_dpbusd_epi32(h, one, one);
    }
    a = _mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d));
    e = _mm512_add_epi32(_mm512_add_epi32(e, f), _mm512_add_epi32(g, h));
    sink[worker] = _mm512_reduce_add_epi32(_mm512_add_epi32(a, e));
}

__attribute__((target("avx512f"))) static void fma512_task(void *context, int32_t task,
                                                           int32_t worker)
{
    __m512 one = _mm512_set1_ps(1), a = _mm512_set1_ps((float)task), b = a, c = a, d = a;
    __m512 e = a, f = a, g = a, h = a;
    float *sink = context;

    for (int32_t loop = 0; loop < PEAK_LOOPS; loop++) {
        a = _mm512_fmadd_ps(a, one, one);
        b = _mm512_fmadd_ps(b, one, one);
        c = _mm512_fmadd_ps(c, one, one);
        d = _mm512_fmadd_ps(d, one, one);
        e = _mm512_fmadd_ps(e, one, one);
        f = _mm512_fmadd_ps(f, one, one);
        g = _mm512_fmadd_ps(g, one, one);
        h = _mm512_fmadd_ps(h, one, one);
    }
    a = _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d));
    e = _mm512_add_ps(_mm512_add_ps(e, f), _mm512_add_ps(g, h));
    sink[worker] = _mm512_reduce_add_ps(_mm512_add_ps(a, e));
}

/* Multiply-adds a second of a task with `per_operation` of them in each operation. */
static double rate(const struct bench *bench, pool_function *function, double per_operation)
{
    int32_t threads = pool_thread_count(bench->pool);
    int32_t *sink = aligned(sizeof *sink * (size_t)threads);
    double best = 1e9;

    for (int32_t i = 0; i < 5; i++) {
        double start = now_s();

        pool_run(bench->pool, function, sink, threads * 4);
        best = now_s() - start < best ? now_s() - start : best;
    }
    free(sink);
    return per_operation * PEAK_CHAINS * PEAK_LOOPS * threads * 4 / best;
}

static void measure_peaks(struct bench *bench)
{
    bench->read_peak = read_peak(bench);
    if (!cpu_isa_available(CPU_ISA_AVX512BF16))
        return;
    /* Two byte products make one of a 16-bit activation. */
    bench->dot_peak = rate(bench, vnni_task, 64 / 2.0);
    bench->fma_peak = rate(bench, fma512_task, 16);
}

/* ---- cases ---- */

struct part {
    enum format format;
    int32_t out;
};

struct shape {
    const char *name;
    int32_t in;
    int32_t part_count;
    struct part part[3];
    int32_t T_max;
};

static size_t shape_bytes(const struct shape *shape)
{
    size_t bytes = 0;

    for (int32_t i = 0; i < shape->part_count; i++)
        bytes += linear_packed_bytes(shape->part[i].format, shape->part[i].out, shape->in);
    return bytes;
}

/* Random bits: scales are halves of any size, which costs no less and no more time. */
static struct weight make_weight(const struct shape *shape, uint8_t *memory)
{
    struct weight weight = {.part_count = shape->part_count, .in = shape->in};

    for (int32_t i = 0; i < shape->part_count; i++) {
        weight.part[i] = (struct weight_part){shape->part[i].format, shape->part[i].out, memory};
        weight.out += shape->part[i].out;
        memory += linear_packed_bytes(shape->part[i].format, shape->part[i].out, shape->in);
    }
    return weight;
}

static void print_line(const struct bench *bench, const struct shape *shape, int32_t T,
                       const double *seconds, int32_t repeat)
{
    double median = seconds[repeat / 2], bytes = (double)shape_bytes(shape), macs = 0;
    bool is_float = format_info(shape->part[0].format)->block_values == 1;
    double peak = is_float ? bench->fma_peak : bench->dot_peak;

    for (int32_t i = 0; i < shape->part_count; i++)
        macs += (double)shape->part[i].out * shape->in * T;
    printf("{\"name\": \"linear_%s\", \"backend\": \"cpu\", \"isa\": \"%s\", \"threads\": %d, "
           "\"in\": %d, \"T\": %d, \"repeat\": %d, \"median_us\": %.1f, \"min_us\": %.1f, "
           "\"bytes_per_s\": %.3g, \"flop_per_s\": %.3g, \"share_of_read_peak\": %.3f",
           shape->name, cpu_isa_name(bench->isa), pool_thread_count(bench->pool), shape->in, T,
           repeat, median * 1e6, seconds[0] * 1e6, bytes / median, 2 * macs / median,
           bytes / median / bench->read_peak);
    if (peak > 0)
        printf(", \"share_of_peak\": %.3f", macs / median / peak);
    printf("}\n");
    fflush(stdout);
}

static void run_case(const struct bench *bench, const struct shape *shape, uint8_t *memory,
                     int32_t T)
{
    size_t bytes = shape_bytes(shape);
    size_t copies = bytes > 0 ? bench->rotate_bytes / bytes : 0;
    int32_t repeat = bench->smoke ? 2 : T >= 64 ? 15 : REPEAT_MAX - 1;
    float *x = aligned(sizeof *x * (size_t)T * (size_t)shape->in);
    void *scratch = aligned(linear_scratch_bytes(bench->pool, shape->in, T));
    double seconds[REPEAT_MAX] = {0};
    float *out = NULL;
    struct linear_call call = {.x = x, .x_stride = shape->in, .T = T, .scratch = scratch};

    copies = copies == 0 ? 1 : copies;
    for (int32_t i = 0; i < T * shape->in; i++)
        x[i] = (float)(i * 7919 % 1000) / 500 - 1;
    for (int32_t i = 0; i < repeat; i++) {
        struct weight weight = make_weight(shape, memory + (size_t)i % copies * bytes);
        double start;

        if (i == 0) {
            out = aligned(sizeof *out * (size_t)T * (size_t)weight.out);
            memset(out, 0, sizeof *out * (size_t)T * (size_t)weight.out);
        }
        call.weight = &weight;
        call.out = out;
        call.out_stride = weight.out;
        start = now_s();
        linear_run(bench->pool, bench->isa, &call);
        seconds[i] = now_s() - start;
    }
    qsort(seconds, (size_t)repeat, sizeof *seconds, ascending);
    print_line(bench, shape, T, seconds, repeat);
    free(x);
    free(out);
    free(scratch);
}

static void run_pack(const struct bench *bench, const struct shape *shape, uint8_t *memory)
{
    struct weight_source source = {shape->part[0].format, shape->part[0].out, shape->in, NULL};
    size_t bytes = format_row_bytes(source.format, source.in) * (size_t)source.out;
    uint8_t *data = aligned(bytes);
    double start;

    memset(data, 0x35, bytes);
    source.data = data;
    start = now_s();
    linear_pack(bench->pool, &source, memory);
    start = now_s() - start;
    printf("{\"name\": \"pack_%s\", \"backend\": \"cpu\", \"threads\": %d, \"in\": %d, "
           "\"median_us\": %.1f, \"bytes_per_s\": %.3g}\n",
           shape->name, pool_thread_count(bench->pool), shape->in, start * 1e6,
           (double)bytes / start);
    free(data);
}

static const struct shape shapes[] = {
    {"qkv_q5_0_q8_0", 640, 3, {{FORMAT_Q5_0, 1024}, {FORMAT_Q5_0, 256}, {FORMAT_Q8_0, 256}}, 512},
    {"output_q4_k", 1024, 1, {{FORMAT_Q4_K, 640}}, 512},
    {"gate_up_q5_0", 640, 2, {{FORMAT_Q5_0, 2048}, {FORMAT_Q5_0, 2048}}, 512},
    {"down_q4_k", 2048, 1, {{FORMAT_Q4_K, 640}}, 512},
    {"down_q6_k", 2048, 1, {{FORMAT_Q6_K, 640}}, 512},
    {"head_q8_0", 640, 1, {{FORMAT_Q8_0, 262144}}, 16},
    {"gate_up_q4_0", 640, 1, {{FORMAT_Q4_0, 4096}}, 512},
    {"gate_up_q5_k", 768, 1, {{FORMAT_Q5_K, 4096}}, 512},
    {"gate_up_bf16", 640, 1, {{FORMAT_BF16, 4096}}, 512},
    {"gate_up_f16", 640, 1, {{FORMAT_F16, 4096}}, 512},
};

int main(int argc, char **argv)
{
    static const int32_t sizes[] = {1, 2, 4, 8, 16, 64, 512};
    struct bench bench = {.isa = cpu_isa_best(), .rotate_bytes = 192 << 20};
    int32_t argument = 1;
    size_t memory_bytes;
    uint8_t *memory;

    if (argument < argc && strcmp(argv[argument], "smoke") == 0) {
        bench.smoke = true;
        bench.rotate_bytes = 1 << 20;
        argument++;
    }
    bench.pool = pool_create(argument < argc ? atoi(argv[argument]) : 0);
    if (bench.pool == NULL)
        return 1;
    for (enum cpu_isa isa = 0; argument + 1 < argc && isa < CPU_ISA_COUNT; isa++) {
        if (strcmp(argv[argument + 1], cpu_isa_name(isa)) == 0 && cpu_isa_available(isa))
            bench.isa = isa;
    }
    measure_peaks(&bench);
    printf("{\"name\": \"peaks\", \"threads\": %d, \"bytes_per_s\": %.3g, \"dot_per_s\": %.3g, "
           "\"fma_per_s\": %.3g}\n",
           pool_thread_count(bench.pool), bench.read_peak, bench.dot_peak, bench.fma_peak);
    memory_bytes = bench.rotate_bytes + ((size_t)(bench.smoke ? 8 : 192) << 20);
    memory = aligned(memory_bytes);
    for (size_t i = 0; i < memory_bytes; i++)
        memory[i] = (uint8_t)(i * 2654435761U >> 13) & 0x77;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        struct shape shape = shapes[i];

        if (bench.smoke && shape.T_max < 512)
            shape.part[0].out = 512;
        for (size_t j = 0; j < sizeof sizes / sizeof sizes[0]; j++) {
            if (sizes[j] <= shape.T_max && (!bench.smoke || sizes[j] <= 8))
                run_case(&bench, &shape, memory, sizes[j]);
        }
        run_pack(&bench, &shape, memory);
    }
    free(memory);
    pool_destroy(bench.pool);
    return 0;
}
