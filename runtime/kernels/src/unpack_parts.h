// Blocks of the staged types into memory: a byte a weight, and the whole scale of each part. Part of kernels.h.
//
// A block lies packed as the file's 4-byte words, each with that word of the fifteen other rows beside it, so that a lane of a vector holds
// what its own row needs: four weights' bits, four scales, or indices into a grid of four magnitudes (grids.h).

// Bits of each lane, moved to the left by `shift` (negative: to the right), then masked.
template <class S, int shift, uint32_t mask>
EDGELLM_INLINE typename S::I lane_bits(const typename S::I& v) {
    if constexpr (shift > 0) return S::masked(S::template left<shift>(v), mask);
    else if constexpr (shift < 0) return S::masked(S::template right<-shift>(v), mask);
    else return S::masked(v, mask);
}

// Weights that need all eight bits, 128 added, as the dot product wants them.
template <class S>
EDGELLM_INLINE typename S::W all_eight(const typename S::W& v) {
    if constexpr (S::kSignedOnly) return S::flip_sign(v);
    else return v;
}

// Magnitudes below 128 with the signs in the low four bits of `signs`, and `offset` added: bytes that never carry into each other.
template <class S, int offset>
EDGELLM_INLINE typename S::W with_signs(const typename S::I& magnitudes, const typename S::I& signs) {
    const typename S::I negative = S::both(magnitudes, S::sign_mask(signs));
    const typename S::I all = S::add(magnitudes, S::every(static_cast<int32_t>(0x01010101u * offset)));
    const typename S::W v = S::as_bytes(S::subtract(all, S::template left<1>(negative)));
    if constexpr (offset == 128) return all_eight<S>(v);
    else return v;
}

// Seven signs a byte, whose parity is the eighth.
template <class S>
EDGELLM_INLINE typename S::I with_parity(const typename S::I& v) {
    typename S::I p = S::differing(v, lane_bits<S, -4, 0x0f0f0f0fu>(v));
    p = S::differing(p, S::template right<2>(p));
    p = S::differing(p, S::template right<1>(p));
    return S::either(v, S::template left<7>(S::masked(p, 0x01010101u)));
}

// The four times seven signs in the low 28 bits.
template <class S>
EDGELLM_INLINE typename S::I signs_of_28(const typename S::I& v) {
    const typename S::I low = S::either(lane_bits<S, 0, 0x7fu>(v), lane_bits<S, 1, 0x7f00u>(v));
    return with_parity<S>(S::either(low, S::either(lane_bits<S, 2, 0x7f0000u>(v), lane_bits<S, 3, 0x7f000000u>(v))));
}

// The scale of four bits from `shift` on, doubled and one added.
template <class S, int shift>
EDGELLM_INLINE typename S::F odd_scale(const typename S::I& v) {
    return S::to_float(S::either(lane_bits<S, 1 - shift, 0x1eu>(v), S::every(1)));
}

