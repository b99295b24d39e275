// Every kernel once, over a vector policy `S`. A variant's source file switches its instruction set on, defines `S`, includes
// this file inside an anonymous namespace and fills its table with table_of<S, A>().
//
// The order of every floating-point operation is written out here and is the same for each number of columns and each policy
// (integer sums are exact, products are fused), so all variants give the same bits as the generic one, whatever the batch.
//
// A policy has `kLanes` rows in a vector, types F (floats), I (int32), W (4 bytes a lane) and N (what its dot product adds to), and
// the functions used below. `kColumns` columns at most share one unpacked vector of weights: their sums must fit the registers.
// From `kWide` columns on it pays to write unpacked weights down, twice as many for weights that are nibbles alone.
// `kTwoChains` says that the dot product takes so long that one chain of sums a column would leave it idle, and that there are registers
// for two. `kSignedOnly` says that its dot product wants signed weights when they need all eight bits. `kNarrow` says that N is two int16 a
// lane, each the sum of half of the products, which widen() adds up. It wraps, so what counts is that the sum is in range when it
// is widened: 16 products of 4 bits with int8 (30,480 at most), 16 of 5 bits less 16 (32,512), 8 of 5 bits (31,496), 8 of 6 bits
// less 32 (32,512). Offsets are therefore subtracted before, as the pair of int16 at which a sum starts.

// clang-format off
#if defined(EDGELLM_OUT_OF_LINE)   // a policy of plain loops: inlined into every kernel it would compile for minutes
#define EDGELLM_UNROLL
#define EDGELLM_INLINE inline
#define EDGELLM_INLINE_LAMBDA
#elif defined(__GNUC__) || defined(__clang__)
#define EDGELLM_UNROLL _Pragma("GCC unroll 16")
#define EDGELLM_INLINE __attribute__((always_inline)) inline
#define EDGELLM_INLINE_LAMBDA __attribute__((always_inline))
#else
#define EDGELLM_UNROLL
#define EDGELLM_INLINE __forceinline
#define EDGELLM_INLINE_LAMBDA
#endif
// clang-format on

template <int N>
struct Int {
    static constexpr int value = N;
    constexpr operator int() const { return N; }
};

// body(Int<0>), body(Int<1>), ...: shift counts must be constants.
template <int N, int I = 0, class Body>
EDGELLM_INLINE constexpr void repeat(Body&& body) {
    if constexpr (I < N) {
        body(Int<I>{});
        repeat<N, I + 1>(body);
    }
}

// Bytes ahead, about four blocks of 256: the weight stream then overlaps the arithmetic. Nothing else matters as much.
constexpr int kAhead = 9472;

// body(first, Int<n>) for as few and as even parts of NC columns as a policy takes at once.
template <class S, int NC, class Body>
EDGELLM_INLINE void each_part(Body&& body) {
    constexpr int n_parts = (NC + S::kColumns - 1) / S::kColumns, n = (NC + n_parts - 1) / n_parts;
    if constexpr (n_parts == 1) {
        body(Int<0>{}, Int<NC>{});
    } else if constexpr (NC % n == 0) {
        for (int first = 0; first < NC; first += n) body(first, Int<n>{});
    } else {
        for (int first = 0; first < (n_parts - 1) * n; first += n) body(first, Int<n>{});
        body(Int<(n_parts - 1) * n>{}, Int<NC - (n_parts - 1) * n>{});
    }
}

// What a sum of products is kept in. (gcc warns that a template argument, as of std::conditional_t, loses the alignment of a vector type.)
template <class S, bool kWide>
struct SumType {
    using Type = typename S::N;
};
template <class S>
struct SumType<S, true> {
    using Type = typename S::I;
};

