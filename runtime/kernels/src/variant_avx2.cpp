// AVX2, with and without the dot-product instruction of AVX-VNNI: eight rows in a register, so a group takes two passes.
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>

#include <cstring>

#include "cpu.h"
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
    using F = __m256;
    using I = __m256i;
    using W = __m256i;
    static constexpr int kLanes = 8;
    static constexpr bool kSignedOnly = !EDGELLM_AVX_VNNI;   // 16-bit sums of pairs overflow with weights of eight bits
    static inline F zero() { return _mm256_setzero_ps(); }
    static inline I zero_int() { return _mm256_setzero_si256(); }
    static inline F broadcast(const float* p) { return _mm256_broadcast_ss(p); }
    static inline I broadcast_int(const int32_t* p) { return _mm256_set1_epi32(*p); }
    static inline W load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    static inline W low(W v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
    static inline W high(W v) { return _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15)); }
    template <int shift, int mask>
    static inline W insert(W v, W from) {
        if constexpr (shift > 0) from = _mm256_slli_epi16(from, shift);
        if constexpr (shift < 0) from = _mm256_srli_epi16(from, -shift);
        return _mm256_or_si256(v, _mm256_and_si256(from, _mm256_set1_epi8(mask)));
    }
    static inline W lookup(W v) {
        return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kIq4))), v);
    }
#if EDGELLM_AVX_VNNI
    static inline I dot(I acc, W w, const int32_t* q) { return _mm256_dpbusd_avx_epi32(acc, w, _mm256_set1_epi32(*q)); }
    static inline I dot_wide(I acc, W w, const int32_t* q) { return dot(acc, w, q); }
#else
    static inline I dot(I acc, W w, const int32_t* q) {   // weights below 64: two products stay below 2^15
        const I pairs = _mm256_maddubs_epi16(w, _mm256_set1_epi32(*q));
        return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    static inline I dot_wide(I acc, W w, const int32_t* q) {   // |w| * (q with the sign of w), |w| <= 128
        const I pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(_mm256_set1_epi32(*q), w));
        return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
#endif
    static inline W flip_sign(W v) { return _mm256_xor_si256(v, _mm256_set1_epi8(static_cast<char>(0x80))); }
    static inline I times_64(I v) { return _mm256_slli_epi32(v, 6); }
    static inline F to_float(I v) { return _mm256_cvtepi32_ps(v); }
    static inline F half(const uint8_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
    static inline F bytes(const uint8_t* p) {
        return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
    }
    static inline F signed_bytes(const uint8_t* p) {
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
    }
    static inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static inline F minus_product(F c, F a, F b) { return _mm256_fnmadd_ps(a, b, c); }
    static inline void store(float* p, F v) { _mm256_storeu_ps(p, v); }
    static inline void prefetch(const uint8_t* p) { EDGELLM_PREFETCH(p); }
    static inline void keep(I& v) { EDGELLM_KEEP(v); }
    static inline void keep_bytes(W& v) { EDGELLM_KEEP(v); }
};

#include "kernels.h"

bool runs_here() { return cpu_has(EDGELLM_AVX_VNNI ? Feature::avx_vnni : Feature::avx2); }

constexpr Variant kTable = table_of<S>(EDGELLM_AVX_VNNI ? "avx-vnni" : "avx2", runs_here);

}  // namespace

#if EDGELLM_AVX_VNNI
extern const Variant kAvxVnni = kTable;
#else
extern const Variant kAvx2 = kTable;
#endif

}  // namespace edgellm

EDGELLM_TARGET_END
#endif
