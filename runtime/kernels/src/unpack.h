// Weights as the dot products take them: a vector at a time for a kernel, or a group at once for all its columns. Part of kernels.h.

// Vector `t` of a block of 32, sixteen rows by four weights as the dot product takes them; `w`: where a part's quants begin.
template <class S, Type T, int t>
EDGELLM_INLINE typename S::W block32_vector(const uint8_t* w, Int<t>) {
    using W = typename S::W;
    if constexpr (T == Q8_0) {
        const W v = S::load(w + kLine * t);
        if constexpr (S::kSignedOnly) return S::flip_sign(v);
        else return v;
    } else if constexpr (T == Q1_0) {   // a bit as 0 or 2, 1 added
        return S::as_bytes(S::masked(S::sign_mask(S::template right<4 * t>(S::lanes(S::load(w)))), 0x02020202u));
    } else {
        const W both = S::load(w + kLine * (t % 4));
        W v = t < 4 ? S::low(both) : S::high(both);
        if constexpr (T == Q5_0 || T == Q5_1) v = S::template insert<4 - t, 0x10>(v, S::load(w + 256));
        if constexpr (T == IQ4_NL) v = S::lookup(v, kIq4);
        if constexpr (T == MXFP4) v = S::lookup(v, kMxfp4);
        if constexpr (T == IQ4_NL && S::kSignedOnly) v = S::flip_sign(v);
        return v;
    }
}

// Vector `t` of sub-block 2 pair + odd of Q4_K and Q5_K. `pair` is a constant but for the narrow kernels.
template <class S, Type T, class Pair, int odd, int t>
EDGELLM_INLINE typename S::W q45k_vector(const uint8_t* w, Pair pair, Int<odd>, Int<t>) {
    const typename S::W both = S::load(w + (pair * 8 + t) * kLine);
    typename S::W v = odd ? S::high(both) : S::low(both);
    if constexpr (T == Q5_K && S::kNarrow) {
        v = S::insert_fifth(v, S::load(w + 2048 + t * kLine), 2 * pair + odd);
    } else if constexpr (T == Q5_K) {
        v = S::template insert<4 - (2 * Pair::value + odd), 0x10>(v, S::load(w + 2048 + t * kLine));
    }
    return v;
}

// Vector `t` of an eighth of a block of Q6_K: a quarter of one of its halves.
template <class S, class Half, int quarter>
EDGELLM_INLINE typename S::W q6k_vector(const uint8_t* w, Half half, Int<quarter>, int t) {
    const typename S::W both = S::load(w + (half * 16 + quarter % 2 * 8 + t) * kLine);
    const typename S::W v = quarter < 2 ? S::low(both) : S::high(both);
    return S::template insert<4 - 2 * quarter, 0x30>(v, S::load(w + 2048 + (half * 8 + t) * kLine));
}

// What the kernels unpack of a group, once for all columns that wait for it.
template <class S, Type T>
void unpack_group(const uint8_t* group, int64_t k, uint8_t* vectors, float* factors) {
    constexpr int kBlock = activation_block(T), kVectors = kBlock / 4, kQuantBytes = kInfo[T].quant_bytes * kBlock / kInfo[T].block;
    constexpr int kScales = T == Q6_K ? 3072 : kQuantBytes - 128;
    for (int part = 0; part * S::kLanes < kRows; part++) {
        const uint8_t *w = group + part * S::kLanes * 4, *scales = group + part * S::kLanes + kScales;
        uint8_t* out = vectors + part * S::kLanes * 4;
        float* f = factors + part * S::kLanes;
        for (int64_t b = 0; b < k / kBlock; b++) {
            for (int line = 0; line < kQuantBytes; line += kLine) S::prefetch(w + kAhead + line);
            if constexpr (kBlock == 32) {
                repeat<8>([&](auto t) EDGELLM_INLINE_LAMBDA { S::store_bytes(out + t.value * kLine, block32_vector<S, T>(w, t)); });
            } else if constexpr (T == Q6_K) {
                repeat<8>([&](auto eighth) EDGELLM_INLINE_LAMBDA {
                    constexpr Int<eighth.value / 4> half{};
                    constexpr Int<eighth.value % 4> quarter{};
                    for (int t = 0; t < 8; t++) S::store_bytes(out + (eighth.value * 8 + t) * kLine, q6k_vector<S>(w, half, quarter, t));
                });
                for (int j = 0; j < 16; j++) S::store(f + j * kRows, S::signed_bytes(scales + j * kRows));
            } else {
                repeat<4>([&](auto pair) EDGELLM_INLINE_LAMBDA {
                    repeat<16>([&](auto i) EDGELLM_INLINE_LAMBDA {
                        constexpr Int<i.value / 8> odd{};
                        constexpr Int<i.value % 8> t{};
                        S::store_bytes(out + (pair.value * 16 + i.value) * kLine, q45k_vector<S, T>(w, pair, odd, t));
                    });
                });
                for (int j = 0; j < 8; j++) S::store(f + j * kRows, S::bytes(scales + j * kRows));
            }
            w += kQuantBytes, scales += kQuantBytes;
            out += kVectors * kLine, f += n_factors(T) * kRows;
        }
    }
}
