// Attention of a few rows over a cache, read once for all the rows that share a head of it. Over a policy `A` of eight floats,
// included by a variant's source file as kernels.h is.
//
// The order of every floating-point operation is written out here: a row's result depends on its own query, its own visible cells
// and nothing else, neither on how many rows there are nor on who computes them. Cells that are masked add exact zeros.
//
// Blocks of kCells cells are turned to floats, scored, weighted by exp(score - the largest so far) and summed (Milakov and
// Gimelshein 2018, arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135). Sums stay in float32, where ggml's keep float16.

constexpr int kCells = 32;       // of a block
constexpr int kGroupRows = 16;   // rows that share the conversion of a block

// Rows of the cache to floats: the first `n`, or those at `places`; zeros for one that nobody sees.
template <class A>
void cells_to_floats(CellType type, const char* first, int64_t stride, const int32_t* places, int n, int64_t d, float* to) {
    for (int c = 0; c < n; c++, to += d) {
        if (places && places[c] < 0) {
            std::memset(to, 0, static_cast<size_t>(d) * 4);
            continue;
        }
        const char* from = first + (places ? places[c] : c) * stride;
        if (type == CellType::f16) {
            for (int64_t i = 0; i < d; i += 8) A::store(to + i, A::half(reinterpret_cast<const uint8_t*>(from) + 2 * i));
        } else if (type == CellType::q8_0) {
            for (int64_t b = 0; b < d / 32; b++) {
                const uint8_t* block = reinterpret_cast<const uint8_t*>(from) + 34 * b;
                const typename A::V scale = A::one_half(block);
                for (int i = 0; i < 32; i += 8) A::store(to + 32 * b + i, A::mul(A::bytes(block + 2 + i), scale));
            }
        } else {
            std::memcpy(to, from, static_cast<size_t>(d) * 4);
        }
    }
}

// What is added to the scores of cells [0, n) by a row of the mask, the rest of a block is not seen.
template <class A>
void mask_of(const Attention& a, int64_t query, int64_t c0, int n, float* mask) {
    constexpr uint16_t kUnseen = 0xfc00;   // minus infinity
    alignas(64) uint16_t halves[kCells];
    const uint16_t* row = a.mask ? reinterpret_cast<const uint16_t*>(a.mask + query * a.mask_row) : nullptr;
    if (a.places) {
        for (int c = 0; c < n; c++) {
            const int32_t place = a.places[c0 + c];
            halves[c] = place < 0 ? kUnseen : row ? row[place] : uint16_t{0};
        }
    } else if (row) {
        std::memcpy(halves, row + c0, static_cast<size_t>(n) * 2);
    } else {
        std::memset(halves, 0, static_cast<size_t>(n) * 2);
    }
    for (int c = n; c < kCells; c++) halves[c] = kUnseen;
    for (int c = 0; c < kCells; c += 8) A::store(mask + c, A::half(reinterpret_cast<const uint8_t*>(halves + c)));
}

// scores[r][c] = q[r] . k[c]
template <class A, int R>
void score(const float* q, const float* k, int n_cells, int64_t d, float* scores) {
    using V = typename A::V;
    for (int c = 0; c < n_cells; c += 2) {   // the block has room for an even number
        V first[R], second[R];
        EDGELLM_UNROLL for (int r = 0; r < R; r++) first[r] = A::zero(), second[r] = A::zero();
        const float *k0 = k + c * d, *k1 = k0 + d;
        for (int64_t i = 0; i < d; i += 8) {
            const V a = A::load(k0 + i), b = A::load(k1 + i);
            EDGELLM_UNROLL for (int r = 0; r < R; r++) {
                const V x = A::load(q + r * d + i);
                first[r] = A::fma(x, a, first[r]);
                second[r] = A::fma(x, b, second[r]);
            }
        }
        float* to = scores + c;
        EDGELLM_UNROLL for (int r = 0; r + 1 < R; r += 2) {
            A::sums(first[r], second[r], first[r + 1], second[r + 1], to + r * kCells, to + (r + 1) * kCells);
        }
        if constexpr (R % 2 == 1) {
            to[(R - 1) * kCells] = A::sum(first[R - 1]);
            to[(R - 1) * kCells + 1] = A::sum(second[R - 1]);
        }
    }
}

