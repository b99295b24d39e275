// Eight floats in a register of AVX2, for the variants on x86.
struct A {
    using V = __m256;
    static inline V zero() { return _mm256_setzero_ps(); }
    static inline V all(float x) { return _mm256_set1_ps(x); }
    static inline V load(const float* p) { return _mm256_loadu_ps(p); }
    static inline void store(float* p, V v) { _mm256_storeu_ps(p, v); }
    static inline V half(const uint8_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
    static inline V one_half(const uint8_t* p) {
        uint16_t bits;
        std::memcpy(&bits, p, 2);
        return _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
    }
    static inline V bytes(const uint8_t* p) {   // signed ones
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
    }
    static inline V add(V x, V y) { return _mm256_add_ps(x, y); }
    static inline V sub(V x, V y) { return _mm256_sub_ps(x, y); }
    static inline V mul(V x, V y) { return _mm256_mul_ps(x, y); }
    static inline V fma(V x, V y, V z) { return _mm256_fmadd_ps(x, y, z); }
    static inline V larger(V x, V y) { return _mm256_max_ps(x, y); }
    static inline float largest(V v) {
        __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        m = _mm_max_ps(m, _mm_movehl_ps(m, m));
        return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
    }
    static inline V zero_below(V x, float limit, V v) { return _mm256_and_ps(v, _mm256_cmp_ps(x, _mm256_set1_ps(limit), _CMP_GE_OQ)); }
    static inline V power_of_two(V shifted) {   // of the integer in its low bits
        const __m256i n = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
        return _mm256_castsi256_ps(_mm256_add_epi32(n, _mm256_set1_epi32(0x3f800000)));
    }
    // Lanes 4 apart first, then neighbours, then the rest.
    static inline __m128 halves(V v) { return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)); }
    static inline float sum(V v) {
        const __m128 pairs = _mm_hadd_ps(halves(v), halves(v));
        return _mm_cvtss_f32(_mm_hadd_ps(pairs, pairs));
    }
    static inline void sums(V a, V b, V c, V d, float* ab, float* cd) {
        const __m128 all = _mm_hadd_ps(_mm_hadd_ps(halves(a), halves(b)), _mm_hadd_ps(halves(c), halves(d)));
        _mm_storel_pi(reinterpret_cast<__m64*>(ab), all);
        _mm_storeh_pi(reinterpret_cast<__m64*>(cd), all);
    }
};
