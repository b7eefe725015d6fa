/* Products of bf16 weights on GPUs that are not Hopper (matmul_sm80.cuh): both operands by
 * asynchronous copies into a ring of stages, one barrier of the block a stage. */
#include "kernels/cuda/matmul_sm80.cuh"

enum { RING_BYTES = 48 * 1024 /* of narrow tiles: two blocks a multiprocessor of sm_89 */ };

template <typename Tile> struct bf16_ring {
    static constexpr int32_t BYTES = (Tile::ROW_COUNT + Tile::COLUMN_COUNT) * ROW_BYTES;
    static constexpr int32_t FIT = RING_BYTES / BYTES;
    static constexpr int32_t STAGES = FIT < 3 ? 3 : FIT > 8 ? 8 : FIT;
    static_assert(STAGES * BYTES >= Tile::OUT_BYTES, "sums go out through the stages");
};

template <typename Tile>
__device__ static inline void copy_stage(uint32_t stage, const struct matmul &call,
                                         struct sm80_place place, int32_t step)
{
    copy_rows<Tile::ROW_COUNT, Tile::THREADS>(stage, (const bf16 *)call.weight, call.in, place.row,
                                              call.count, step * DEPTH, call.in);
    copy_rows<Tile::COLUMN_COUNT, Tile::THREADS>(stage + Tile::ROW_COUNT * ROW_BYTES, call.x,
                                                 call.x_stride, place.column, call.T, step * DEPTH,
                                                 call.in);
}

template <typename Tile>
__global__ void __launch_bounds__(Tile::THREADS) matmul_sm80_kernel(struct matmul call)
{
    using ring = bf16_ring<Tile>;
    extern __shared__ __align__(1024) uint8_t memory[];
    uint32_t stages = (uint32_t)__cvta_generic_to_shared(memory);
    struct sm80_place place = sm80_place_of<Tile>(call);
    int32_t steps = (call.in + DEPTH - 1) / DEPTH;
    sm80_sums<Tile> sum;

    kernel_yield();
    kernel_wait();
    clear(sum);
#pragma unroll
    for (int32_t i = 0; i < ring::STAGES - 1; i++) {
        if (i < steps)
            copy_stage<Tile>(stages + i * ring::BYTES, call, place, i);
        copy_commit();
    }
    int32_t stage = 0, coming = ring::STAGES - 1;
    for (int32_t i = 0; i < steps; i++) {
        copy_wait<ring::STAGES - 2>();
        __syncthreads(); /* the stage is there, and all have done with the one before */
        if (i + ring::STAGES - 1 < steps)
            copy_stage<Tile>(stages + coming * ring::BYTES, call, place, i + ring::STAGES - 1);
        copy_commit();
        uint32_t rows = stages + stage * ring::BYTES;
        multiply_stage<Tile>(sum, rows, rows + Tile::ROW_COUNT * ROW_BYTES);
        stage = stage + 1 == ring::STAGES ? 0 : stage + 1;
        coming = coming + 1 == ring::STAGES ? 0 : coming + 1;
    }
    finish<Tile>(memory, sum, call, place);
}

template <typename Tile> static void by(struct device *device, const struct matmul &call)
{
    struct launch_shape shape = {sm80_grid<Tile>(call), dim3(Tile::THREADS),
                                 (size_t)(bf16_ring<Tile>::STAGES * bf16_ring<Tile>::BYTES)};
    launch(device, __func__, matmul_sm80_kernel<Tile>, shape, call);
}

void cuda_matmul_sm80(struct device *device, const struct matmul &call)
{
    int32_t large = ceil_div(call.count, 128) * ceil_div(call.T, 128);
    if (call.T <= SM80_FEW_TOKENS)
        sm80_few(device, call, [&](auto tile) { by<decltype(tile)>(device, call); });
    else if (call.T <= 64 || large < device->core_count)
        by<sm80_tile<64, 64, 32, 32>>(device, call);
    else
        by<sm80_tile<128, 128, 64, 32>>(device, call);
}