// out[r] = out[r] * factor[r] + weights[r] V
template <class A, int R>
void gather(const float* weights, const float* factor, const float* v, int n_cells, int64_t d, float* out) {
    using V = typename A::V;
    for (int64_t i = 0; i < d; i += 16) {
        V low[R], high[R];
        EDGELLM_UNROLL for (int r = 0; r < R; r++) {
            const V f = A::all(factor[r]);
            low[r] = A::mul(A::load(out + r * d + i), f);
            high[r] = A::mul(A::load(out + r * d + i + 8), f);
        }
        for (int c = 0; c < n_cells; c++) {
            const V a = A::load(v + c * d + i), b = A::load(v + c * d + i + 8);
            EDGELLM_UNROLL for (int r = 0; r < R; r++) {
                const V w = A::all(weights[r * kCells + c]);
                low[r] = A::fma(w, a, low[r]);
                high[r] = A::fma(w, b, high[r]);
            }
        }
        EDGELLM_UNROLL for (int r = 0; r < R; r++) {
            A::store(out + r * d + i, low[r]);
            A::store(out + r * d + i + 8, high[r]);
        }
    }
}

// exp(x) for x <= 0, 0 below -87: as 2^n times a polynomial (Cephes), within two units of the last place.
template <class A>
EDGELLM_INLINE typename A::V exp_of(typename A::V x) {
    using V = typename A::V;
    const V magic = A::all(12582912.0f);   // 1.5 * 2^23: adding it rounds to an integer, in the low bits
    const V shifted = A::fma(x, A::all(1.44269504088896341f), magic), n = A::sub(shifted, magic);
    V r = A::fma(n, A::all(-0.693359375f), x);
    r = A::fma(n, A::all(2.12194440e-4f), r);
    V y = A::fma(A::all(1.9875691500e-4f), r, A::all(1.3981999507e-3f));
    y = A::fma(y, r, A::all(8.3334519073e-3f));
    y = A::fma(y, r, A::all(4.1665795894e-2f));
    y = A::fma(y, r, A::all(1.6666665459e-1f));
    y = A::fma(y, r, A::all(5.0000001201e-1f));
    y = A::fma(A::mul(r, r), y, A::add(r, A::all(1.0f)));
    return A::zero_below(x, -87.0f, A::mul(y, A::power_of_two(shifted)));
}

// What the weighted sum of a row is multiplied by where a sink takes its share: `total` is that of exp(score - largest).
template <class A>
float with_sink(float largest, float total, float sink) {
    if (total == 0) return 0;
    float factors[2][8];   // of the row, of the sink
    const float top = sink > largest ? sink : largest;
    A::store(factors[0], exp_of<A>(A::all(largest - top)));
    A::store(factors[1], exp_of<A>(A::all(sink - top)));
    return factors[0][0] / (total * factors[0][0] + factors[1][0]);
}

