// NEON with the dot-product instruction (Armv8.2 and later: Cortex-A75, Apple M1, Graviton 2): eight rows in two registers.
// variant_i8mm.cpp includes it once more, with the instruction for products of matrices (Cortex-A710, Apple M2, Graviton 3).
#if defined(__aarch64__)
#if !defined(EDGELLM_I8MM)
#define EDGELLM_I8MM 0
#endif
#include <arm_neon.h>

#include <cmath>
#include <cstring>

#include "cpu.h"
#include "grids.h"
#include "layout.h"

#if defined(__clang__) && EDGELLM_I8MM
EDGELLM_TARGET_BEGIN("dotprod,i8mm")
#elif defined(__clang__)
EDGELLM_TARGET_BEGIN("dotprod")
#elif EDGELLM_I8MM
EDGELLM_TARGET_BEGIN("arch=armv8.2-a+dotprod+i8mm")
#else
EDGELLM_TARGET_BEGIN("arch=armv8.2-a+dotprod")
#endif

namespace edgellm {
namespace {

struct S {
    struct F {
        float32x4_t a, b;
    };
    struct I {
        int32x4_t a, b;
    };
    struct W {
        uint8x16_t a, b;
    };
    using N = I;
    static constexpr int kLanes = 8;
    static constexpr int kColumns = kMaxCols;
    static constexpr int64_t kWide = 32;
    static constexpr bool kNarrow = false;
    static constexpr bool kTwoChains = false;
    static constexpr bool kSignedOnly = true;   // the instruction multiplies signed by signed
    static inline F zero() { return {vdupq_n_f32(0), vdupq_n_f32(0)}; }
    static inline I zero_int() { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }
    static inline F broadcast(const float* p) { return {vld1q_dup_f32(p), vld1q_dup_f32(p)}; }
    static inline I broadcast_int(const int32_t* p) { return {vld1q_dup_s32(p), vld1q_dup_s32(p)}; }
    static inline N zero_sum() { return zero_int(); }
    static inline N start(const int32_t* p) { return broadcast_int(p); }
    static inline I widen(N v) { return v; }
    static inline W load(const uint8_t* p) { return {vld1q_u8(p), vld1q_u8(p + 16)}; }
    static inline W low(W v) { return {vandq_u8(v.a, vdupq_n_u8(15)), vandq_u8(v.b, vdupq_n_u8(15))}; }
    static inline W high(W v) { return {vshrq_n_u8(v.a, 4), vshrq_n_u8(v.b, 4)}; }
    template <int shift, int mask>
    static inline uint8x16_t insert_one(uint8x16_t v, uint8x16_t from) {
        if constexpr (shift > 0) from = vshlq_n_u8(from, shift);
        if constexpr (shift < 0) from = vshrq_n_u8(from, -shift);
        return vorrq_u8(v, vandq_u8(from, vdupq_n_u8(mask)));
    }
    template <int shift, int mask>
    static inline W insert(W v, W from) {
        return {insert_one<shift, mask>(v.a, from.a), insert_one<shift, mask>(v.b, from.b)};
    }
    static inline W lookup(W v, const uint8_t (&table)[16]) { return {vqtbl1q_u8(vld1q_u8(table), v.a), vqtbl1q_u8(vld1q_u8(table), v.b)}; }
    static inline I lanes(W v) { return {vreinterpretq_s32_u8(v.a), vreinterpretq_s32_u8(v.b)}; }
    static inline W as_bytes(I v) { return {vreinterpretq_u8_s32(v.a), vreinterpretq_u8_s32(v.b)}; }
    static inline I every(int32_t x) { return {vdupq_n_s32(x), vdupq_n_s32(x)}; }
    template <int n>
    static inline I left(I v) {
        return {vshlq_n_s32(v.a, n), vshlq_n_s32(v.b, n)};
    }
    template <int n>
    static inline int32x4_t right_one(int32x4_t v) {
        if constexpr (n == 0) return v;
        else return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(v), n));
    }
    template <int n>
    static inline I right(I v) {
        return {right_one<n>(v.a), right_one<n>(v.b)};
    }
    static inline I masked(I v, uint32_t mask) { return both(v, every(static_cast<int32_t>(mask))); }
    static inline I both(I x, I y) { return {vandq_s32(x.a, y.a), vandq_s32(x.b, y.b)}; }
    static inline I either(I x, I y) { return {vorrq_s32(x.a, y.a), vorrq_s32(x.b, y.b)}; }
    static inline I differing(I x, I y) { return {veorq_s32(x.a, y.a), veorq_s32(x.b, y.b)}; }
    static inline I add(I x, I y) { return {vaddq_s32(x.a, y.a), vaddq_s32(x.b, y.b)}; }
    static inline I subtract(I x, I y) { return {vsubq_s32(x.a, y.a), vsubq_s32(x.b, y.b)}; }
    static inline I gather(const uint32_t* table, I index) {
        int32_t at[kLanes], found[kLanes];
        vst1q_s32(at, index.a), vst1q_s32(at + 4, index.b);
        for (int i = 0; i < kLanes; i++) found[i] = static_cast<int32_t>(table[at[i]]);
        return {vld1q_s32(found), vld1q_s32(found + 4)};
    }
    // A byte of ones for each of the low four bits of a lane that is set.
    static inline int32x4_t sign_mask_one(int32x4_t v) {
        const uint32x4_t lowest = vmulq_n_u32(vandq_u32(vreinterpretq_u32_s32(v), vdupq_n_u32(15)), 0x01010101u);
        return vreinterpretq_s32_u8(vtstq_u8(vreinterpretq_u8_u32(lowest), vreinterpretq_u8_u32(vdupq_n_u32(0x08040201u))));
    }
    static inline I sign_mask(I v) { return {sign_mask_one(v.a), sign_mask_one(v.b)}; }
    static inline I dot(I acc, W w, const int32_t* q) {
        const int8x16_t x = vreinterpretq_s8_s32(vld1q_dup_s32(q));
        return {vdotq_s32(acc.a, vreinterpretq_s8_u8(w.a), x), vdotq_s32(acc.b, vreinterpretq_s8_u8(w.b), x)};
    }
    static inline I dot_wide(I acc, W w, const int32_t* q) { return dot(acc, w, q); }
    static inline W flip_sign(W v) { return {veorq_u8(v.a, vdupq_n_u8(0x80)), veorq_u8(v.b, vdupq_n_u8(0x80))}; }
    static inline I times_64(I v) { return {vshlq_n_s32(v.a, 6), vshlq_n_s32(v.b, 6)}; }
    static inline F to_float(I v) { return {vcvtq_f32_s32(v.a), vcvtq_f32_s32(v.b)}; }
    static inline F half(const uint8_t* p) {
        const float16x8_t h = vreinterpretq_f16_u8(vld1q_u8(p));
        return {vcvt_f32_f16(vget_low_f16(h)), vcvt_f32_f16(vget_high_f16(h))};
    }
    static inline F bfloats(const uint8_t* p) {
        const uint16x8_t h = vreinterpretq_u16_u8(vld1q_u8(p));
        return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(h), 16)), vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(h), 16))};
    }
    // 2^(x - 128) of bytes x; what would be denormal is zero, as the block of zeros that it belongs to.
    static inline float32x4_t exponents_one(uint16x4_t bytes) {
        const int32x4_t exponent = vsubq_s32(vreinterpretq_s32_u32(vmovl_u16(bytes)), vdupq_n_s32(1));
        return vreinterpretq_f32_s32(vmaxq_s32(vshlq_n_s32(exponent, 23), vdupq_n_s32(0)));
    }
    static inline F exponents(const uint8_t* p) {
        const uint16x8_t v = vmovl_u8(vld1_u8(p));
        return {exponents_one(vget_low_u16(v)), exponents_one(vget_high_u16(v))};
    }
    static inline F bytes(const uint8_t* p) {
        const uint16x8_t v = vmovl_u8(vld1_u8(p));
        return {vcvtq_f32_u32(vmovl_u16(vget_low_u16(v))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(v)))};
    }
    static inline F signed_bytes(const uint8_t* p) {
        const int16x8_t v = vmovl_s8(vreinterpret_s8_u8(vld1_u8(p)));
        return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(v))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(v)))};
    }
    static inline F add_floats(F x, F y) { return {vaddq_f32(x.a, y.a), vaddq_f32(x.b, y.b)}; }
    static inline F mul(F x, F y) { return {vmulq_f32(x.a, y.a), vmulq_f32(x.b, y.b)}; }
    static inline F fma(F x, F y, F z) { return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b)}; }
    static inline F minus_product(F z, F x, F y) { return {vfmsq_f32(z.a, x.a, y.a), vfmsq_f32(z.b, x.b, y.b)}; }
    static inline F floats(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
    static inline void store(float* p, F v) { vst1q_f32(p, v.a), vst1q_f32(p + 4, v.b); }
    static inline void store_bytes(uint8_t* p, W v) { vst1q_u8(p, v.a), vst1q_u8(p + 16, v.b); }
    static inline void prefetch(const uint8_t* p) { EDGELLM_PREFETCH(p); }
    static inline void keep(I& v) {
        EDGELLM_KEEP(v.a);
        EDGELLM_KEEP(v.b);
    }
    static inline void keep_bytes(W& v) {
        EDGELLM_KEEP(v.a);
        EDGELLM_KEEP(v.b);
    }
};

