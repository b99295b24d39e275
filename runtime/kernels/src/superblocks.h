// Products of Q4_K, Q5_K and Q6_K, whose vectors of weights are made where they are multiplied. Part of kernels.h.

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
