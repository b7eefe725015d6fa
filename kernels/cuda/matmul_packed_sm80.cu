/* Products of packed weights on GPUs that are not Hopper (matmul_sm80.cuh). Units of a row's blocks
 * are copied to shared memory as they are; while the block's warps multiply one stage they
 * dequantise the next from there (unpack.cuh). */
#include "kernels/cuda/matmul_sm80.cuh"
#include "kernels/cuda/unpack.cuh"

#include <assert.h>

enum {
    UNITS = 3,           /* on their way, or being read */
    ROW_BUFFERS = 2,     /* of a stage's weights */
    COLUMN_BUFFERS = 3,  /* of its tokens, which are asked for two stages ahead */
    UNIT_STAGES_MIN = 2, /* of a unit that need not have come when the next stage's tokens have */
};

template <typename Tile> struct packed_stage {
    static constexpr int32_t ROWS_BYTES = Tile::ROW_COUNT * ROW_BYTES;
    static constexpr int32_t COLUMNS_BYTES = Tile::COLUMN_COUNT * ROW_BYTES;
    static constexpr int32_t BYTES = ROW_BUFFERS * ROWS_BYTES + COLUMN_BUFFERS * COLUMNS_BYTES;
    static int32_t shared_bytes(const struct packed_weight &weight)
    {
        int32_t bytes = BYTES + UNITS * Tile::ROW_COUNT * weight.raw_stride;
        return bytes > Tile::OUT_BYTES ? bytes : Tile::OUT_BYTES;
    }
};

/* Starts the copies of a unit of the tile's rows: whole sixteens of bytes, so that some before and
 * behind come too. */
template <typename Tile>
__device__ static inline void copy_unit(uint32_t target, const struct packed_weight &weight,
                                        const struct matmul &call, struct sm80_place place,
                                        int32_t unit)
{
    int32_t per_row = weight.raw_stride / BULK_ALIGN;
    int64_t left = weight.row_bytes - (int64_t)unit * weight.unit_bytes;
    int32_t own = left < weight.unit_bytes ? (int32_t)left : weight.unit_bytes;
    for (int32_t i = threadIdx.x; i < Tile::ROW_COUNT * per_row; i += Tile::THREADS) {
        int32_t r = i / per_row, chunk = i - r * per_row;
        if (place.row + r >= call.count)
            break;
        const uint8_t *start = unit_start(weight, place.row + r, unit);
        int32_t before = (int32_t)((uintptr_t)start % BULK_ALIGN);
        if (chunk * BULK_ALIGN < before + own)
            copy_async(target + r * weight.raw_stride + chunk * BULK_ALIGN,
                       start - before + chunk * BULK_ALIGN, BULK_ALIGN);
    }
}

/* Dequantises a stage's weights. */
template <typename Tile>
__device__ static inline void
fill_stage(uint32_t rows, const uint8_t *raw, const struct packed_weight &weight,
           const struct matmul &call, struct sm80_place place, int32_t step)
{
    int32_t column = step * DEPTH, unit = column / weight.unit_values;
    int32_t first_run = (column - unit * weight.unit_values) / RUN;
    const uint8_t *own = raw + unit % UNITS * Tile::ROW_COUNT * weight.raw_stride;
    for (int32_t i = threadIdx.x; i < Tile::ROW_COUNT * 2; i += Tile::THREADS) {
        int32_t r = i % Tile::ROW_COUNT, half = i / Tile::ROW_COUNT;
        fill_half(rows, r, half, weight, call, place.row + r, unit, column, first_run,
                  own + r * weight.raw_stride);
    }
}

template <typename Tile>
__device__ static inline void copy_tokens(uint32_t columns, const struct matmul &call,
                                          struct sm80_place place, int32_t step)
{
    uint32_t target = columns + step % COLUMN_BUFFERS * packed_stage<Tile>::COLUMNS_BYTES;
    if (step * DEPTH < call.in)
        copy_rows<Tile::COLUMN_COUNT, Tile::THREADS>(target, call.x, call.x_stride, place.column,
                                                     call.T, step * DEPTH, call.in);
    copy_commit();
}