// Rows [first, first + n_rows) of one cache head; row r is query r / group, head r % group of those that share the cache head.
template <class A>
void attend_rows(const Attention& a, int64_t cache_head, int64_t first, int n_rows) {
    using V = typename A::V;
    const int64_t group = a.n_heads / a.n_cache_heads, d = a.d, dv = a.dv;
    alignas(64) float q[kGroupRows * kMaxHead], cells[kCells * kMaxHead], out[kGroupRows * kMaxHead];
    alignas(64) float scores[kGroupRows * kCells], masks[kGroupRows * kCells];
    float largest[kGroupRows], total[kGroupRows], factor[kGroupRows];
    const float lowest = -INFINITY;
    for (int r = 0; r < n_rows; r++) {
        const int64_t query = (first + r) / group, head = cache_head * group + (first + r) % group;
        const float* from = reinterpret_cast<const float*>(a.q + query * a.q_row + head * a.q_head);
        for (int64_t i = 0; i < d; i++) q[r * d + i] = from[i] * a.scale;
        largest[r] = lowest, total[r] = 0;
    }
    std::memset(out, 0, static_cast<size_t>(n_rows * dv) * 4);
    const int64_t first_query = first / group;
    const int n_queries = static_cast<int>((first + n_rows - 1) / group - first_query + 1);
    for (int64_t c0 = 0; c0 < a.n_cells; c0 += kCells) {
        int n_cells = a.n_cells - c0 < kCells ? static_cast<int>(a.n_cells - c0) : kCells;
        int n_visible = 0;   // cells up to the last that any row sees
        for (int j = 0; j < n_queries; j++) {
            float* mask = masks + j * kCells;
            mask_of<A>(a, first_query + j, c0, n_cells, mask);
            for (int c = n_cells - 1; c >= n_visible; c--) {
                if (mask[c] != lowest) {
                    n_visible = c + 1;
                    break;
                }
            }
        }
        if (n_visible == 0) continue;
        n_cells = n_visible;
        const int32_t* places = a.places ? a.places + c0 : nullptr;
        const int64_t c_first = a.places ? 0 : c0;
        cells_to_floats<A>(a.k_type, a.k + cache_head * a.k_head + c_first * a.k_cell, a.k_cell, places, n_cells, d, cells);
        if (n_cells % 2) std::memset(cells + n_cells * d, 0, static_cast<size_t>(d) * 4);
        for (int r = 0; r < n_rows; r += 4) {
            float* s = scores + r * kCells;
            switch (n_rows - r) {
                case 1: score<A, 1>(q + r * d, cells, n_cells, d, s); break;
                case 2: score<A, 2>(q + r * d, cells, n_cells, d, s); break;
                case 3: score<A, 3>(q + r * d, cells, n_cells, d, s); break;
                default: score<A, 4>(q + r * d, cells, n_cells, d, s);
            }
        }
        for (int r = 0; r < n_rows; r++) {
            float* s = scores + r * kCells;
            const float* mask = masks + ((first + r) / group - first_query) * kCells;
            for (int c = n_cells; c < kCells; c++) s[c] = 0;   // left over from another block
            V x[kCells / 8];
            V top = A::all(lowest);
            EDGELLM_UNROLL for (int j = 0; j < kCells / 8; j++) {
                x[j] = A::add(A::load(s + 8 * j), A::load(mask + 8 * j));
                top = A::larger(top, x[j]);
            }
            const float here = A::largest(top);
            factor[r] = 1;
            if (here > largest[r]) {
                float ratio[8];
                A::store(ratio, exp_of<A>(A::all(largest[r] == lowest ? -100.0f : largest[r] - here)));
                factor[r] = ratio[0];
                largest[r] = here;
            }
            if (largest[r] == lowest) {   // it sees nothing yet
                EDGELLM_UNROLL for (int j = 0; j < kCells / 8; j++) A::store(s + 8 * j, A::zero());
                continue;
            }
            const V offset = A::all(largest[r]);
            EDGELLM_UNROLL for (int j = 0; j < kCells / 8; j++) {
                x[j] = exp_of<A>(A::sub(x[j], offset));
                A::store(s + 8 * j, x[j]);
            }
            total[r] = total[r] * factor[r] + A::sum(A::add(A::add(x[0], x[1]), A::add(x[2], x[3])));
        }
        cells_to_floats<A>(a.v_type, a.v + cache_head * a.v_head + c_first * a.v_cell, a.v_cell, places, n_cells, dv, cells);
        for (int r = 0; r < n_rows; r += 4) {
            const float* s = scores + r * kCells;
            switch (n_rows - r) {
                case 1: gather<A, 1>(s, factor + r, cells, n_cells, dv, out + r * dv); break;
                case 2: gather<A, 2>(s, factor + r, cells, n_cells, dv, out + r * dv); break;
                case 3: gather<A, 3>(s, factor + r, cells, n_cells, dv, out + r * dv); break;
                default: gather<A, 4>(s, factor + r, cells, n_cells, dv, out + r * dv);
            }
        }
    }
    for (int r = 0; r < n_rows; r++) {
        const int64_t query = (first + r) / group, head = cache_head * group + (first + r) % group;
        const float inverse = a.sinks ? with_sink<A>(largest[r], total[r], a.sinks[head]) : total[r] > 0 ? 1.0f / total[r] : 0.0f;
        float* to = a.out + (query * a.n_heads + head) * dv;
        for (int64_t i = 0; i < dv; i++) to[i] = out[r * dv + i] * inverse;
    }
}

// Thread `ith` of `nth`: few rows are split evenly, many in turns, since later ones of a prompt see more.
template <class A>
void attend(const Attention& a, int ith, int nth) {
    const int64_t rows = a.n * (a.n_heads / a.n_cache_heads), all = rows * a.n_cache_heads;
    const bool few = all < 4 * kGroupRows * nth;
    const int64_t begin = few ? all * ith / nth : 0, end = few ? all * (ith + 1) / nth : all;
    int64_t turn = 0;
    for (int64_t at = begin; at < end; turn++) {
        const int64_t in_head = at % rows, left = rows - in_head < end - at ? rows - in_head : end - at;
        const int n = left < kGroupRows ? static_cast<int>(left) : kGroupRows;
        if (few || turn % nth == ith) attend_rows<A>(a, at / rows, in_head, n);
        at += n;
    }
}
