// Products of types whose weights share a scale by the 32, or by the 128. Part of kernels.h.

// Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, MXFP4, Q1_0 (of whose scales each is for four blocks).
template <class S, Type T, int NC, bool kReady>
void group_block32(const uint8_t* group, const Unpacked& ready, int64_t k, const Tile& tile, float* y, int64_t stride, int rows) {
    using F = typename S::F;
    using I = typename S::I;
    constexpr bool kMin = T == Q4_1 || T == Q5_1, kWide = T == Q8_0 || T == IQ4_NL;
    constexpr int kShare = kInfo[T].block / 32, kQuantBytes = kInfo[T].quant_bytes / kShare, kScaleBytes = kInfo[T].scale_bytes;
    const int64_t n_blocks = k / 32, next_group = group_bytes(T, k);   // its scales: no prefetcher would guess them
    for (int part = 0; part * S::kLanes < kRows && part * S::kLanes < rows; part++) {
        const uint8_t *w = group + part * S::kLanes * 4, *u = ready.vectors + part * S::kLanes * 4;
        const uint8_t* scale = group + n_blocks * kQuantBytes + part * S::kLanes * (T == MXFP4 ? 1 : 2);
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
                F dw, m = F();
                if constexpr (T == MXFP4) dw = S::exponents(scale);
                else dw = S::half(scale);
                if constexpr (kMin) m = S::half(scale + 32);
                EDGELLM_UNROLL for (int c = 0; c < C; c++) {
                    f[first + c] = S::fma(S::to_float(total[c]), S::mul(dw, S::broadcast(d + c)), f[first + c]);
                    if constexpr (kMin) f[first + c] = S::fma(m, S::broadcast(reinterpret_cast<const float*>(sum) + c), f[first + c]);
                }
            });
            if constexpr (!kReady) S::prefetch(scale + next_group);
            if (b % kShare == kShare - 1) scale += kScaleBytes;
            w += kQuantBytes, u += 8 * kLine, tile_q += 8 * NC, tile_d += NC, tile_sum += NC;
        }
        store_columns<S>(f, y, stride, part, rows);
    }
}
