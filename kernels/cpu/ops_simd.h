/* Vectors of floats, one form for each instruction set; the flags of the compilation choose.
 *
 * The bodies ops_body_*.h are written once on top of this and compiled three times, by
 * ops_plain.c, ops_avx2.c and ops_avx512.c. Forms may differ in LANES and in whether v_fma
 * rounds once, so results may differ between instruction sets, never within one.
 */
#ifndef KERNELS_CPU_OPS_SIMD_H
#define KERNELS_CPU_OPS_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>

#define SIMD_NAME(name) name##_avx512
enum { LANES = 16, SIMD_ROWS = 8, SIMD_DIRECT = 8 };
typedef __m512 vfloat;
typedef __m512i vint;

static inline vfloat v_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

static inline void v_store(float *p, vfloat a)
{
    _mm512_storeu_ps(p, a);
}

static inline vfloat v_set(float a)
{
    return _mm512_set1_ps(a);
}

static inline vfloat v_fma(vfloat a, vfloat b, vfloat c)
{
    return _mm512_fmadd_ps(a, b, c);
}

/* The second operand where the first is not a number, or is. */
static inline vfloat v_max(vfloat a, vfloat b)
{
    return _mm512_max_ps(a, b);
}

static inline vfloat v_min(vfloat a, vfloat b)
{
    return _mm512_min_ps(a, b);
}

static inline uint32_t v_mask_gt(vfloat a, vfloat b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
}

static inline uint32_t v_mask_ge(vfloat a, vfloat b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ);
}

/* a where x < y, else b. */
static inline vfloat v_select_lt(vfloat x, vfloat y, vfloat a, vfloat b)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, y, _CMP_LT_OQ), b, a);
}

static inline vfloat v_round(vfloat a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* a * 2^n, where n holds whole numbers and the result is normal. */
static inline vfloat v_scale2(vfloat a, vfloat n)
{
    __m512i exponent = _mm512_slli_epi32(_mm512_cvtps_epi32(n), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), exponent));
}

static inline vfloat v_copysign(vfloat magnitude, vfloat sign)
{
    return _mm512_or_ps(magnitude, _mm512_and_ps(sign, _mm512_set1_ps(-0.0f)));
}

static inline vfloat v_abs(vfloat a)
{
    return _mm512_abs_ps(a);
}

static inline vfloat v_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

static inline void v_store_f16(uint16_t *p, vfloat a)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}

/* Sums and maxima across lanes, halves first: a fixed tree. */
static inline float v_sum256(__m256 a)
{
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

static inline float v_largest256(__m256 a)
{
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}

static inline float v_sum(vfloat a)
{
    return v_sum256(_mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1)));
}

static inline float v_largest(vfloat a)
{
    return v_largest256(_mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1)));
}

#elif defined(__AVX2__)
#include <immintrin.h>

#define SIMD_NAME(name) name##_avx2
enum { LANES = 8, SIMD_ROWS = 4, SIMD_DIRECT = 4 };
typedef __m256 vfloat;
typedef __m256i vint;

static inline vfloat v_load(const float *p)
{
    return _mm256_loadu_ps(p);
}

static inline void v_store(float *p, vfloat a)
{
    _mm256_storeu_ps(p, a);
}

static inline vfloat v_set(float a)
{
    return _mm256_set1_ps(a);
}

static inline vfloat v_fma(vfloat a, vfloat b, vfloat c)
{
    return _mm256_fmadd_ps(a, b, c);
}

/* The second operand where the first is not a number, or is. */
static inline vfloat v_max(vfloat a, vfloat b)
{
    return _mm256_max_ps(a, b);
}

static inline vfloat v_min(vfloat a, vfloat b)
{
    return _mm256_min_ps(a, b);
}

static inline uint32_t v_mask_gt(vfloat a, vfloat b)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ));
}

static inline uint32_t v_mask_ge(vfloat a, vfloat b)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ));
}