// Integer sums of C columns over vectors of weights, added in twos: an even one, then an odd one. `kWide`: weights of eight bits.
// A policy whose instruction takes two vectors or two columns at once specialises it.
template <class S, int C, bool kWide = false>
struct Sums {
    using N = typename SumType<S, kWide>::Type;
    N acc[C];
    EDGELLM_INLINE void begin() {
        EDGELLM_UNROLL for (int c = 0; c < C; c++) {
            if constexpr (kWide) acc[c] = S::zero_int();
            else acc[c] = S::zero_sum();
        }
    }
    EDGELLM_INLINE void begin(const int32_t* starts) {
        EDGELLM_UNROLL for (int c = 0; c < C; c++) {
            if constexpr (kWide) acc[c] = S::broadcast_int(starts + c);
            else acc[c] = S::start(starts + c);
        }
    }
    template <int I>
    EDGELLM_INLINE void add(Int<I>, const typename S::W& w, const int32_t* q) {
        EDGELLM_UNROLL for (int c = 0; c < C; c++) {
            if constexpr (kWide) acc[c] = S::dot_wide(acc[c], w, q + c);
            else acc[c] = S::dot(acc[c], w, q + c);
        }
    }
    EDGELLM_INLINE typename S::I total(int c) const {
        if constexpr (kWide) return acc[c];
        else return S::widen(acc[c]);
    }
};

template <class S, int NC>
EDGELLM_INLINE void store_columns(const typename S::F (&f)[NC], float* y, int64_t stride, int part, int rows) {
    const int left = rows - part * S::kLanes;
    EDGELLM_UNROLL for (int c = 0; c < NC; c++) {
        float* out = y + c * stride + part * S::kLanes;
        if (left >= S::kLanes) {
            S::store(out, f[c]);
        } else {
            float all[S::kLanes];
            S::store(all, f[c]);
            for (int r = 0; r < left; r++) out[r] = all[r];
        }
    }
}

#include "unpack.h"

// Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL.
template <class S, Type T, int NC, bool kReady>
void group_block32(const uint8_t* group, const Unpacked& ready, int64_t k, const Tile& tile, float* y, int64_t stride, int rows) {
    using F = typename S::F;
    using I = typename S::I;
    constexpr bool kMin = T == Q4_1 || T == Q5_1, kWide = T == Q8_0 || T == IQ4_NL;
    constexpr int kQuantBytes = kInfo[T].quant_bytes, kScaleBytes = kInfo[T].scale_bytes;
    const int64_t n_blocks = k / 32, next_group = group_bytes(T, k);   // its scales: no prefetcher would guess them
    for (int part = 0; part * S::kLanes < kRows && part * S::kLanes < rows; part++) {
        const uint8_t *w = group + part * S::kLanes * 4, *u = ready.vectors + part * S::kLanes * 4;
        const uint8_t* scale = group + n_blocks * kQuantBytes + part * S::kLanes * 2;
        const int32_t *tile_q = tile.q, *tile_sum = tile.sum;
        const float* tile_d = tile.d;
        F f[NC];
        EDGELLM_UNROLL for (int c = 0; c < NC; c++) f[c] = S::zero();
        for (int64_t b = 0; b < n_blocks; b++) {
            each_part<S, NC>([&](auto first, auto n_columns) EDGELLM_INLINE_LAMBDA {
                constexpr int C = n_columns.value;
                const int32_t *q = tile_q + first, *sum = tile_sum + first;
                const float* d = tile_d + first;
                I total[C];
                auto add = [&](auto& to, auto t, auto i) EDGELLM_INLINE_LAMBDA {
                    if constexpr (!kReady && t.value < kQuantBytes / kLine) S::prefetch(w + kAhead + kLine * t.value);
                    if constexpr (kReady) to.add(i, S::load(u + kLine * t.value), q + t.value * NC);
                    else to.add(i, block32_vector<S, T>(w, t), q + t.value * NC);
                };
                Sums<S, C, kWide> sums;
                if constexpr (kMin || (kWide && S::kSignedOnly)) sums.begin();
                else sums.begin(sum);
                if constexpr (S::kTwoChains) {
                    Sums<S, C, kWide> others;
                    others.begin();
                    repeat<4>([&](auto i) EDGELLM_INLINE_LAMBDA {
                        add(sums, i, i);
                        add(others, Int<i.value + 4>{}, i);
                    });
                    EDGELLM_UNROLL for (int c = 0; c < C; c++) total[c] = S::add(sums.total(c), others.total(c));
                } else if constexpr (T == Q5_1 && S::kNarrow) {   // 32 products of 5 bits are out of range
                    repeat<4>([&](auto i) EDGELLM_INLINE_LAMBDA { add(sums, i, i); });
                    EDGELLM_UNROLL for (int c = 0; c < C; c++) total[c] = sums.total(c);
                    sums.begin();
                    repeat<4>([&](auto i) EDGELLM_INLINE_LAMBDA { add(sums, Int<i.value + 4>{}, i); });
                    EDGELLM_UNROLL for (int c = 0; c < C; c++) total[c] = S::add(total[c], sums.total(c));
                } else {
                    repeat<8>([&](auto t) EDGELLM_INLINE_LAMBDA { add(sums, t, t); });
                    EDGELLM_UNROLL for (int c = 0; c < C; c++) total[c] = sums.total(c);
                }
                const F dw = S::half(scale);
                F m = F();
                if constexpr (kMin) m = S::half(scale + 32);
                EDGELLM_UNROLL for (int c = 0; c < C; c++) {
                    f[first + c] = S::fma(S::to_float(total[c]), S::mul(dw, S::broadcast(d + c)), f[first + c]);
                    if constexpr (kMin) f[first + c] = S::fma(m, S::broadcast(reinterpret_cast<const float*>(sum) + c), f[first + c]);
                }
            });
            if constexpr (!kReady) S::prefetch(scale + next_group);
            w += kQuantBytes, u += 8 * kLine, scale += kScaleBytes, tile_q += 8 * NC, tile_d += NC, tile_sum += NC;
        }
        store_columns<S>(f, y, stride, part, rows);
    }
}

