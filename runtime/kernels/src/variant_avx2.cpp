// AVX2, with and without the dot-product instruction of AVX-VNNI: sixteen rows in two registers.
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "cpu.h"
#include "grids.h"
#include "layout.h"

#if !defined(EDGELLM_AVX_VNNI)   // this file is compiled twice: variant_avxvnni.cpp includes it with the better instruction
#define EDGELLM_AVX_VNNI 0
#endif

#if EDGELLM_AVX_VNNI
EDGELLM_TARGET_BEGIN("avx2,fma,f16c,avxvnni")
#else
EDGELLM_TARGET_BEGIN("avx2,fma,f16c")
#endif

namespace edgellm {
namespace {

struct S {
    struct F {
        __m256 a, b;
    };
    struct I {
        __m256i a, b;
    };
    using W = I;
    using N = I;
    static constexpr int kLanes = 16;
    static constexpr int kColumns = 4;   // with two sums each they leave half of the 16 registers for the rest
    static constexpr int64_t kWide = 16;
    static constexpr bool kNarrow = !EDGELLM_AVX_VNNI;
    static constexpr bool kTwoChains = false;
    static constexpr bool kSignedOnly = !EDGELLM_AVX_VNNI;   // 16-bit sums of pairs overflow with weights of eight bits
    static inline __m256i load_one(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    static inline F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
    static inline I zero_int() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
    static inline N zero_sum() { return zero_int(); }
    static inline F broadcast(const float* p) {
        const __m256 v = _mm256_broadcast_ss(p);
        return {v, v};
    }
    static inline I broadcast_int(const int32_t* p) {
        const __m256i v = _mm256_set1_epi32(*p);
        return {v, v};
    }
    static inline N start(const int32_t* p) { return broadcast_int(p); }
    static inline W load(const uint8_t* p) { return {load_one(p), load_one(p + 32)}; }
    static inline W low(const W& v) {
        const __m256i mask = _mm256_set1_epi8(15);
        return {_mm256_and_si256(v.a, mask), _mm256_and_si256(v.b, mask)};
    }
    static inline W high(const W& v) {
        const __m256i mask = _mm256_set1_epi8(15);
        return {_mm256_and_si256(_mm256_srli_epi16(v.a, 4), mask), _mm256_and_si256(_mm256_srli_epi16(v.b, 4), mask)};
    }
    template <int shift, int mask>
    static inline __m256i insert_one(__m256i v, __m256i from) {
        if constexpr (shift > 0) from = _mm256_slli_epi16(from, shift);
        if constexpr (shift < 0) from = _mm256_srli_epi16(from, -shift);
        return _mm256_or_si256(v, _mm256_and_si256(from, _mm256_set1_epi8(mask)));
    }
    template <int shift, int mask>
    static inline W insert(const W& v, const W& from) {
        return {insert_one<shift, mask>(v.a, from.a), insert_one<shift, mask>(v.b, from.b)};
    }
    // Bit `j` of each byte of `from` as bit 4 of `v`, where a loop leaves `j` open.
    static inline W insert_fifth(const W& v, const W& from, int j) {
        const __m256i bit = _mm256_set1_epi8(static_cast<char>(1 << j)), fifth = _mm256_set1_epi8(0x10);
        auto one = [&](__m256i to, __m256i f) {
            return _mm256_or_si256(to, _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(f, bit), bit), fifth));
        };
        return {one(v.a, from.a), one(v.b, from.b)};
    }
    static inline W lookup(const W& v, const uint8_t (&values)[16]) {
        const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
        return {_mm256_shuffle_epi8(table, v.a), _mm256_shuffle_epi8(table, v.b)};
    }
    static inline I lanes(const W& v) { return v; }
    static inline W as_bytes(const I& v) { return v; }
    static inline I every(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
    template <int n>
    static inline I left(const I& v) {
        return {_mm256_slli_epi32(v.a, n), _mm256_slli_epi32(v.b, n)};
    }
    template <int n>
    static inline I right(const I& v) {
        return {_mm256_srli_epi32(v.a, n), _mm256_srli_epi32(v.b, n)};
    }
    static inline I masked(const I& v, uint32_t mask) { return both(v, every(static_cast<int32_t>(mask))); }
    static inline I both(const I& x, const I& y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
    static inline I either(const I& x, const I& y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
    static inline I differing(const I& x, const I& y) { return {_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)}; }
    static inline I gather(const uint32_t* table, const I& index) {
        const int* at = reinterpret_cast<const int*>(table);
        return {_mm256_i32gather_epi32(at, index.a, 4), _mm256_i32gather_epi32(at, index.b, 4)};
    }
    // A byte of ones for each of the low four bits of a lane that is set.
    static inline __m256i sign_mask_one(__m256i v) {
        const __m256i lowest = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
        const __m256i bit = _mm256_set1_epi32(0x08040201);
        return _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(v, lowest), bit), bit);
    }
    static inline I sign_mask(const I& v) { return {sign_mask_one(v.a), sign_mask_one(v.b)}; }
    static inline I subtract(const I& x, const I& y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
    static inline I add(const I& x, const I& y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
#if EDGELLM_AVX_VNNI
    static inline N dot(const N& acc, const W& w, const int32_t* p) {
        const __m256i q = _mm256_set1_epi32(*p);
        return {_mm256_dpbusd_avx_epi32(acc.a, w.a, q), _mm256_dpbusd_avx_epi32(acc.b, w.b, q)};
    }
    static inline I dot_wide(const I& acc, const W& w, const int32_t* q) { return dot(acc, w, q); }
    static inline I widen(const N& v) { return v; }
#else
    static inline N dot(const N& acc, const W& w, const int32_t* p) {
        const __m256i q = _mm256_set1_epi32(*p);
        N sum = {_mm256_add_epi16(acc.a, _mm256_maddubs_epi16(w.a, q)), _mm256_add_epi16(acc.b, _mm256_maddubs_epi16(w.b, q))};
        keep(sum);   // or the compiler forms all the products first and runs out of registers
        return sum;
    }
    static inline __m256i wide_one(__m256i acc, __m256i w, __m256i q) {   // |w| * (q with the sign of w), |w| <= 128
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(q, w));
        return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    static inline I dot_wide(const I& acc, const W& w, const int32_t* p) {
        const __m256i q = _mm256_set1_epi32(*p);
        I sum = {wide_one(acc.a, w.a, q), wide_one(acc.b, w.b, q)};
        keep(sum);
        return sum;
    }
    static inline I widen(const N& v) {
        const __m256i ones = _mm256_set1_epi16(1);
        return {_mm256_madd_epi16(v.a, ones), _mm256_madd_epi16(v.b, ones)};
    }
#endif
    static inline W flip_sign(const W& v) {
        const __m256i top = _mm256_set1_epi8(static_cast<char>(0x80));
        return {_mm256_xor_si256(v.a, top), _mm256_xor_si256(v.b, top)};
    }
    static inline I times_64(const I& v) { return {_mm256_slli_epi32(v.a, 6), _mm256_slli_epi32(v.b, 6)}; }
    static inline F to_float(const I& v) { return {_mm256_cvtepi32_ps(v.a), _mm256_cvtepi32_ps(v.b)}; }
    static inline __m128i load_half(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
    static inline __m128i load_quarter(const uint8_t* p) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)); }
    static inline F half(const uint8_t* p) { return {_mm256_cvtph_ps(load_half(p)), _mm256_cvtph_ps(load_half(p + 16))}; }
    static inline __m256 bfloats_one(const uint8_t* p) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_half(p)), 16)); }
    static inline F bfloats(const uint8_t* p) { return {bfloats_one(p), bfloats_one(p + 16)}; }
    // 2^(x - 128) of bytes x; what would be denormal is zero, as the block of zeros that it belongs to.
    static inline __m256 exponents_one(const uint8_t* p) {
        const __m256i exponent = _mm256_sub_epi32(_mm256_cvtepu8_epi32(load_quarter(p)), _mm256_set1_epi32(1));
        return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_slli_epi32(exponent, 23), _mm256_setzero_si256()));
    }
    static inline F exponents(const uint8_t* p) { return {exponents_one(p), exponents_one(p + 8)}; }
    static inline F bytes(const uint8_t* p) { return to_float({_mm256_cvtepu8_epi32(load_quarter(p)), _mm256_cvtepu8_epi32(load_quarter(p + 8))}); }
    static inline F signed_bytes(const uint8_t* p) {
        return to_float({_mm256_cvtepi8_epi32(load_quarter(p)), _mm256_cvtepi8_epi32(load_quarter(p + 8))});
    }
    static inline F add_floats(const F& x, const F& y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
    static inline F mul(const F& x, const F& y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
    static inline F fma(const F& x, const F& y, const F& z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
    static inline F minus_product(const F& z, const F& x, const F& y) { return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)}; }
    static inline F floats(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
    static inline void store(float* p, const F& v) {
        _mm256_storeu_ps(p, v.a);
        _mm256_storeu_ps(p + 8, v.b);
    }
    static inline void store_bytes(uint8_t* p, const W& v) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v.a);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), v.b);
    }
    static inline void prefetch(const uint8_t* p) { EDGELLM_PREFETCH(p); }
    static inline void keep(I& v) {
        EDGELLM_KEEP(v.a);
        EDGELLM_KEEP(v.b);
    }
    static inline void keep_bytes(W& v) { keep(v); }
};

#include "kernels.h"

#include "attention_x86.h"
#include "attention.h"
#include "thin.h"

bool runs_here() { return cpu_has(EDGELLM_AVX_VNNI ? Feature::avx_vnni : Feature::avx2); }

constexpr Variant kTable = table_of<S, A>(EDGELLM_AVX_VNNI ? "avx-vnni" : "avx2", runs_here);

}   // namespace

#if EDGELLM_AVX_VNNI
extern const Variant kAvxVnni = kTable;
#else
extern const Variant kAvx2 = kTable;
#endif

}   // namespace edgellm

EDGELLM_TARGET_END
#endif