// One block of the rows of one vector. `word(i)` is word i of each row; `store(t, v)` keeps weights 4t..4t+3; `scale(j, f)` those of part j.
template <class S, Type T, class Word, class Store, class Scale>
EDGELLM_INLINE void unpack_words(const typename S::F& d, Word&& word, Store&& store, Scale&& scale) {
    using F = typename S::F;
    using I = typename S::I;
    using W = typename S::W;
    auto lanes = [&](int i) EDGELLM_INLINE_LAMBDA { return S::lanes(word(i)); };
    const float eighth_value = 0.125f;
    const F eighth = S::mul(d, S::broadcast(&eighth_value));
    if constexpr (T == IQ4_XS) {
        for (int i = 0; i < 32; i++) {
            const W both = word(i);
            const int t = i / 4 * 8 + i % 4;
            store(t, all_eight<S>(S::lookup(S::low(both), kIq4)));
            store(t + 4, all_eight<S>(S::lookup(S::high(both), kIq4)));
        }
        for (int i = 0; i < 2; i++) {
            const I scales = lanes(32 + i);
            repeat<4>([&](auto b) EDGELLM_INLINE_LAMBDA {
                scale(4 * i + b.value, S::mul(d, S::to_float(S::subtract(lane_bits<S, -8 * b.value, 255u>(scales), S::every(32)))));
            });
        }
    } else if constexpr (T == Q3_K) {
        repeat<2>([&](auto half) EDGELLM_INLINE_LAMBDA {
            for (int t = 0; t < 8; t++) {
                const W third = word(t), pairs = word(8 + half.value * 8 + t);
                repeat<4>([&](auto j) EDGELLM_INLINE_LAMBDA {
                    const W low = S::template insert<-2 * j.value, 3>(W{}, pairs);
                    store(half.value * 32 + j.value * 8 + t, S::template insert<2 - 4 * half.value - j.value, 4>(low, third));
                });
            }
        });
        const W first = word(24), second = word(25), high = word(26);
        const W scales[4] = {S::template insert<4, 0x30>(S::low(first), high), S::template insert<2, 0x30>(S::low(second), high),
                             S::template insert<0, 0x30>(S::high(first), high), S::template insert<-2, 0x30>(S::high(second), high)};
        for (int i = 0; i < 4; i++) {
            repeat<4>([&](auto b) EDGELLM_INLINE_LAMBDA {
                const I scale_of = lane_bits<S, -8 * b.value, 255u>(S::lanes(scales[i]));
                scale(4 * i + b.value, S::mul(d, S::to_float(S::subtract(scale_of, S::every(32)))));
            });
        }
    } else if constexpr (T == Q2_K || T == TQ2_0) {
        constexpr int kFirst = T == Q2_K ? 4 : 0;
        for (int half = 0; half < 2; half++) {
            for (int t = 0; t < 8; t++) {
                const W pairs = word(kFirst + half * 8 + t);
                repeat<4>([&](auto j) EDGELLM_INLINE_LAMBDA { store(half * 32 + j.value * 8 + t, S::template insert<-2 * j.value, 3>(W{}, pairs)); });
            }
        }
        if constexpr (T == TQ2_0) {
            for (int j = 0; j < 8; j++) scale(j, d);
        } else {
            for (int i = 0; i < 4; i++) {
                const W both = word(i);
                store(64 + i, S::high(both));
                repeat<4>([&](auto b) EDGELLM_INLINE_LAMBDA {
                    scale(4 * i + b.value, S::mul(d, S::to_float(lane_bits<S, -8 * b.value, 15u>(S::lanes(both)))));
                });
            }
        }
    } else if constexpr (T == TQ1_0) {
        // A byte is a fraction of 256; times three, what is above is the next digit. In two halves, with room for the product.
        auto digits = [&](int i, auto n, int first, int step) EDGELLM_INLINE_LAMBDA {
            const I all = lanes(i);
            I even = S::masked(all, 0x00ff00ffu), odd = lane_bits<S, -8, 0x00ff00ffu>(all);
            repeat<n.value>([&](auto digit) EDGELLM_INLINE_LAMBDA {
                even = S::add(even, S::template left<1>(even)), odd = S::add(odd, S::template left<1>(odd));
                store(first + step * digit.value, S::as_bytes(S::either(lane_bits<S, -8, 0x00ff00ffu>(even), S::masked(odd, 0xff00ff00u))));
                even = S::masked(even, 0x00ff00ffu), odd = S::masked(odd, 0x00ff00ffu);
            });
        };
        for (int t = 0; t < 8; t++) digits(t, Int<5>{}, t, 8);
        for (int t = 0; t < 4; t++) digits(8 + t, Int<5>{}, 40 + t, 4);
        digits(12, Int<4>{}, 60, 1);
        for (int j = 0; j < 8; j++) scale(j, d);
    } else if constexpr (T == IQ3_S) {
        for (int half = 0; half < 2; half++) {
            const I ninth = lanes(16 + half);
            repeat<4>([&](auto part) EDGELLM_INLINE_LAMBDA {
                const I signs = lanes(18 + half * 4 + part.value);
                repeat<8>([&](auto t) EDGELLM_INLINE_LAMBDA {
                    const I low = lane_bits<S, -8 * (t.value % 4), 255u>(lanes(half * 8 + part.value * 2 + t.value / 4));
                    const I index = S::either(low, lane_bits<S, 8 - (8 * part.value + t.value), 256u>(ninth));
                    const I signs_of = S::template right<4 * t.value>(signs);
                    store((half * 4 + part.value) * 8 + t.value, with_signs<S, 16>(S::gather(kGrids.iq3_s, index), signs_of));
                });
            });
        }
        const I scales = lanes(26);
        repeat<8>([&](auto j) EDGELLM_INLINE_LAMBDA { scale(j.value, S::mul(d, odd_scale<S, 4 * j.value>(scales))); });
    } else if constexpr (T == IQ3_XXS) {
        const F quarter = S::add_floats(eighth, eighth);
        for (int part = 0; part < 8; part++) {
            const I rest = lanes(16 + part), signs = signs_of_28<S>(rest);
            repeat<8>([&](auto t) EDGELLM_INLINE_LAMBDA {
                const I index = lane_bits<S, -8 * (t.value % 4), 255u>(lanes(part * 2 + t.value / 4));
                store(part * 8 + t.value, with_signs<S, 128>(S::gather(kGrids.iq3_xxs, index), S::template right<4 * t.value>(signs)));
            });
            scale(part, S::mul(quarter, odd_scale<S, 28>(rest)));
        }
    } else if constexpr (T == IQ2_XXS) {
        for (int part = 0; part < 8; part++) {
            const I indices = lanes(2 * part), rest = lanes(2 * part + 1), signs = signs_of_28<S>(rest);
            repeat<8>([&](auto t) EDGELLM_INLINE_LAMBDA {
                const I index = lane_bits<S, 1 - 8 * (t.value / 2), 0x1feu>(indices);
                const I magnitudes = S::gather(kGrids.iq2_xxs + t.value % 2, index);
                store(part * 8 + t.value, with_signs<S, 128>(magnitudes, S::template right<4 * t.value>(signs)));
            });
            scale(part, S::mul(eighth, odd_scale<S, 28>(rest)));
        }
    } else if constexpr (T == IQ2_XS) {
        for (int part = 0; part < 8; part++) {
            const I first = lanes(2 * part), last = lanes(2 * part + 1);
            const I low = S::either(lane_bits<S, -9, 0x7fu>(first), lane_bits<S, -17, 0x7f00u>(first));
            const I signs = with_parity<S>(S::either(low, S::either(lane_bits<S, 7, 0x7f0000u>(last), lane_bits<S, -1, 0x7f000000u>(last))));
            repeat<8>([&](auto t) EDGELLM_INLINE_LAMBDA {
                const I index = lane_bits<S, 1 - 16 * (t.value / 2 % 2), 0x3feu>(t.value < 4 ? first : last);
                const I magnitudes = S::gather(kGrids.iq2_xs + t.value % 2, index);
                store(part * 8 + t.value, with_signs<S, 128>(magnitudes, S::template right<4 * t.value>(signs)));
            });
        }
        for (int i = 0; i < 2; i++) {
            const I scales = lanes(16 + i);
            repeat<8>([&](auto j) EDGELLM_INLINE_LAMBDA { scale(8 * i + j.value, S::mul(eighth, odd_scale<S, 4 * j.value>(scales))); });
        }
    } else {
        static_assert(T == IQ2_S, "a type of the table above");
        for (int half = 0; half < 2; half++) {
            const I above = lanes(16 + half);
            repeat<4>([&](auto part) EDGELLM_INLINE_LAMBDA {
                const I indices = lanes(half * 4 + part.value), signs = lanes(8 + half * 4 + part.value);
                repeat<8>([&](auto t) EDGELLM_INLINE_LAMBDA {
                    const I low = lane_bits<S, 1 - 8 * (t.value / 2), 0x1feu>(indices);
                    const I index = S::either(low, lane_bits<S, 9 - (8 * part.value + t.value / 2 * 2), 0x600u>(above));
                    const I magnitudes = S::gather(kGrids.iq2_s + t.value % 2, index);
                    store((half * 4 + part.value) * 8 + t.value, with_signs<S, 128>(magnitudes, S::template right<4 * t.value>(signs)));
                });
            });
            const I scales = lanes(18 + half);
            repeat<8>([&](auto j) EDGELLM_INLINE_LAMBDA { scale(8 * half + j.value, S::mul(eighth, odd_scale<S, 4 * j.value>(scales))); });
        }
    }
}

// One block of sixteen rows: `vectors` and `factors` as in Unpacked.
template <class S, Type T>
EDGELLM_NOINLINE void unpack_parts(const uint8_t* quants, const uint8_t* scales, uint8_t* vectors, float* factors) {
    for (int part = 0; part * S::kLanes < kRows; part++) {
        const uint8_t *w = quants + part * S::kLanes * 4, *d = scales + part * S::kLanes * 2;
        uint8_t* out = vectors + part * S::kLanes * 4;
        float* f = factors + part * S::kLanes;
        auto word = [&](int i) EDGELLM_INLINE_LAMBDA {
            S::prefetch(w + kAhead + i * kLine);
            return S::load(w + i * kLine);
        };
        auto store = [&](int t, const typename S::W& v) EDGELLM_INLINE_LAMBDA { S::store_bytes(out + t * kLine, v); };
        auto scale = [&](int j, const typename S::F& v) EDGELLM_INLINE_LAMBDA { S::store(f + j * kRows, v); };
        unpack_words<S, T>(S::half(d), word, store, scale);
        if constexpr (T == Q2_K) scale(16, S::half(d + 32));
    }
}