// Q4_K, Q5_K.
template <class S, Type T, int NC, bool kReady>
void group_q45k(const uint8_t* group, const Unpacked& ready, int64_t k, const Tile& tile, float* y, int64_t stride, int rows) {
    using F = typename S::F;
    using I = typename S::I;
    using N = typename S::N;
    using W = typename S::W;
    constexpr int kMins = kInfo[T].quant_bytes - 256, kScales = kMins + 128;   // where they lie in a block
    constexpr bool kOffset = T == Q5_K && S::kNarrow;
    const int64_t n_blocks = k / 256, next_group = group_bytes(T, k);   // its scales: no prefetcher would guess them
    for (int part = 0; part * S::kLanes < kRows && part * S::kLanes < rows; part++) {
        const uint8_t *w = group + part * S::kLanes * 4, *u = ready.vectors + part * S::kLanes * 4;
        const uint8_t* scale = group + n_blocks * kInfo[T].quant_bytes + part * S::kLanes * 2;
        const int32_t *tile_q = tile.q, *tile_sum = tile.sum;
        const float *tile_d = tile.d, *factors = ready.factors + part * S::kLanes;
        F f[NC];
        EDGELLM_UNROLL for (int c = 0; c < NC; c++) f[c] = S::zero();
        for (int64_t b = 0; b < n_blocks; b++) {
            each_part<S, NC>([&](auto first, auto n_columns) EDGELLM_INLINE_LAMBDA {
                constexpr int C = n_columns.value;
                const int32_t *q = tile_q + first, *sum = tile_sum + first;
                F s[C];
                EDGELLM_UNROLL for (int c = 0; c < C; c++) s[c] = S::zero();
                // Sub-blocks of 32: low nibbles of eight vectors, then their high ones.
                auto begin = [&](auto& sums, int j) EDGELLM_INLINE_LAMBDA {
                    if constexpr (kOffset) sums.begin(sum + (4 + j) * NC);   // less 16 a weight
                    else sums.begin();
                };
                auto add = [&](auto& sums, auto pair, auto odd, auto t) EDGELLM_INLINE_LAMBDA {
                    const int j = 2 * pair + odd.value;
                    if constexpr (!kReady && odd.value == 0) S::prefetch(w + kAhead + (pair * 8 + t.value) * kLine);
                    if constexpr (!kReady && T == Q5_K && !kOffset) {
                        if (j == 0) S::prefetch(w + kAhead + 2048 + t.value * kLine);
                    }
                    if constexpr (kReady) sums.add(t, S::load(u + (j * 8 + t.value) * kLine), q + (j * 8 + t.value) * NC);
                    else sums.add(t, q45k_vector<S, T>(w, pair, odd, t), q + (j * 8 + t.value) * NC);
                };
                auto scale_by = [&](const auto& sums, int j) EDGELLM_INLINE_LAMBDA {
                    F factor;
                    if constexpr (kReady) factor = S::floats(factors + j * kRows);
                    else factor = S::bytes(w - part * S::kLanes * 3 + kScales + j * kRows);
                    EDGELLM_UNROLL for (int c = 0; c < C; c++) {
                        I total = sums.total(c);
                        if constexpr (kOffset) total = S::subtract(total, S::widen(S::start(sum + (4 + j) * NC + c)));
                        s[c] = S::fma(S::to_float(total), factor, s[c]);
                    }
                };
                auto both = [&](auto pair) EDGELLM_INLINE_LAMBDA {
                    Sums<S, C> even, odd;
                    begin(even, 2 * pair);
                    if constexpr (S::kTwoChains) {
                        begin(odd, 2 * pair + 1);
                        repeat<8>([&](auto t) EDGELLM_INLINE_LAMBDA {
                            add(even, pair, Int<0>{}, t);
                            add(odd, pair, Int<1>{}, t);
                        });
                        scale_by(even, 2 * pair);
                    } else {
                        repeat<8>([&](auto t) EDGELLM_INLINE_LAMBDA { add(even, pair, Int<0>{}, t); });
                        scale_by(even, 2 * pair);
                        begin(odd, 2 * pair + 1);
                        repeat<8>([&](auto t) EDGELLM_INLINE_LAMBDA { add(odd, pair, Int<1>{}, t); });
                    }
                    scale_by(odd, 2 * pair + 1);
                };
                if constexpr (S::kNarrow) {   // a loop fits the cache of decoded instructions
                    for (int pair = 0; pair < 4; pair++) both(pair);
                } else {
                    repeat<4>(both);
                }
                const W min_a = S::load(w + kMins), min_b = S::load(w + kMins + kLine);
                const F dw = S::half(scale), dmin = S::half(scale + 32);
                EDGELLM_UNROLL for (int c = 0; c < C; c++) {
                    I m;
                    if constexpr (S::kNarrow) {
                        const N high = S::dot(S::dot(S::zero_sum(), min_a, sum + NC + c), min_b, sum + 3 * NC + c);
                        const N low = S::dot(S::dot(S::zero_sum(), min_a, sum + c), min_b, sum + 2 * NC + c);
                        m = S::add(S::times_64(S::widen(high)), S::widen(low));
                    } else {
                        m = S::dot(S::dot(S::zero_int(), min_a, sum + NC + c), min_b, sum + 3 * NC + c);
                        m = S::dot(S::dot(S::times_64(m), min_a, sum + c), min_b, sum + 2 * NC + c);
                    }
                    const F product = S::minus_product(S::mul(s[c], dw), S::to_float(m), dmin);
                    f[first + c] = S::fma(product, S::broadcast(tile_d + first + c), f[first + c]);
                }
            });
            if constexpr (!kReady) {
                EDGELLM_UNROLL for (int line = 0; line < 4; line++) S::prefetch(w + kAhead + kMins + line * kLine);
                if constexpr (kOffset) {
                    EDGELLM_UNROLL for (int t = 0; t < 8; t++) S::prefetch(w + kAhead + 2048 + t * kLine);
                }
                S::prefetch(scale + next_group);
            }
            u += 64 * kLine, factors += 8 * kRows;
            w += kInfo[T].quant_bytes, scale += kInfo[T].scale_bytes, tile_q += 64 * NC, tile_d += NC;
            tile_sum += kInfo[T].sums * NC;
        }
        store_columns<S>(f, y, stride, part, rows);
    }
}

