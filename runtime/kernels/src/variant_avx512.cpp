// AVX-512 with VNNI: sixteen rows in a register (Intel from Cascade Lake and Ice Lake, AMD from Zen 4).
#if defined(__x86_64__) || defined(_M_X64)
// Values that an intrinsic leaves open on purpose are warned of inside gcc's own header (its bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#include <cmath>
#include <cstring>

#include "cpu.h"
#include "grids.h"
#include "layout.h"

EDGELLM_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,avx2,f16c")

namespace edgellm {
namespace {

struct S {
    using F = __m512;
    using I = __m512i;
    using W = __m512i;
    using N = I;
    static constexpr int kLanes = 16;
    static constexpr int kColumns = kMaxCols;
    static constexpr int64_t kWide = 32;
    static constexpr bool kNarrow = false;
    static constexpr bool kTwoChains = true;
    static constexpr bool kSignedOnly = false;
    static inline F zero() { return _mm512_setzero_ps(); }
    static inline I zero_int() { return _mm512_setzero_si512(); }
    static inline F broadcast(const float* p) { return _mm512_set1_ps(*p); }
    static inline I broadcast_int(const int32_t* p) { return _mm512_set1_epi32(*p); }
    static inline N zero_sum() { return zero_int(); }
    static inline N start(const int32_t* p) { return broadcast_int(p); }
    static inline I widen(N v) { return v; }
    static inline W load(const uint8_t* p) { return _mm512_loadu_si512(p); }
    static inline W low(W v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
    static inline W high(W v) { return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15)); }
    // v | (from << shift & mask) in every byte; a negative shift goes right.
    template <int shift, int mask>
    static inline W insert(W v, W from) {
        if constexpr (shift > 0) from = _mm512_slli_epi16(from, shift);
        if constexpr (shift < 0) from = _mm512_srli_epi16(from, -shift);
        return _mm512_ternarylogic_epi32(v, from, _mm512_set1_epi8(mask), 0xf8);
    }
    static inline W lookup(W v, const uint8_t (&table)[16]) {
        return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table))), v);
    }
    static inline I lanes(W v) { return v; }
    static inline W as_bytes(I v) { return v; }
    static inline I every(int32_t x) { return _mm512_set1_epi32(x); }
    template <int n>
    static inline I left(I v) {
        return _mm512_slli_epi32(v, n);
    }
    template <int n>
    static inline I right(I v) {
        return _mm512_srli_epi32(v, n);
    }
    static inline I masked(I v, uint32_t mask) { return _mm512_and_si512(v, every(static_cast<int32_t>(mask))); }
    static inline I both(I a, I b) { return _mm512_and_si512(a, b); }
    static inline I either(I a, I b) { return _mm512_or_si512(a, b); }
    static inline I differing(I a, I b) { return _mm512_xor_si512(a, b); }
    static inline I gather(const uint32_t* table, I index) { return _mm512_i32gather_epi32(index, table, 4); }
    // A byte of ones for each of the low four bits of a lane that is set.
    static inline I sign_mask(I v) {
        alignas(64) static constexpr uint32_t spread[16] = {0,          0xff,       0xff00,     0xffff,     0xff0000,   0xff00ff,
                                                            0xffff00,   0xffffff,   0xff000000, 0xff0000ff, 0xff00ff00, 0xff00ffff,
                                                            0xffff0000, 0xffff00ff, 0xffffff00, 0xffffffff};
        return _mm512_permutexvar_epi32(v, _mm512_load_si512(spread));
    }
    static inline I dot(I acc, W w, const int32_t* q) { return _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(*q)); }
    static inline I dot_wide(I acc, W w, const int32_t* q) { return dot(acc, w, q); }
    static inline I add(I a, I b) { return _mm512_add_epi32(a, b); }
    static inline I subtract(I a, I b) { return _mm512_sub_epi32(a, b); }
    static inline W flip_sign(W v) { return v; }
    static inline I times_64(I v) { return _mm512_slli_epi32(v, 6); }
    static inline F to_float(I v) { return _mm512_cvtepi32_ps(v); }
    static inline F half(const uint8_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
    static inline F bfloats(const uint8_t* p) {
        const I wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
        return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
    }
    // 2^(x - 128) of bytes x; what would be denormal is zero, as the block of zeros that it belongs to.
    static inline F exponents(const uint8_t* p) {
        const I x = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
        return _mm512_castsi512_ps(_mm512_max_epi32(left<23>(subtract(x, every(1))), zero_int()));
    }
    static inline F bytes(const uint8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))); }
    static inline F signed_bytes(const uint8_t* p) {
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
    }
    static inline F add_floats(F a, F b) { return _mm512_add_ps(a, b); }
    static inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static inline F minus_product(F c, F a, F b) { return _mm512_fnmadd_ps(a, b, c); }
    static inline F floats(const float* p) { return _mm512_loadu_ps(p); }
    static inline void store(float* p, F v) { _mm512_storeu_ps(p, v); }
    static inline void store_bytes(uint8_t* p, W v) { _mm512_storeu_si512(p, v); }
    static inline void prefetch(const uint8_t* p) { EDGELLM_PREFETCH(p); }
    static inline void keep(I& v) { EDGELLM_KEEP(v); }
    static inline void keep_bytes(W& v) { EDGELLM_KEEP(v); }
};

#include "kernels.h"

#include "attention_x86.h"
#include "attention.h"
#include "thin.h"

bool runs_here() { return cpu_has(Feature::avx512_vnni); }

constexpr Variant kTable = table_of<S, A>("avx512-vnni", runs_here);

}   // namespace

extern const Variant kAvx512Vnni = kTable;

}   // namespace edgellm

EDGELLM_TARGET_END
#endif