#include "kernels.h"

#if EDGELLM_I8MM
// Two rows of eight weights times two columns of eight activations an instruction: sums of pairs of columns, four vectors of
// 2 x 2 for eight rows. Two vectors of four weights a row, interleaved, are what it wants; a single last column has dot products.
template <int C, bool kWide>
struct Sums<S, C, kWide> {
    static constexpr int kPairs = C / 2;
    int32x4_t both[kPairs + 1][4];   // [pair of columns][pair of rows]: (row 0: column 0, 1; row 1: column 0, 1)
    S::I last;
    S::W even;
    const int32_t* even_q;
    EDGELLM_INLINE void begin() {
        EDGELLM_UNROLL for (int p = 0; p < kPairs; p++) EDGELLM_UNROLL for (int r = 0; r < 4; r++) both[p][r] = vdupq_n_s32(0);
        if constexpr (C % 2) last = S::zero_int();
    }
    EDGELLM_INLINE void begin(const int32_t* starts) {
        EDGELLM_UNROLL for (int p = 0; p < kPairs; p++) {
            const int32x2_t start = vld1_s32(starts + 2 * p);
            EDGELLM_UNROLL for (int r = 0; r < 4; r++) both[p][r] = vcombine_s32(start, start);
        }
        if constexpr (C % 2) last = S::broadcast_int(starts + C - 1);
    }
    static EDGELLM_INLINE int8x16_t rows_of(uint8x16_t even, uint8x16_t odd, bool upper) {
        const int32x4_t a = vreinterpretq_s32_u8(even), b = vreinterpretq_s32_u8(odd);
        return vreinterpretq_s8_s32(upper ? vzip2q_s32(a, b) : vzip1q_s32(a, b));
    }
    template <int I>
    EDGELLM_INLINE void add(Int<I>, const S::W& w, const int32_t* q) {
        if constexpr (C % 2) last = S::dot(last, w, q + C - 1);
        if constexpr (I % 2 == 0) {
            even = w, even_q = q;
        } else if constexpr (kPairs > 0) {
            const int8x16_t rows[4] = {rows_of(even.a, w.a, false), rows_of(even.a, w.a, true), rows_of(even.b, w.b, false),
                                       rows_of(even.b, w.b, true)};
            EDGELLM_UNROLL for (int p = 0; p < kPairs; p++) {
                const int32x2_t x = vld1_s32(even_q + 2 * p), y = vld1_s32(q + 2 * p);
                const int8x16_t columns = vreinterpretq_s8_s32(vcombine_s32(vzip1_s32(x, y), vzip2_s32(x, y)));
                EDGELLM_UNROLL for (int r = 0; r < 4; r++) both[p][r] = vmmlaq_s32(both[p][r], rows[r], columns);
            }
        }
    }
    EDGELLM_INLINE S::I total(int c) const {
        if (C % 2 && c == C - 1) return last;
        const int32x4_t(&v)[4] = both[c / 2];
        if (c % 2) return {vuzp2q_s32(v[0], v[1]), vuzp2q_s32(v[2], v[3])};
        return {vuzp1q_s32(v[0], v[1]), vuzp1q_s32(v[2], v[3])};
    }
};