template <class S, Type T, int NC, bool kReady>
void group_q6k(const uint8_t* group, const Unpacked& ready, int64_t k, const Tile& tile, float* y, int64_t stride, int rows) {
    using F = typename S::F;
    const int64_t n_blocks = k / 256, next_group = group_bytes(T, k);   // its scales: no prefetcher would guess them
    for (int part = 0; part * S::kLanes < kRows && part * S::kLanes < rows; part++) {
        const uint8_t *w = group + part * S::kLanes * 4, *u = ready.vectors + part * S::kLanes * 4;
        const uint8_t* scale = group + n_blocks * kInfo[T].quant_bytes + part * S::kLanes * 2;
        const int32_t *tile_q = tile.q, *tile_sum = tile.sum;
        const float *tile_d = tile.d, *factors = ready.factors + part * S::kLanes;
        F f[NC];
        EDGELLM_UNROLL for (int c = 0; c < NC; c++) f[c] = S::zero();
        for (int64_t b = 0; b < n_blocks; b++) {
            each_part<S, NC>([&](auto first, auto n_columns) EDGELLM_INLINE_LAMBDA {
                constexpr int C = n_columns.value;
                const int32_t *q = tile_q + first, *sum = tile_sum + first;
                F s[C];
                EDGELLM_UNROLL for (int c = 0; c < C; c++) s[c] = S::zero();
                // Sub-blocks of 16: half of the block, quarter of that, half of that.
                auto add = [&](auto& sums, auto half, auto quarter, auto last, auto i) EDGELLM_INLINE_LAMBDA {
                    const int at = (half * 8 + quarter.value * 2 + last) * 4 + i.value, t = last * 4 + i.value;
                    if constexpr (!kReady && quarter.value < 2) S::prefetch(w + kAhead + (half * 16 + quarter.value * 8 + t) * kLine);
                    if constexpr (!kReady && quarter.value == 0) S::prefetch(w + kAhead + 2048 + (half * 8 + t) * kLine);
                    if constexpr (kReady) sums.add(i, S::load(u + at * kLine), q + at * NC);
                    else sums.add(i, q6k_vector<S>(w, half, quarter, t), q + at * NC);
                };
                auto scale_by = [&](const auto& sums, int j) EDGELLM_INLINE_LAMBDA {
                    F factor;
                    if constexpr (kReady) factor = S::floats(factors + j * kRows);
                    else factor = S::signed_bytes(w - part * S::kLanes * 3 + 3072 + j * kRows);
                    EDGELLM_UNROLL for (int c = 0; c < C; c++) s[c] = S::fma(S::to_float(sums.total(c)), factor, s[c]);
                };
                auto quarters = [&](auto half) EDGELLM_INLINE_LAMBDA {
                    repeat<4>([&](auto quarter) EDGELLM_INLINE_LAMBDA {
                        const int j = half * 8 + quarter.value * 2;
                        if constexpr (S::kTwoChains) {
                            Sums<S, C> first_half, last_half;
                            first_half.begin(sum + j * NC);
                            last_half.begin(sum + (j + 1) * NC);
                            repeat<4>([&](auto i) EDGELLM_INLINE_LAMBDA {
                                add(first_half, half, quarter, Int<0>{}, i);
                                add(last_half, half, quarter, Int<1>{}, i);
                            });
                            scale_by(first_half, j);
                            scale_by(last_half, j + 1);
                        } else {
                            auto one = [&](auto last) EDGELLM_INLINE_LAMBDA {
                                Sums<S, C> sums;
                                sums.begin(sum + (j + last) * NC);
                                repeat<4>([&](auto i) EDGELLM_INLINE_LAMBDA { add(sums, half, quarter, last, i); });
                                scale_by(sums, j + last);
                            };
                            if constexpr (S::kNarrow) {
                                for (int last = 0; last < 2; last++) one(last);
                            } else {
                                repeat<2>(one);
                            }
                        }
                    });
                };
                if constexpr (S::kNarrow) {   // loops fit the cache of decoded instructions
                    for (int half = 0; half < 2; half++) quarters(half);
                } else {
                    repeat<2>(quarters);
                }
                const F dw = S::half(scale);
                EDGELLM_UNROLL for (int c = 0; c < C; c++) {
                    f[first + c] = S::fma(S::mul(s[c], dw), S::broadcast(tile_d + first + c), f[first + c]);
                }
            });
            if constexpr (!kReady) {
                EDGELLM_UNROLL for (int line = 0; line < 4; line++) S::prefetch(w + kAhead + 3072 + line * kLine);
                S::prefetch(scale + next_group);
            }
            u += 64 * kLine, factors += 16 * kRows;
            w += kInfo[T].quant_bytes, scale += kInfo[T].scale_bytes, tile_q += 64 * NC, tile_d += NC, tile_sum += 16 * NC;
        }
        store_columns<S>(f, y, stride, part, rows);
    }
}

