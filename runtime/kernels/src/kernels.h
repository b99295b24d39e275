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
#define EDGELLM_NOINLINE
#elif defined(__GNUC__) || defined(__clang__)
#define EDGELLM_UNROLL _Pragma("GCC unroll 16")
#define EDGELLM_INLINE __attribute__((always_inline)) inline
#define EDGELLM_INLINE_LAMBDA __attribute__((always_inline))
#define EDGELLM_NOINLINE __attribute__((noinline))
#else
#define EDGELLM_UNROLL
#define EDGELLM_INLINE __forceinline
#define EDGELLM_INLINE_LAMBDA
#define EDGELLM_NOINLINE __declspec(noinline)
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

#include "block32.h"

#include "superblocks.h"

#include "staged.h"

#include "floats.h"

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
    else if constexpr (is_staged(T)) return group_staged<S, T, NC>;
    else if constexpr (is_float(T)) return group_floats<S, T, NC>;
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
        if constexpr (type != Q8_0 && !is_float(type)) {   // which are no different unpacked
            constexpr bool more = type == Q1_0 || type == Q5_0 || type == Q5_1 || type == Q5_K || type == Q6_K;
            v.wide_from[t.value] = is_staged(type) ? kMaxCols + 1 : more ? S::kWide : 2 * S::kWide;
            if constexpr (is_staged(type)) v.unpack[t.value] = unpack_staged<S, type>;
            else v.unpack[t.value] = unpack_group<S, type>;
            v.ready[t.value] = kernel_of<S, type, kMaxCols, true>();
        }
    });
    return v;
}
