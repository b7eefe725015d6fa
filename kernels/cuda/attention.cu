/* attention: out[t, h] = sum over p of softmax(cap(scale * q . k[p])) * v[p], p from the window's
 * first position to the token's own, all read from the cache.
 *
 * Two variants. `tensor`: kernels that take items off the step's work list, one the wide tiles
 * (prompts), another the narrow ones (decode); each is launched where the step has such items.
 * attention.cuh tells what they share and why bits do not depend on the list. Hopper has kernels
 * of its own for both (attention_prompt.cu, attention_narrow.cu) where pages are large enough; else
 * it is attention_wide.cuh and attention_narrow_sm80.cu. `plain`: for the other head widths, and
 * the simplest statement of what is computed. Which of them runs depends on the model's shape, the
 * page and the GPU alone, never on the step.
 */
#include "kernels/cuda/attention_pages.cuh"
#include "kernels/cuda/attention_wide.cuh"
#include "kernels/cuda/reduce.cuh"

#include <assert.h>

/* ---- tensor ---- */

enum { HOPPER_SHARED_BYTES = 227 * 1024 };

/* Takes wide items until there are none. */
template <int C, int W>
__global__ void __launch_bounds__(W *WARP, 1)
    wide_kernel(const __grid_constant__ struct attention_call call)
{
    extern __shared__ __align__(1024) uint8_t memory[];
    wide_shared<C, W> &shared = *reinterpret_cast<wide_shared<C, W> *>(memory);
    int32_t count = call.work.plan->wide_count, item_count = count * call.args.kv_head_count;
    while (count > 0) {
        if (threadIdx.x == 0)
            shared.next = atomicAdd(&call.work.ticket[TICKET_WIDE], 1);
        __syncthreads();
        int32_t i = shared.next;
        __syncthreads();
        if (i >= item_count)
            break;
        /* neighbours share a head, so that its keys and values stay in the cache of the GPU */
        wide_item<C, W>(shared, call, call.work.wide[i % count], i / count);
    }
    __syncthreads();
    if (threadIdx.x == 0)
        end_tickets(call.work, TICKET_WIDE);
}

/* ---- plain ---- */

/* A block is one head of one token. It goes through the positions in tiles of TILE that start at
 * multiples of TILE from position 0, one position a thread for the scores and one column a thread
 * for the values, with the running maximum and sum of an online softmax. The order is that of
 * positions alone: the same in a prompt, in decode, and however a prompt was cut. */
enum { TILE = 128, COLUMNS = 4, HEAD_WIDTH_MAX = TILE * COLUMNS };

__device__ static float score(const float *query, const __half *key,
                              const struct attention_args &args)
{
    float dot = 0.0f;
    for (int32_t i = 0; i < args.head_width; i++)
        dot = fmaf(query[i], __half2float(key[i]), dot);
    dot *= args.scale;
    return args.softcap > 0.0f ? args.softcap * tanhf(dot / args.softcap) : dot;
}

__global__ void plain_kernel(bf16 *out, int64_t out_stride, const bf16 *qkv, int64_t stride,
                             struct attention_args args, struct kv_layer layer,
                             struct step_view step)
{
    __shared__ float query[HEAD_WIDTH_MAX];
    __shared__ float weight[TILE];
    __shared__ int64_t offset[TILE];
    __shared__ float scratch[TILE / WARP];
    int32_t t = blockIdx.x, h = blockIdx.y, thread = threadIdx.x, width = args.head_width;
    bf16 *target = out + t * out_stride + (int64_t)h * width;
    if (t >= step.counts->token_count) {
        for (int32_t i = thread; i < width; i += TILE)
            from_float(&target[i], 0.0f);
        return;
    }

    /* load */
    int32_t slot = step.slot[t], final = step.position[t];
    int32_t first = args.window > 0 ? max(final - args.window + 1, 0) : 0;
    int64_t column = (int64_t)(h / (args.head_count / args.kv_head_count)) * width;
    for (int32_t i = thread; i < width; i += TILE)
        query[i] = to_float(qkv[t * stride + (int64_t)h * width + i]);
    __syncthreads();

    /* compute: of a masked position neither key nor value is read, they may be anything */
    float max_score = -CUDART_INF_F, sum = 0.0f, value[COLUMNS] = {};
    for (int32_t tile = first / TILE * TILE; tile <= final; tile += TILE) {
        int32_t position = tile + thread;
        float own = -CUDART_INF_F;
        if (position >= first && position <= final) {
            offset[thread] = kv_offset(layer, slot, position) + column;
            own = score(query, layer.key + offset[thread], args);
        }
        float new_max = fmaxf(max_score, block_max<TILE>(own, scratch));
        float shrink = expf(max_score - new_max);
        weight[thread] = expf(own - new_max);
        sum = sum * shrink + block_sum<TILE>(weight[thread], scratch);
        for (int32_t c = 0; c < COLUMNS; c++)
            value[c] *= shrink;
        int32_t begin = max(first - tile, 0), end = min(final - tile + 1, (int32_t)TILE);
        for (int32_t p = begin; p < end; p++) {
            const __half *row = layer.key + layer.value_offset + offset[p];
            for (int32_t c = 0; c < COLUMNS; c++)
                if (thread + c * TILE < width)
                    value[c] = fmaf(weight[p], __half2float(row[thread + c * TILE]), value[c]);
        }
        max_score = new_max;
        __syncthreads(); /* weight and offset are free for the next tile */
    }