/* a where x < y, else b. */
static inline vfloat v_select_lt(vfloat x, vfloat y, vfloat a, vfloat b)
{
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, y, _CMP_LT_OQ));
}

static inline vfloat v_round(vfloat a)
{
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* a * 2^n, where n holds whole numbers and the result is normal. */
static inline vfloat v_scale2(vfloat a, vfloat n)
{
    __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), exponent));
}

static inline vfloat v_copysign(vfloat magnitude, vfloat sign)
{
    return _mm256_or_ps(magnitude, _mm256_and_ps(sign, _mm256_set1_ps(-0.0f)));
}

static inline vfloat v_abs(vfloat a)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}

static inline vfloat v_load_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}

static inline void v_store_f16(uint16_t *p, vfloat a)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}

/* Sums and maxima across lanes, halves first: a fixed tree. */
static inline float v_sum(__m256 a)
{
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

static inline float v_largest(__m256 a)
{
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}

#else

#define SIMD_NAME(name) name##_plain
enum { LANES = 4, SIMD_ROWS = 4, SIMD_DIRECT = 0 };
typedef float vfloat __attribute__((vector_size(16)));
typedef int32_t vint __attribute__((vector_size(16)));

static inline vfloat v_load(const float *p)
{
    vfloat a;
    memcpy(&a, p, sizeof(a));
    return a;
}

static inline void v_store(float *p, vfloat a)
{
    memcpy(p, &a, sizeof(a));
}

static inline vfloat v_set(float a)
{
    return (vfloat){a, a, a, a};
}

static inline vfloat v_fma(vfloat a, vfloat b, vfloat c)
{
    return a * b + c;
}

static inline vfloat v_blend(vint mask, vfloat a, vfloat b)
{
    return (vfloat)(((vint)a & mask) | ((vint)b & ~mask));
}

/* The second operand where the first is not a number, or is. */
static inline vfloat v_max(vfloat a, vfloat b)
{
    return v_blend((vint)(a > b), a, b);
}

static inline vfloat v_min(vfloat a, vfloat b)
{
    return v_blend((vint)(a < b), a, b);
}

static inline uint32_t v_mask_bits(vint mask)
{
    return (mask[0] & 1u) | (mask[1] & 2u) | (mask[2] & 4u) | (mask[3] & 8u);
}

static inline uint32_t v_mask_gt(vfloat a, vfloat b)
{
    return v_mask_bits((vint)(a > b));
}

static inline uint32_t v_mask_ge(vfloat a, vfloat b)
{
    return v_mask_bits((vint)(a >= b));
}

/* a where x < y, else b. */
static inline vfloat v_select_lt(vfloat x, vfloat y, vfloat a, vfloat b)
{
    return v_blend((vint)(x < y), a, b);
}

/* For magnitudes below 2^22: adding and taking away 1.5 * 2^23 rounds to whole numbers. */
static inline vfloat v_round(vfloat a)
{
    vfloat magic = v_set(12582912.0f);
    return (a + magic) - magic;
}

/* a * 2^n, where n holds whole numbers and the result is normal. */
static inline vfloat v_scale2(vfloat a, vfloat n)
{
    return (vfloat)((vint)a + (__builtin_convertvector(n, vint) << 23));
}

static inline vfloat v_copysign(vfloat magnitude, vfloat sign)
{
    return (vfloat)((vint)magnitude | ((vint)sign & (vint)v_set(-0.0f)));
}

static inline vfloat v_abs(vfloat a)
{
    return (vfloat)((vint)a & ~(vint)v_set(-0.0f));
}

/* Shifting a half's exponent and mantissa into place leaves an exponent that is 112 too small;
 * the multiplication mends it, for denormals too. */
static inline vfloat v_load_f16(const uint16_t *p)
{
    vint half = {p[0], p[1], p[2], p[3]};
    vfloat magnitude = (vfloat)((half & 0x7fff) << 13) * v_set(5.192296858534828e33f);
    vint special = (half & 0x7c00) == 0x7c00;
    vint sign = (half > 0x7fff) & INT32_MIN;
    return (vfloat)((vint)magnitude | (special & 0x7f800000) | sign);
}

static inline uint16_t f16_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    uint32_t sign = bits >> 16 & 0x8000u;
    uint32_t magnitude = bits & 0x7fffffffu;

    if (magnitude > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u);
    if (magnitude >= 0x47800000u) /* 65536 on; the callers have clamped what is finite */
        return (uint16_t)(sign | 0x7c00u);
    if (magnitude < 0x38800000u) { /* below 2^-14: a multiple of 2^-24, added by the adder */
        float shifted;
        memcpy(&shifted, &magnitude, sizeof(shifted));
        shifted += 0.5f;
        memcpy(&magnitude, &shifted, sizeof(magnitude));
        return (uint16_t)(sign | (magnitude - 0x3f000000u));
    }
    magnitude += 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u;
    return (uint16_t)(sign | magnitude >> 13);
}