#include "quantize.h"

template <class S>
double peak_of(int64_t rounds) {
    constexpr int n = S::kColumns < kMaxCols ? 5 : 12;   // enough independent sums to hide the latency, in registers
    typename S::N acc[n];
    alignas(64) uint8_t bytes[kLine] = {1};
    typename S::W w = S::load(bytes);
    alignas(64) int32_t q[n];
    EDGELLM_UNROLL for (int c = 0; c < n; c++) acc[c] = S::zero_sum(), q[c] = static_cast<int32_t>(rounds & 1) + c;   // different, unknown
    for (int64_t i = 0; i < rounds; i++) {
        S::keep_bytes(w);   // or the products are taken out of the loop
        EDGELLM_UNROLL for (int c = 0; c < n; c++) acc[c] = S::dot(acc[c], w, q + c);
        EDGELLM_UNROLL for (int c = 0; c < n; c++) S::keep(acc[c]);   // or equal sums become one
    }
    float out[S::kLanes] = {};
    typename S::F total = S::zero();
    EDGELLM_UNROLL for (int c = 0; c < n; c++) total = S::fma(S::to_float(S::widen(acc[c])), S::to_float(S::widen(acc[c])), total);
    S::store(out, total);
    return out[0] >= 0 ? static_cast<double>(rounds) * n * S::kLanes * 4 : 0;
}

