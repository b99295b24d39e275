// Plain C++: the definition that every other variant must reproduce bit for bit. Never chosen by itself.
#include <cmath>
#include <cstring>

#include "cpu.h"
#include "grids.h"
#include "layout.h"

#define EDGELLM_OUT_OF_LINE
#if defined(__GNUC__) || defined(__clang__)
#define EDGELLM_CALL __attribute__((noinline)) static
#else
#define EDGELLM_CALL static
#endif

namespace edgellm {
namespace {

float from_half(const uint8_t* p) {
    uint16_t h;
    std::memcpy(&h, p, 2);
    const int exponent = (h >> 10) & 31, mantissa = h & 1023;
    float value;
    if (exponent == 31) value = mantissa ? NAN : INFINITY;
    else if (exponent == 0) value = std::ldexp(static_cast<float>(mantissa), -24);
    else value = std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
    return h & 0x8000 ? -value : value;
}

struct S {
    static constexpr int kLanes = 16;
    static constexpr int kColumns = kMaxCols;
    static constexpr int64_t kWide = 16;
    static constexpr bool kNarrow = false;
    static constexpr bool kTwoChains = false;
    static constexpr bool kSignedOnly = false;
    struct F {
        float v[kLanes];
    };
    struct I {
        int32_t v[kLanes];
    };
    using N = I;
    struct W {
        uint8_t v[kLanes * 4];
    };
    template <class V, class Lane>
    static V each(Lane lane) {
        V out;
        for (int i = 0; i < static_cast<int>(sizeof(out.v) / sizeof(out.v[0])); i++) out.v[i] = lane(i);
        return out;
    }
    // clang-format off: a function a line, as the other policies have it
    EDGELLM_CALL F zero() { return F{}; }
    EDGELLM_CALL I zero_int() { return I{}; }
    EDGELLM_CALL F broadcast(const float* p) { return each<F>([=](int) { return *p; }); }
    EDGELLM_CALL I broadcast_int(const int32_t* p) { return each<I>([=](int) { return *p; }); }
    EDGELLM_CALL N zero_sum() { return zero_int(); }
    EDGELLM_CALL N start(const int32_t* p) { return broadcast_int(p); }
    EDGELLM_CALL I widen(const N& v) { return v; }
    EDGELLM_CALL W load(const uint8_t* p) { return each<W>([=](int i) { return p[i]; }); }
    EDGELLM_CALL W low(const W& v) { return each<W>([&](int i) { return static_cast<uint8_t>(v.v[i] & 15); }); }
    EDGELLM_CALL W high(const W& v) { return each<W>([&](int i) { return static_cast<uint8_t>(v.v[i] >> 4); }); }
    template <int shift, int mask>
    EDGELLM_CALL W insert(const W& v, const W& from) {
        return each<W>([&](int i) {
            const int moved = shift >= 0 ? from.v[i] << (shift >= 0 ? shift : 0) : from.v[i] >> (shift < 0 ? -shift : 0);
            return static_cast<uint8_t>(v.v[i] | (moved & mask));
        });
    }
    EDGELLM_CALL W lookup(const W& v, const uint8_t (&table)[16]) { return each<W>([&](int i) { return table[v.v[i]]; }); }
    template <class Lane>
    static I each_lane(Lane lane) { return each<I>([&](int i) { return static_cast<int32_t>(lane(i)); }); }
    static uint32_t lane_of(const I& v, int i) { return static_cast<uint32_t>(v.v[i]); }
    EDGELLM_CALL I lanes(const W& v) {
        I out;
        std::memcpy(out.v, v.v, sizeof out.v);
        return out;
    }
    EDGELLM_CALL W as_bytes(const I& v) {
        W out;
        std::memcpy(out.v, v.v, sizeof out.v);
        return out;
    }
    EDGELLM_CALL I every(int32_t x) { return each_lane([=](int) { return x; }); }
    template <int n>
    EDGELLM_CALL I left(const I& v) { return each_lane([&](int i) { return lane_of(v, i) << n; }); }
    template <int n>
    EDGELLM_CALL I right(const I& v) { return each_lane([&](int i) { return lane_of(v, i) >> n; }); }
    EDGELLM_CALL I masked(const I& v, uint32_t mask) { return each_lane([&](int i) { return lane_of(v, i) & mask; }); }
    EDGELLM_CALL I both(const I& a, const I& b) { return each_lane([&](int i) { return lane_of(a, i) & lane_of(b, i); }); }
    EDGELLM_CALL I either(const I& a, const I& b) { return each_lane([&](int i) { return lane_of(a, i) | lane_of(b, i); }); }
    EDGELLM_CALL I differing(const I& a, const I& b) { return each_lane([&](int i) { return lane_of(a, i) ^ lane_of(b, i); }); }
    EDGELLM_CALL I add(const I& a, const I& b) { return each_lane([&](int i) { return lane_of(a, i) + lane_of(b, i); }); }
    EDGELLM_CALL I subtract(const I& a, const I& b) { return each_lane([&](int i) { return lane_of(a, i) - lane_of(b, i); }); }
    EDGELLM_CALL I gather(const uint32_t* table, const I& index) { return each_lane([&](int i) { return table[index.v[i]]; }); }
    EDGELLM_CALL I sign_mask(const I& v) {
        return each_lane([&](int i) { return ((lane_of(v, i) & 15) * 0x00204081u & 0x01010101u) * 255; });
    }
    EDGELLM_CALL I dot(const I& acc, const W& w, const int32_t* q) {
        int8_t a[4];
        std::memcpy(a, q, 4);
        return each<I>([&](int i) {
            return acc.v[i] + w.v[4 * i] * a[0] + w.v[4 * i + 1] * a[1] + w.v[4 * i + 2] * a[2] + w.v[4 * i + 3] * a[3];
        });
    }
    EDGELLM_CALL I dot_wide(const I& acc, const W& w, const int32_t* q) { return dot(acc, w, q); }
    EDGELLM_CALL W flip_sign(const W& v) { return v; }
    EDGELLM_CALL I times_64(const I& v) { return each<I>([&](int i) { return v.v[i] * 64; }); }
    EDGELLM_CALL F to_float(const I& v) { return each<F>([&](int i) { return static_cast<float>(v.v[i]); }); }
    EDGELLM_CALL F half(const uint8_t* p) { return each<F>([=](int i) { return from_half(p + 2 * i); }); }
    EDGELLM_CALL F bfloats(const uint8_t* p) {
        return each<F>([=](int i) {
            const uint32_t bits = static_cast<uint32_t>(p[2 * i] | p[2 * i + 1] << 8) << 16;
            float value;
            std::memcpy(&value, &bits, 4);
            return value;
        });
    }
    EDGELLM_CALL F exponents(const uint8_t* p) { return each<F>([=](int i) { return p[i] < 2 ? 0.0f : std::ldexp(1.0f, p[i] - 128); }); }
    EDGELLM_CALL F bytes(const uint8_t* p) { return each<F>([=](int i) { return static_cast<float>(p[i]); }); }
    EDGELLM_CALL F signed_bytes(const uint8_t* p) { return each<F>([=](int i) { return static_cast<float>(static_cast<int8_t>(p[i])); }); }
    EDGELLM_CALL F add_floats(const F& a, const F& b) { return each<F>([&](int i) { return a.v[i] + b.v[i]; }); }
    EDGELLM_CALL F mul(const F& a, const F& b) { return each<F>([&](int i) { return a.v[i] * b.v[i]; }); }
    EDGELLM_CALL F fma(const F& a, const F& b, const F& c) { return each<F>([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); }); }
    EDGELLM_CALL F minus_product(const F& c, const F& a, const F& b) { return each<F>([&](int i) { return std::fma(-a.v[i], b.v[i], c.v[i]); }); }
    EDGELLM_CALL F floats(const float* p) { return each<F>([=](int i) { return p[i]; }); }
    EDGELLM_CALL void store(float* p, const F& v) { std::memcpy(p, v.v, sizeof v.v); }
    EDGELLM_CALL void store_bytes(uint8_t* p, const W& v) { std::memcpy(p, v.v, sizeof v.v); }
    EDGELLM_CALL void prefetch(const uint8_t*) {}
    EDGELLM_CALL void keep(I&) {}
    EDGELLM_CALL void keep_bytes(W&) {}
    // clang-format on
};

#include "kernels.h"

struct A {
    struct V {
        float v[8];
    };
    template <class Lane>
    static V each(Lane lane) {
        V out;
        for (int i = 0; i < 8; i++) out.v[i] = lane(i);
        return out;
    }
    // clang-format off
    EDGELLM_CALL V zero() { return V{}; }
    EDGELLM_CALL V all(float x) { return each([=](int) { return x; }); }
    EDGELLM_CALL V load(const float* p) { return each([=](int i) { return p[i]; }); }
    EDGELLM_CALL void store(float* p, V v) { std::memcpy(p, v.v, sizeof v.v); }
    EDGELLM_CALL V half(const uint8_t* p) { return each([=](int i) { return from_half(p + 2 * i); }); }
    EDGELLM_CALL V one_half(const uint8_t* p) { return all(from_half(p)); }
    EDGELLM_CALL V bytes(const uint8_t* p) { return each([=](int i) { return static_cast<float>(static_cast<int8_t>(p[i])); }); }
    EDGELLM_CALL V add(V x, V y) { return each([&](int i) { return x.v[i] + y.v[i]; }); }
    EDGELLM_CALL V sub(V x, V y) { return each([&](int i) { return x.v[i] - y.v[i]; }); }
    EDGELLM_CALL V mul(V x, V y) { return each([&](int i) { return x.v[i] * y.v[i]; }); }
    EDGELLM_CALL V fma(V x, V y, V z) { return each([&](int i) { return std::fma(x.v[i], y.v[i], z.v[i]); }); }
    EDGELLM_CALL V larger(V x, V y) { return each([&](int i) { return x.v[i] > y.v[i] ? x.v[i] : y.v[i]; }); }
    EDGELLM_CALL float largest(V v) {
        float most = v.v[0];
        for (int i = 1; i < 8; i++) most = v.v[i] > most ? v.v[i] : most;
        return most;
    }
    EDGELLM_CALL V zero_below(V x, float limit, V v) { return each([&](int i) { return x.v[i] >= limit ? v.v[i] : 0.0f; }); }
    EDGELLM_CALL V power_of_two(V shifted) {
        return each([&](int i) {
            uint32_t bits;
            std::memcpy(&bits, &shifted.v[i], 4);
            bits = (bits << 23) + 0x3f800000u;
            float value;
            std::memcpy(&value, &bits, 4);
            return value;
        });
    }
    EDGELLM_CALL float sum(V v) {
        float t[4];
        for (int i = 0; i < 4; i++) t[i] = v.v[i] + v.v[i + 4];
        return (t[0] + t[1]) + (t[2] + t[3]);
    }
    EDGELLM_CALL void sums(V a, V b, V c, V d, float* ab, float* cd) { ab[0] = sum(a), ab[1] = sum(b), cd[0] = sum(c), cd[1] = sum(d); }
    // clang-format on
};

#include "attention.h"
#include "thin.h"

bool runs_here() { return true; }

constexpr Variant kTable = table_of<S, A>("generic", runs_here);

}   // namespace

extern const Variant kGeneric = kTable;

}   // namespace edgellm