double peak_of_matrices(int64_t rounds) {
    constexpr int n = 12;
    int32x4_t acc[n];
    int8x16_t w = vdupq_n_s8(1), x = vdupq_n_s8(static_cast<int8_t>(rounds & 1));
    EDGELLM_UNROLL for (int i = 0; i < n; i++) acc[i] = vdupq_n_s32(i);
    for (int64_t round = 0; round < rounds; round++) {
        EDGELLM_KEEP(w);
        EDGELLM_UNROLL for (int i = 0; i < n; i++) acc[i] = vmmlaq_s32(acc[i], w, x);
        EDGELLM_UNROLL for (int i = 0; i < n; i++) EDGELLM_KEEP(acc[i]);
    }
    int32_t all = 0;
    EDGELLM_UNROLL for (int i = 0; i < n; i++) all |= vaddvq_s32(acc[i]);
    return all >= 0 ? static_cast<double>(rounds) * n * 32 : 0;
}
#endif

struct A {
    struct V {
        float32x4_t a, b;
    };
    static inline V zero() { return {vdupq_n_f32(0), vdupq_n_f32(0)}; }
    static inline V all(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
    static inline V load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
    static inline void store(float* p, V v) { vst1q_f32(p, v.a), vst1q_f32(p + 4, v.b); }
    static inline V half(const uint8_t* p) {
        const S::F f = S::half(p);
        return {f.a, f.b};
    }
    static inline V one_half(const uint8_t* p) {
        uint16_t bits;
        std::memcpy(&bits, p, 2);
        const float32x4_t v = vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(bits)));
        return {v, v};
    }
    static inline V bytes(const uint8_t* p) {
        const S::F f = S::signed_bytes(p);
        return {f.a, f.b};
    }
    static inline V add(V x, V y) { return {vaddq_f32(x.a, y.a), vaddq_f32(x.b, y.b)}; }
    static inline V sub(V x, V y) { return {vsubq_f32(x.a, y.a), vsubq_f32(x.b, y.b)}; }
    static inline V mul(V x, V y) { return {vmulq_f32(x.a, y.a), vmulq_f32(x.b, y.b)}; }
    static inline V fma(V x, V y, V z) { return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b)}; }
    static inline V larger(V x, V y) { return {vmaxq_f32(x.a, y.a), vmaxq_f32(x.b, y.b)}; }
    static inline float largest(V v) { return vmaxvq_f32(vmaxq_f32(v.a, v.b)); }
    static inline float32x4_t zero_one(float32x4_t x, float limit, float32x4_t v) {
        return vreinterpretq_f32_u32(vandq_u32(vcgeq_f32(x, vdupq_n_f32(limit)), vreinterpretq_u32_f32(v)));
    }
    static inline V zero_below(V x, float limit, V v) { return {zero_one(x.a, limit, v.a), zero_one(x.b, limit, v.b)}; }
    static inline float32x4_t power_one(float32x4_t shifted) {
        return vreinterpretq_f32_s32(vaddq_s32(vshlq_n_s32(vreinterpretq_s32_f32(shifted), 23), vdupq_n_s32(0x3f800000)));
    }
    static inline V power_of_two(V shifted) { return {power_one(shifted.a), power_one(shifted.b)}; }
    // Lanes 4 apart first, then neighbours, then the rest.
    static inline float sum(V v) {
        const float32x4_t t = vaddq_f32(v.a, v.b), pairs = vpaddq_f32(t, t);
        return vgetq_lane_f32(vpaddq_f32(pairs, pairs), 0);
    }
    static inline void sums(V a, V b, V c, V d, float* ab, float* cd) {
        const float32x4_t first = vpaddq_f32(vaddq_f32(a.a, a.b), vaddq_f32(b.a, b.b));
        const float32x4_t second = vpaddq_f32(vaddq_f32(c.a, c.b), vaddq_f32(d.a, d.b));
        const float32x4_t all = vpaddq_f32(first, second);
        vst1_f32(ab, vget_low_f32(all)), vst1_f32(cd, vget_high_f32(all));
    }
};

#include "attention.h"
#include "thin.h"

#if EDGELLM_I8MM
bool runs_here() { return cpu_has(Feature::neon_dotprod) && cpu_has(Feature::neon_i8mm); }

constexpr Variant kTable = table_of<S, A>("neon-i8mm", runs_here, peak_of_matrices);
#else
bool runs_here() { return cpu_has(Feature::neon_dotprod); }

constexpr Variant kTable = table_of<S, A>("neon-dotprod", runs_here);
#endif

}   // namespace

#if EDGELLM_I8MM
extern const Variant kNeonI8mm = kTable;
#else
extern const Variant kNeonDotprod = kTable;
#endif

}   // namespace edgellm

EDGELLM_TARGET_END
#endif