    /* store: a sink takes part in the sum and has no value */
    if (args.sinks != NULL) {
        float new_max = fmaxf(max_score, args.sinks[h]);
        float shrink = expf(max_score - new_max);
        sum = sum * shrink + expf(args.sinks[h] - new_max);
        for (int32_t c = 0; c < COLUMNS; c++)
            value[c] *= shrink;
    }
    for (int32_t c = 0; c < COLUMNS; c++)
        if (thread + c * TILE < width)
            from_float(&target[thread + c * TILE], value[c] / sum);
}

/* ---- variants ---- */

struct attention_variant {
    const char *name;
    int32_t head_width; /* 0: any */
    bool (*fits)(const struct device *device, const struct attention_args *args,
                 const struct attention_variant *variant);
    void (*launch)(struct device *device, const struct attention_call &call, int32_t T);
};

template <int C, int W>
static void wide_launch(struct device *device, const struct attention_call &call)
{
    int32_t bytes = (int32_t)sizeof(wide_shared<C, W>);
    (void)cuda_check(
        device,
        cudaFuncSetAttribute(wide_kernel<C, W>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
        __func__);
    wide_kernel<C, W><<<device->core_count, W * WARP, bytes, device->stream>>>(call);
}

/* Bulk copies bring whole runs of a page. */
static bool by_bulk(const struct device *device)
{
    return device->hopper && device->shared_bytes >= HOPPER_SHARED_BYTES && pages_fit(device);
}

/* How many warps share a wide item, by what a block's memory holds; 0: it holds none. */
template <int C> constexpr int32_t wide_warps_max = C <= 192 ? 8 : 4;
template <int C> static int32_t wide_warps(const struct device *device)
{
    if (device->shared_bytes >= (int32_t)sizeof(wide_shared<C, wide_warps_max<C>>))
        return wide_warps_max<C>;
    return device->shared_bytes >= (int32_t)sizeof(wide_shared<C, 4>) ? 4 : 0;
}

template <int C> static bool by_prompt_kernel(const struct device *device)
{
    return by_bulk(device) && cuda_attention_prompt_fits(device, C);
}

template <int C> static void wide_items(struct device *device, const struct attention_call &call)
{
    int32_t warps = wide_warps<C>(device);
    if (by_prompt_kernel<C>(device))
        cuda_attention_prompt(device, call);
    else if (warps == wide_warps_max<C>)
        wide_launch<C, wide_warps_max<C>>(device, call);
    else if (warps == 4)
        wide_launch<C, 4>(device, call);
    else
        cuda_attention_narrow_sm80(device, call, true);
}

template <int C> static int32_t wide_item_rows(const struct device *device)
{
    if (by_prompt_kernel<C>(device))
        return prompt_item_rows(C);
    int32_t warps = wide_warps<C>(device);
    return warps > 0 ? warps * 16 : (int32_t)NARROW_ROWS;
}

/* How many items there are is known on the device, of which kinds here too. */
template <int C>
static void tensor_launch(struct device *device, const struct attention_call &wanted, int32_t T)
{
    (void)T;
    struct attention_call call = wanted;
    struct attention_key key = {call.group, call.args.window, wide_item_rows<C>(device),
                                by_bulk(device)};
    struct attention_kinds kinds = cuda_attention_kinds(device, call.group);
    if (!kinds.wide && !kinds.narrow)
        return;
    call.work = cuda_attention_work(device, key);
    if (kinds.wide)
        wide_items<C>(device, call);
    call.work.beside = kinds.wide && by_prompt_kernel<C>(device);
    if (kinds.narrow && by_bulk(device))
        cuda_attention_narrow(device, call);
    else if (kinds.narrow)
        cuda_attention_narrow_sm80(device, call, false);
}

static bool tensor_fits(const struct device *device, const struct attention_args *args,
                        const struct attention_variant *variant)
{
    return args->head_width == variant->head_width && args->scale > 0.0f &&
           args->head_count / args->kv_head_count <= GROUP_MAX &&
           device->shared_bytes >= SHARED_BYTES_LEAST;
}

static void plain_launch(struct device *device, const struct attention_call &call, int32_t T)
{
    dim3 grid(T, call.args.head_count);
    plain_kernel<<<grid, TILE, 0, device->stream>>>(call.out, call.out_stride, call.query,
                                                    call.stride, call.args, call.layer, call.step);
}

static bool plain_fits(const struct device *device, const struct attention_args *args,
                       const struct attention_variant *variant)
{
    (void)device, (void)variant;
    return args->head_width <= HEAD_WIDTH_MAX;
}

/* The first that fits. */
static const struct attention_variant variants[] = {
#define WIDTH(width) {"tensor " #width, width, tensor_fits, tensor_launch<width>},
    TENSOR_WIDTHS(WIDTH)
#undef WIDTH
        {"plain", 0, plain_fits, plain_launch},
};
enum { VARIANTS = sizeof(variants) / sizeof(*variants) };

void cuda_attention(struct device *device, struct activation out, struct activation qkv,
                    const struct attention_args *args, int32_t T)
{
    const struct attention_variant *variant = variants;
    struct attention_call call = {};
    assert(args->head_count % args->kv_head_count == 0);
    if (T == 0)
        return;
    while (variant < variants + VARIANTS && !variant->fits(device, args, variant))
        variant++;
    assert(variant < variants + VARIANTS);
    call.out = (bf16 *)out.data;
    call.out_stride = out.stride;
    call.query = (const bf16 *)qkv.data;
    call.stride = qkv.stride;
    call.args = *args;
    call.layer = cuda_kv_layer(device, args->layer);
    call.step = device->step;
    call.group = args->head_count / args->kv_head_count;
    call.scale = args->softcap > 0.0f ? CUDART_L2E_F : args->scale * CUDART_L2E_F;
    variant->launch(device, call, T);
    launch_check(device, __func__);
}
