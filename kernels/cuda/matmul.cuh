/* Products of bf16 weights and activations on the tensor cores, for linear.cu. */
#ifndef KERNELS_CUDA_MATMUL_CUH
#define KERNELS_CUDA_MATMUL_CUH

#include "kernels/cuda/activation.cuh"

/* out[t, o] = sum over k of x[t, k] * W[o, k], + bias[o], capped. Where `gated`, outputs come in
 * eights, of gate and of up in turn, and out [T, count / 2] is act(gate) * up. */
struct matmul {
    void *out; /* [T, count], rows of out_stride */
    int64_t out_stride;
    const bf16 *x; /* [T, in], rows of x_stride */
    int64_t x_stride;
    const void *weight; /* [count] rows of `in` values, of the format that goes with the call */
    const float *bias;  /* [count], or NULL */
    int32_t count;
    int32_t in;
    int32_t T;
    float softcap; /* 0: none */
    bool f32;      /* of out, else bf16 */
    bool gated;
    enum act_kind act;
};

enum {
    DEPTH = 64,            /* columns of `in` a stage: 128 bytes, as wide as they are swizzled */
    ROW_BYTES = DEPTH * 2, /* of a stage */
    MATMUL_WAYS_MAX = 64,
    MATMUL_F32_TOKENS = 256, /* of one launch where out is f32 */
};

__device__ static inline float finished(float value, float bias, float softcap)
{
    value += bias;
    return softcap > 0.0f ? softcap * tanhf(value / softcap) : value;
}

/* Whether these rows are what the kernels take: never a matter of T. */
static inline bool cuda_matmul_fits(const struct matmul &call)
{
    return call.in % CHUNK == 0 && call.count % CHUNK == 0 && (uintptr_t)call.weight % 16 == 0 &&
           in_chunks(call.x, call.x_stride, call.in) && call.out_stride % CHUNK == 0 &&
           (uintptr_t)call.out % 16 == 0;
}

/* Hopper's, and any GPU's from sm_80 on. */
void cuda_matmul(struct device *device, const struct matmul &call);
void cuda_matmul_sm80(struct device *device, const struct matmul &call);
/* What a table knows it by. */
struct tuned_product cuda_matmul_product(const struct matmul &call);
/* Whether there is its way, for its product and tokens. */
bool cuda_matmul_has(const struct tuned_line &line);
/* The ways to make the product that may be the best by estimate, that one first, and how many: for
 * tune.cu. */
int32_t cuda_matmul_ways(const struct device *device, const struct matmul &call,
                         struct tuned_way (&way)[MATMUL_WAYS_MAX]);
/* One of these, whatever the table says. T is at most MATMUL_F32_TOKENS where out is f32. */
void cuda_matmul_by(struct device *device, const struct matmul &call, const struct tuned_way &way);

/* The same of weights that lie as in their file. */
bool cuda_matmul_packed_fits(const struct matmul &call, enum format format);
void cuda_matmul_packed(struct device *device, const struct matmul &call, enum format format);
void cuda_matmul_packed_sm80(struct device *device, const struct matmul &call, enum format format);

#endif