/* At the begin of step s the tokens of step s must have come, which were asked for at step s - 2,
 * and the unit of step s + 1, asked for 2 unit_steps before its first one: groups of copies end in
 * their order, each step has one of tokens and then one of a unit, or an empty one. So the last
 * three may be on their way, unless a unit is a single stage. */
template <typename Tile>
__global__ void __launch_bounds__(Tile::THREADS)
    matmul_packed_sm80_kernel(struct packed_weight weight, struct matmul call)
{
    using stage = packed_stage<Tile>;
    extern __shared__ __align__(1024) uint8_t memory[];
    uint32_t rows = (uint32_t)__cvta_generic_to_shared(memory);
    uint32_t columns = rows + ROW_BUFFERS * stage::ROWS_BYTES, raw = rows + stage::BYTES;
    const uint32_t unit_bytes = Tile::ROW_COUNT * weight.raw_stride;
    struct sm80_place place = sm80_place_of<Tile>(call);
    int32_t steps = (call.in + DEPTH - 1) / DEPTH, unit_steps = weight.unit_values / DEPTH;
    int32_t units = (steps + unit_steps - 1) / unit_steps;
    sm80_sums<Tile> sum;

    kernel_yield();
    kernel_wait();
    clear(sum);
    for (int32_t i = 0; i < min(units, UNITS - 1); i++)
        copy_unit<Tile>(raw + i * unit_bytes, weight, call, place, i);
    copy_tokens<Tile>(columns, call, place, 0);
    copy_tokens<Tile>(columns, call, place, 1);
    copy_wait<0>();
    __syncthreads();
    fill_stage<Tile>(rows, memory + stage::BYTES, weight, call, place, 0);
    for (int32_t i = 0; i < steps; i++) {
        if (unit_steps >= UNIT_STAGES_MIN)
            copy_wait<3>();
        else
            copy_wait<0>();
        __syncthreads(); /* this stage is there, and all have done with the one before */
        copy_tokens<Tile>(columns, call, place, i + 2);
        int32_t unit = i / unit_steps + UNITS - 1;
        if (i % unit_steps == 0 && unit < units)
            copy_unit<Tile>(raw + unit % UNITS * unit_bytes, weight, call, place, unit);
        copy_commit();
        if (i + 1 < steps)
            fill_stage<Tile>(rows + (i + 1) % ROW_BUFFERS * stage::ROWS_BYTES,
                             memory + stage::BYTES, weight, call, place, i + 1);
        multiply_stage<Tile>(sum, rows + i % ROW_BUFFERS * stage::ROWS_BYTES,
                             columns + i % COLUMN_BUFFERS * stage::COLUMNS_BYTES);
    }
    finish<Tile>(memory, sum, call, place);
}

template <typename Tile>
static void by(struct device *device, const struct packed_weight &weight, const struct matmul &call)
{
    int32_t bytes = packed_stage<Tile>::shared_bytes(weight);
    assert(bytes <= device->shared_bytes);
    struct launch_shape shape = {sm80_grid<Tile>(call), dim3(Tile::THREADS), (size_t)bytes};
    launch(device, __func__, matmul_packed_sm80_kernel<Tile>, shape, weight, call);
}

void cuda_matmul_packed_sm80(struct device *device, const struct matmul &call, enum format format)
{
    using wide = sm80_tile<64, 128, 32, 64>;
    struct packed_weight weight = packed_weight_of(call, format);
    bool has_room = packed_stage<wide>::shared_bytes(weight) <= device->shared_bytes;
    if (call.T <= SM80_FEW_TOKENS)
        sm80_few(device, call, [&](auto tile) { by<decltype(tile)>(device, weight, call); });
    else if (call.T <= 64 || !has_room)
        by<sm80_tile<64, 64, 32, 32>>(device, weight, call);
    else
        by<wide>(device, weight, call);
}
