// Products with the thin matrices of an adapter, which stay as the file has them: floats, halves, or blocks of 8 bits. Over a policy
// `A` of eight floats, included by a variant's source file as attention.h is.
//
// A result depends on its own row and its own column alone: neither on how many columns there are nor on who computes them. ggml's
// own products of such types sum in another order for one column than for several.

template <class A, Plain T>
EDGELLM_INLINE typename A::V eight(const uint8_t* row, int64_t i) {
    if constexpr (T == Plain::f16) return A::half(row + 2 * i);
    if constexpr (T == Plain::q8_0) return A::mul(A::bytes(row + i / 32 * 34 + 2 + i % 32), A::one_half(row + i / 32 * 34));
    if constexpr (T == Plain::bf16) {
        uint16_t halves[8];
        uint32_t bits[8];
        float floats[8];
        std::memcpy(halves, row + 2 * i, sizeof halves);
        for (int j = 0; j < 8; j++) bits[j] = static_cast<uint32_t>(halves[j]) << 16;
        std::memcpy(floats, bits, sizeof floats);
        return A::load(floats);
    }
    return A::load(reinterpret_cast<const float*>(row) + i);
}

// y[c][0] and, if `both`, y[c][1] = two rows times C columns.
template <class A, Plain T, int C>
void thin_pair(const uint8_t* w0, const uint8_t* w1, int64_t k, const float* const* x, float* y, int64_t y_stride, bool both) {
    using V = typename A::V;
    V first[C], second[C];
    EDGELLM_UNROLL for (int c = 0; c < C; c++) first[c] = A::zero(), second[c] = A::zero();
    const int64_t whole = k / 8 * 8;
    for (int64_t i = 0; i < whole; i += 8) {
        const V a = eight<A, T>(w0, i), b = eight<A, T>(w1, i);
        EDGELLM_UNROLL for (int c = 0; c < C; c++) {
            const V v = A::load(x[c] + i);
            first[c] = A::fma(v, a, first[c]);
            second[c] = A::fma(v, b, second[c]);
        }
    }
    if constexpr (T != Plain::q8_0) {   // whose rows are whole blocks
        if (whole < k) {
            constexpr int64_t size = T == Plain::f32 ? 4 : 2;
            uint8_t rest0[32] = {}, rest1[32] = {};
            const size_t n_left = static_cast<size_t>(k - whole);
            std::memcpy(rest0, w0 + whole * size, n_left * size);
            std::memcpy(rest1, w1 + whole * size, n_left * size);
            const V a = eight<A, T>(rest0, 0), b = eight<A, T>(rest1, 0);
            for (int c = 0; c < C; c++) {
                float rest[8] = {};
                std::memcpy(rest, x[c] + whole, n_left * 4);
                const V v = A::load(rest);
                first[c] = A::fma(v, a, first[c]);
                second[c] = A::fma(v, b, second[c]);
            }
        }
    }
    EDGELLM_UNROLL for (int c = 0; c < C; c++) {
        y[c * y_stride] = A::sum(first[c]);
        if (both) y[c * y_stride + 1] = A::sum(second[c]);
    }
}

template <class A, Plain T>
void thin_rows(const Thin& t, int64_t begin, int64_t end) {
    const int64_t n = t.x.n[0] * t.x.n[1] * t.x.n[2];
    for (int64_t c = 0; c < n; c += 4) {
        const int n_columns = n - c < 4 ? static_cast<int>(n - c) : 4;
        const float* x[4];
        for (int j = 0; j < n_columns; j++) x[j] = column(t.x, c + j);
        for (int64_t r = begin; r < end; r += 2) {
            const bool both = r + 1 < end;
            const uint8_t *w0 = t.w + r * t.w_row, *w1 = both ? w0 + t.w_row : w0;
            float* y = t.y + c * t.y_stride + r;
            switch (n_columns) {
                case 1: thin_pair<A, T, 1>(w0, w1, t.k, x, y, t.y_stride, both); break;
                case 2: thin_pair<A, T, 2>(w0, w1, t.k, x, y, t.y_stride, both); break;
                case 3: thin_pair<A, T, 3>(w0, w1, t.k, x, y, t.y_stride, both); break;
                default: thin_pair<A, T, 4>(w0, w1, t.k, x, y, t.y_stride, both);
            }
        }
    }
}

// The rows of thread `ith` of `nth`.
template <class A>
void thin(const Thin& t, int ith, int nth) {
    const int64_t begin = t.rows * ith / nth, end = t.rows * (ith + 1) / nth;
    switch (t.type) {
        case Plain::f16: thin_rows<A, Plain::f16>(t, begin, end); break;
        case Plain::bf16: thin_rows<A, Plain::bf16>(t, begin, end); break;
        case Plain::q8_0: thin_rows<A, Plain::q8_0>(t, begin, end); break;
        default: thin_rows<A, Plain::f32>(t, begin, end);
    }
}
