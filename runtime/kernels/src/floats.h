// Products of F16 and BF16 weights: floats times floats, one chain of fused sums a row and a column. Part of kernels.h.

template <class S, Type T, int NC>
void group_floats(const uint8_t* group, const Unpacked&, int64_t k, const Tile& tile, float* y, int64_t stride, int rows) {
    using F = typename S::F;
    for (int part = 0; part * S::kLanes < kRows && part * S::kLanes < rows; part++) {
        const uint8_t* w = group + part * S::kLanes * 2;
        const float* x = reinterpret_cast<const float*>(tile.q);
        F f[NC];
        EDGELLM_UNROLL for (int c = 0; c < NC; c++) f[c] = S::zero();
        for (int64_t b = 0; b < k / 32; b++) {
            each_part<S, NC>([&](auto first, auto n_columns) EDGELLM_INLINE_LAMBDA {
                constexpr int C = n_columns.value;
                F sums[C];
                EDGELLM_UNROLL for (int c = 0; c < C; c++) sums[c] = f[first + c];
                for (int i = 0; i < 32; i += 2) {
                    S::prefetch(w + kAhead + i * kRows * 2);
                    repeat<2>([&](auto j) EDGELLM_INLINE_LAMBDA {
                        F v;
                        if constexpr (T == BF16) v = S::bfloats(w + (i + j.value) * kRows * 2);
                        else v = S::half(w + (i + j.value) * kRows * 2);
                        EDGELLM_UNROLL for (int c = 0; c < C; c++) sums[c] = S::fma(v, S::broadcast(x + (i + j.value) * NC + first + c), sums[c]);
                    });
                }
                EDGELLM_UNROLL for (int c = 0; c < C; c++) f[first + c] = sums[c];
            });
            w += 32 * kRows * 2, x += 32 * NC;
        }
        store_columns<S>(f, y, stride, part, rows);
    }
}