// Loads alone, as far ahead as the kernels.
template <class S>
void read_of(const uint8_t* from, int64_t n_bytes) {
    for (int64_t at = 0; at < n_bytes / kLine * kLine; at += kLine) {
        S::prefetch(from + at + kAhead);
        for (int part = 0; part < kRows; part += S::kLanes) {
            typename S::W v = S::load(from + at + part * 4);
            S::keep_bytes(v);
        }
    }
}

template <class S, Type T, int NC, bool kReady = false>
constexpr GroupKernel kernel_of() {
    if constexpr (T == Q6_K) return group_q6k<S, T, NC, kReady>;
    else if constexpr (T == Q4_K || T == Q5_K) return group_q45k<S, T, NC, kReady>;
    else return group_block32<S, T, NC, kReady>;
}

template <class A>
void attend(const Attention& a, int ith, int nth);   // attention.h
template <class A>
void thin(const Thin& t, int ith, int nth);   // thin.h

// A constant, so that no instruction of the variant runs on a CPU that lacks it.
template <class S, class A>
constexpr Variant table_of(const char* name, bool (*runs_here)(), double (*peak)(int64_t) = peak_of<S>) {
    Variant v = {name, runs_here, quantize<S>, {}, {}, {}, {}, peak, read_of<S>, attend<A>, thin<A>};
    repeat<kTypes>([&](auto t) {
        constexpr Type type = static_cast<Type>(t.value);
        repeat<kMaxCols>([&](auto c) { v.kernel[t.value][c.value] = kernel_of<S, type, c.value + 1>(); });
        v.wide_from[t.value] = INT64_MAX;
        if constexpr (type != Q8_0) {   // which is no different unpacked
            v.wide_from[t.value] = type == Q5_0 || type == Q5_1 || type == Q5_K || type == Q6_K ? S::kWide : 2 * S::kWide;
            v.unpack[t.value] = unpack_group<S, type>;
            v.ready[t.value] = kernel_of<S, type, kMaxCols, true>();
        }
    });
    return v;
}
