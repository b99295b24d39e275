// Products of types that are unpacked a block at a time, into memory that the first-level cache holds, for all columns of a tile: types
// whose bits are spread too far for a vector of weights to be made where it is multiplied. Part of kernels.h.

using UnpackParts = void (*)(const uint8_t* quants, const uint8_t* scales, uint8_t* vectors, float* factors);

#include "unpack_parts.h"

// Blocks of 256 in `kParts` parts with a scale each. One for all types of a shape: they differ in `unpack` and where their bytes lie.
template <class S, int kParts, bool kWide, bool kMins, int NC>
EDGELLM_NOINLINE void multiply_parts(UnpackParts unpack, const TypeInfo& info, int64_t next_group, const uint8_t* group, const Unpacked& ready,
                                     int64_t k, const Tile& tile, float* y, int64_t stride, int rows) {
    using F = typename S::F;
    using I = typename S::I;
    using N = typename S::N;
    constexpr int kEach = 64 / kParts, kVectors = kMins ? 68 : 64, kFactors = kMins ? kParts + 1 : kParts, kSums = kMins ? kParts / 2 : kParts;
    constexpr int kSlices = kRows / S::kLanes;   // vectors of sixteen rows
    alignas(64) uint8_t vectors[kVectors * kLine];
    alignas(64) float factors[kFactors * kRows];
    const int64_t n_blocks = k / 256;
    const uint8_t* scales = group + n_blocks * info.quant_bytes;
    const int32_t *tile_q = tile.q, *tile_sum = tile.sum;
    const float* tile_d = tile.d;
    F f[kSlices][NC];
    for (int slice = 0; slice < kSlices; slice++) {
        EDGELLM_UNROLL for (int c = 0; c < NC; c++) f[slice][c] = S::zero();
    }
    for (int64_t b = 0; b < n_blocks; b++) {
        const uint8_t* all = vectors;
        const float* factor = factors;
        if (ready.filled) {
            all = ready.vectors + b * kVectors * kLine, factor = ready.factors + b * kFactors * kRows;
        } else {
            unpack(group + b * info.quant_bytes, scales, vectors, factors);
            S::prefetch(scales + next_group);   // no prefetcher would guess them
        }
        for (int slice = 0; slice < kSlices; slice++) {
            const uint8_t* u = all + slice * S::kLanes * 4;
            const float* scale = factor + slice * S::kLanes;
            each_part<S, NC>([&](auto first, auto n_columns) EDGELLM_INLINE_LAMBDA {
                constexpr int C = n_columns.value;
                const int32_t *q = tile_q + first, *sum = tile_sum + first;
                F s[C];
                EDGELLM_UNROLL for (int c = 0; c < C; c++) s[c] = S::zero();
                for (int j = 0; j < kParts; j++) {
                    Sums<S, C, kWide> sums;
                    if constexpr (kMins || (kWide && S::kSignedOnly)) sums.begin();
                    else sums.begin(sum + j * NC);
                    repeat<kEach>([&](auto t) EDGELLM_INLINE_LAMBDA {
                        sums.add(t, S::load(u + (j * kEach + t.value) * kLine), q + (j * kEach + t.value) * NC);
                    });
                    const F part = S::floats(scale + j * kRows);
                    EDGELLM_UNROLL for (int c = 0; c < C; c++) s[c] = S::fma(S::to_float(sums.total(c)), part, s[c]);
                }
                EDGELLM_UNROLL for (int c = 0; c < C; c++) {
                    F product = s[c];
                    if constexpr (kMins) {
                        N low = S::zero_sum(), high = S::zero_sum();
                        EDGELLM_UNROLL for (int i = 0; i < kParts / 4; i++) {
                            const typename S::W mins = S::load(u + (64 + i) * kLine);
                            low = S::dot(low, mins, sum + 2 * i * NC + c);
                            high = S::dot(high, mins, sum + (2 * i + 1) * NC + c);
                        }
                        const I m = S::add(S::times_64(S::widen(high)), S::widen(low));
                        product = S::minus_product(product, S::to_float(m), S::floats(scale + kParts * kRows));
                    }
                    f[slice][first + c] = S::fma(product, S::broadcast(tile_d + first + c), f[slice][first + c]);
                }
            });
        }
        scales += info.scale_bytes, tile_q += 64 * NC, tile_d += NC, tile_sum += kSums * NC;
    }
    for (int slice = 0; slice < kSlices && slice * S::kLanes < rows; slice++) store_columns<S>(f[slice], y, stride, slice, rows);
}

template <class S, Type T, int NC>
void group_staged(const uint8_t* group, const Unpacked& ready, int64_t k, const Tile& tile, float* y, int64_t stride, int rows) {
    multiply_parts<S, kInfo[T].parts, kInfo[T].offset == 128, T == Q2_K, NC>(unpack_parts<S, T>, kInfo[T], group_bytes(T, k), group, ready, k, tile,
                                                                             y, stride, rows);
}

template <class S, Type T>
void unpack_staged(const uint8_t* group, int64_t k, uint8_t* vectors, float* factors) {
    const uint8_t* scales = group + k / 256 * kInfo[T].quant_bytes;
    for (int64_t b = 0; b < k / 256; b++) {
        unpack_parts<S, T>(group, scales, vectors, factors);
        group += kInfo[T].quant_bytes, scales += kInfo[T].scale_bytes, vectors += n_vectors(T) * kLine, factors += n_factors(T) * kRows;
    }
}