static inline void v_store_f16(uint16_t *p, vfloat a)
{
    for (int i = 0; i < LANES; i++)
        p[i] = f16_of(a[i]);
}

/* Sums and maxima across lanes, halves first: a fixed tree. */
static inline float v_sum(vfloat a)
{
    return (a[0] + a[2]) + (a[1] + a[3]);
}

static inline float v_largest(vfloat a)
{
    float even = a[0] > a[2] ? a[0] : a[2], odd = a[1] > a[3] ? a[1] : a[3];
    return even > odd ? even : odd;
}

#endif

/* The first `count` lanes from p, `fill` in the others. */
static inline vfloat v_load_part(const float *p, int32_t count, float fill)
{
    float lane[LANES];
    for (int32_t i = 0; i < LANES; i++)
        lane[i] = i < count ? p[i] : fill;
    return v_load(lane);
}

static inline void v_store_part(float *p, vfloat a, int32_t count)
{
    float lane[LANES];
    v_store(lane, a);
    memcpy(p, lane, (size_t)count * sizeof(*p));
}

/* e^x within 2 ulp; 0 below -87, e^88.37 above that; NaN stays NaN. */
static inline vfloat v_exp(vfloat x)
{
    vfloat clamped = v_max(v_set(-87.0f), v_min(v_set(88.37f), x));
    vfloat n = v_round(clamped * v_set(1.44269504f));
    vfloat r = v_fma(n, v_set(-0.693359375f), clamped);
    r = v_fma(n, v_set(2.12194440e-4f), r);

    vfloat p = v_set(1.9875691500e-4f);
    p = v_fma(p, r, v_set(1.3981999507e-3f));
    p = v_fma(p, r, v_set(8.3334519073e-3f));
    p = v_fma(p, r, v_set(4.1665795894e-2f));
    p = v_fma(p, r, v_set(1.6666665459e-1f));
    p = v_fma(p, r, v_set(5.0000001201e-1f));
    vfloat y = v_fma(p, r * r, r) + v_set(1.0f);
    return v_select_lt(x, v_set(-87.0f), v_set(0.0f), v_scale2(y, n));
}

/* tanh x within 2 ulp: a polynomial near 0, where the other form would cancel. */
static inline vfloat v_tanh(vfloat x)
{
    vfloat size = v_abs(x);
    vfloat z = x * x;
    vfloat p = v_set(-5.70498872745e-3f);
    p = v_fma(p, z, v_set(2.06390887954e-2f));
    p = v_fma(p, z, v_set(-5.37397155531e-2f));
    p = v_fma(p, z, v_set(1.33314422036e-1f));
    p = v_fma(p, z, v_set(-3.33332819422e-1f));
    vfloat near = v_fma(p * z, x, x);
    vfloat far = v_set(1.0f) - v_set(2.0f) / (v_exp(size + size) + v_set(1.0f));
    return v_select_lt(size, v_set(0.625f), near, v_copysign(far, x));
}

#endif
