/* What the tests of ops share: every backend and instruction set of this machine in turn, random
 * data, activations up and down, and comparison with the reference. */
#ifndef TESTS_KERNELS_HARNESS_H
#define TESTS_KERNELS_HARNESS_H

#include "kernels/backend.h"
#include "kernels/cpu/device.h"
#include "tests/reference.h"
#include "tests/test.h"

#include <assert.h>
#include <math.h>

/* A backend under test, and how far from the reference it may be. Errors are relative to the size
 * of the value and to the root mean square of all values of a result. */
struct subject {
    const struct device_ops *ops;
    bool is_cpu;
    enum cpu_isa isa;
    char name[32];
    double tolerance; /* of activations */
    double loose;     /* where what is stored between is rounded, and a neighbour may be hit */
    enum reference_rounding cache; /* of keys and values */
    bool portable;                 /* only the kernels of any GPU */
};
static struct subject subject;

/* ---- random data: a function of the state alone ---- */

static inline uint64_t random_next(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static inline int32_t random_below(uint64_t *state, int32_t bound)
{
    return (int32_t)(random_next(state) % (uint64_t)bound);
}

/* About normal: the sum of four uniform numbers, of variance 1. */
static inline float random_float(uint64_t *state)
{
    uint64_t bits = random_next(state);
    double sum = 0.0;

    for (int i = 0; i < 4; i++)
        sum += (double)(bits >> (16 * i) & 0xffff) / 65536.0 - 0.5;
    return (float)(sum * 1.7320508);
}

static inline float *random_floats(uint64_t *state, int64_t count, float scale)
{
    float *value = malloc((size_t)count * sizeof(*value) + 1);

    assert(value != NULL);
    for (int64_t i = 0; i < count; i++)
        value[i] = random_float(state) * scale;
    return value;
}

/* Cosines and sines of positions, as rope_store takes them, and a float more. */
static inline float *make_rope_table(int32_t rotary, int32_t length)
{
    float *table = malloc((size_t)length * (size_t)(rotary + 1) * sizeof(*table));

    assert(table != NULL);
    for (int32_t p = 0; p < length; p++) {
        for (int32_t i = 0; i < rotary / 2; i++) {
            double angle = p * pow(10000.0, -2.0 * i / rotary);
            table[((int64_t)p * (rotary / 2) + i) * 2] = (float)cos(angle);
            table[((int64_t)p * (rotary / 2) + i) * 2 + 1] = (float)sin(angle);
        }
    }
    return table;
}

/* ---- devices ---- */

static inline struct device *open_device(const struct device_options *options)
{
    struct device *device = NULL;
    struct device_options own = *options;
    char error[256] = "";

    own.portable = subject.portable;
    if (subject.ops->open(&device, &own, error, sizeof(error)) != 0) {
        printf("%s does not open: %s\n", subject.name, error);
        exit(1);
    }
    if (subject.is_cpu)
        cpu_set_isa(device, subject.isa);
    return device;
}

static inline struct device_options small_options(void)
{
    return (struct device_options){
        .thread_count = 2,
        .slot_max = 8,
        .token_max = 256,
        .sample_max = 16,
        .vocab_count = 1000,
        .context_max = 512,
        .history_max = 8 * 512,
        .change_max = 4096,
        .move_max = 64,
    };
}

static inline struct activation new_activation(struct device *device, int32_t rows, int64_t stride)
{
    struct activation a = {.stride = stride};

    a.data =
        subject.ops->alloc(device, (size_t)rows * (size_t)stride * subject.ops->activation_bytes);
    assert(a.data != NULL);
    return a;
}

static inline struct activation new_residual(struct device *device, int32_t rows, int64_t stride)
{
    struct activation a = {.stride = stride, .residual = true};

    a.data =
        subject.ops->alloc(device, (size_t)rows * (size_t)stride * subject.ops->residual_bytes);
    assert(a.data != NULL);
    return a;
}

/* The same rows from `first` on. */
static inline struct activation rows_from(struct activation a, int64_t first)
{
    size_t bytes = a.residual ? subject.ops->residual_bytes : subject.ops->activation_bytes;

    a.data = (char *)a.data + (size_t)(first * a.stride) * bytes;
    return a;
}

/* Puts floats, and reads back what the device then holds: an activation may have 16 bits. */
static inline void put_rounded(struct device *device, struct activation target, float *value,
                               int32_t rows, int32_t width)
{
    if (rows == 0)
        return;
    subject.ops->put(device, target, value, rows, width);
    subject.ops->get(device, value, target, rows, width);
}

static inline float *upload_floats(struct device *device, const float *value, int64_t count)
{
    size_t bytes = (size_t)count * sizeof(*value);
    float *target = subject.ops->alloc(device, bytes);

    assert(target != NULL);
    subject.ops->upload(device, target, value, bytes);
    return target;
}

/* What rope_store is told, on the host; without norms where they are NULL. */
struct store_shape {
    int32_t H, K, C, rotary;
    enum rope_pairing pairing;
    const float *table; /* make_rope_table */
    const float *q_norm, *k_norm;
};

/* The same on the device, for positions below `length`. */
static inline struct rope_store_args upload_store(struct device *device,
                                                  const struct store_shape *shape, int32_t length)
{
    struct rope_store_args args = {
        .head_count = shape->H,
        .kv_head_count = shape->K,
        .head_width = shape->C,
        .norm_eps = 1e-6f,
        .rotary = shape->rotary,
        .pairing = shape->pairing,
        .rope = upload_floats(device, shape->table, (int64_t)length * shape->rotary + 1),
    };

    if (shape->q_norm != NULL)
        args.q_norm = upload_floats(device, shape->q_norm, shape->C);
    if (shape->k_norm != NULL)
        args.k_norm = upload_floats(device, shape->k_norm, shape->C);
    return args;
}

static inline double *doubles(const float *value, int64_t count)
{
    double *wide = malloc((size_t)count * sizeof(*wide) + 1);

    assert(wide != NULL);
    for (int64_t i = 0; i < count; i++)
        wide[i] = (double)value[i];
    return wide;
}

/* ---- comparison ---- */

static inline bool close_to(const char *what, const double *expected, const float *got,
                            int64_t count, double tolerance)
{
    double square = 0.0;

    for (int64_t i = 0; i < count; i++)
        square += expected[i] * expected[i];
    double size = sqrt(square / (double)count);
    for (int64_t i = 0; i < count; i++) {
        double error = fabs((double)got[i] - expected[i]);
        if (!(error <= tolerance * (fabs(expected[i]) + size) + 1e-30)) {
            printf("%s: %s: [%" PRId64 "] is %.9g, not %.9g (error %.2g, size %.3g)\n",
                   subject.name, what, i, (double)got[i], expected[i], error, size);
            return false;
        }
    }
    return true;
}

/* ---- every subject ---- */

typedef void test_list(void);

static inline void run_cpu(test_list *tests)
{
    for (int isa = CPU_ISA_PLAIN; isa < CPU_ISA_COUNT; isa++) {
        if (!cpu_isa_available((enum cpu_isa)isa))
            continue;
        subject = (struct subject){
            .ops = backend_cpu(),
            .is_cpu = true,
            .isa = (enum cpu_isa)isa,
            .tolerance = 1e-5,
            .loose = 1e-3,
            .cache = REFERENCE_F16,
        };
        (void)snprintf(subject.name, sizeof(subject.name), "cpu %s", cpu_isa_name(subject.isa));
        tests();
    }
}

/* With the kernels made for this GPU, or with those for any. False where this build or this machine
 * has none. */
static inline bool run_cuda(test_list *tests, bool portable)
{
    struct device_options options = small_options();
    struct device *device = NULL;
    char error[256] = "";

    subject = (struct subject){.ops = backend_cuda(),
                               .portable = portable,
                               .name = "cuda",
                               .tolerance = 2e-2,
                               .loose = 4e-2,
                               .cache = REFERENCE_F16};
    if (subject.ops == NULL || subject.ops->open(&device, &options, error, sizeof(error)) != 0) {
        printf("no cuda here: %s\n", subject.ops == NULL ? "built without it" : error);
        return false;
    }
    subject.ops->close(device);
    if (portable)
        (void)snprintf(subject.name, sizeof(subject.name), "cuda, portable");
    if (subject.ops->activation_bytes == sizeof(float))
        subject.tolerance = 2e-3;
    tests();
    return true;
}

/* `--backend cpu`, `cuda` or `portable` (CUDA without a GPU's own kernels); without it, all that
 * are here. Exit code of main. */
static inline int run_subjects(int argc, char **argv, test_list *tests)
{
    const char *only = argc == 3 && strcmp(argv[1], "--backend") == 0 ? argv[2] : NULL;
    bool known = only != NULL && (strcmp(only, "cpu") == 0 || strcmp(only, "cuda") == 0 ||
                                  strcmp(only, "portable") == 0);

    if (argc != 1 && !known) {
        printf("usage: %s [--backend cpu|cuda|portable]\n", argv[0]);
        return 2;
    }
    if (only == NULL || strcmp(only, "cpu") == 0)
        run_cpu(tests);
    if (only == NULL || strcmp(only, "cuda") == 0) {
        if (!run_cuda(tests, false) && only != NULL)
            return 1;
    }
    if (only == NULL || strcmp(only, "portable") == 0) {
        if (!run_cuda(tests, true) && only != NULL)
            return 1;
    }
    return test_report();
}

#endif
