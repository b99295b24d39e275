#include "experts.h"

#include <cstring>

#include "tiles.h"

namespace edgellm {

namespace {

int64_t most_tiles(int64_t n_pairs, int64_t n_experts) { return n_pairs / kMaxCols + (n_pairs < n_experts ? n_pairs : n_experts); }
int64_t order_bytes(int64_t n_pairs, int64_t n_experts) { return round_up((n_pairs + n_experts + 1) * 4, kLine); }

// The pairs in the order of their experts, and where each expert's begin.
struct Order {
    int32_t *pairs, *begins;
    Order(void* memory, const Choice& choice) : pairs(static_cast<int32_t*>(memory)), begins(pairs + choice.pairs()) {
        std::memset(begins, 0, static_cast<size_t>(choice.n_experts + 1) * 4);
        each(choice, [&](int64_t, int32_t e) { begins[e + 1]++; });
        for (int64_t e = 0; e < choice.n_experts; e++) begins[e + 1] += begins[e];
        each(choice, [&](int64_t p, int32_t e) { pairs[begins[e]++] = static_cast<int32_t>(p); });
        for (int64_t e = choice.n_experts; e > 0; e--) begins[e] = begins[e - 1];
        begins[0] = 0;
    }
    int64_t n(int64_t e) const { return begins[e + 1] - begins[e]; }

private:
    template <class Body>
    static void each(const Choice& choice, Body&& body) {
        for (int64_t p = 0; p < choice.pairs(); p++) {
            const int32_t e = choice.of(p);
            if (0 <= e && e < choice.n_experts) body(p, e);
        }
    }
};

const float* column_of(const ExpertProduct& p, int64_t pair) {
    const int64_t slot = pair % p.choice.n_used, token = pair / p.choice.n_used;
    return column(p.x, (p.x.n[0] == 1 ? 0 : slot) + token * p.x.n[0]);
}

char* row_of(const ExpertProduct& p, int64_t pair) { return p.y + pair % p.choice.n_used * p.y_slot + pair / p.choice.n_used * p.y_token; }

// body(expert, its columns' pairs, how many, the tile's number) for every tile.
template <class Body>
void each_tile(const Order& order, int64_t n_experts, Body&& body) {
    int64_t number = 0;
    for (int64_t e = 0; e < n_experts; e++) {
        for (int64_t c = 0; c < order.n(e); c += kMaxCols) {
            const int64_t left = order.n(e) - c;
            body(order.pairs + order.begins[e] + c, static_cast<int>(left < kMaxCols ? left : kMaxCols), number++);
        }
    }
}

}   // namespace

int64_t expert_work_bytes(const Variant& variant, Type type, int64_t k, int64_t n_pairs, int64_t n_experts, int n_threads) {
    const int64_t tiles = most_tiles(n_pairs, n_experts) * tile_bytes(type, k, kMaxCols) * (n_pairs * k <= kAlone ? n_threads : 1);
    const int64_t ready = n_pairs >= variant.wide_from[type] ? n_threads * ready_bytes(type, k) : 0;
    return tiles + ready + n_threads * order_bytes(n_pairs, n_experts) + kLine;
}

void multiply_experts(const Variant& variant, const ExpertProduct& p, void* work, int ith, int nth, void (*barrier)(void*), void* barrier_argument) {
    const int64_t n_pairs = p.choice.pairs(), n_experts = p.choice.n_experts, k = p.k, tile_step = tile_bytes(p.type, k, kMaxCols);
    if (n_pairs == 0) return;
    const bool alone = n_pairs * k <= kAlone;
    char* const all = reinterpret_cast<char*>(round_up(reinterpret_cast<intptr_t>(work), kLine));
    const Order order(all + ith * order_bytes(n_pairs, n_experts), p.choice);
    char* const shared = all + nth * order_bytes(n_pairs, n_experts);
    const int64_t all_tiles = most_tiles(n_pairs, n_experts) * tile_step;
    char* const tiles = shared + (alone ? ith * all_tiles : 0);
    char* const ready = shared + all_tiles * (alone ? nth : 1) + ith * ready_bytes(p.type, k);

    const int64_t n_blocks = k / activation_block(p.type);
    const int64_t first = alone ? 0 : n_blocks * ith / nth, last = alone ? n_blocks : n_blocks * (ith + 1) / nth;
    each_tile(order, n_experts, [&](const int32_t* pairs, int cols, int64_t number) {
        const Tile tile = tile_at(tiles + number * tile_step, p.type, k, cols);
        for (int c = 0; c < cols; c++) variant.quantize(p.type, column_of(p, pairs[c]), first, last, tile, c);
    });
    if (!alone && nth > 1) barrier(barrier_argument);

    const int64_t n_groups = p.rows / kRows, step = group_bytes(p.type, k), begin = n_groups * ith / nth, end = n_groups * (ith + 1) / nth;
    int64_t number = 0;
    for (int64_t e = 0; e < n_experts; number += n_tiles(order.n(e)), e++) {
        const int64_t n = order.n(e);
        if (n == 0) continue;
        const bool wide = n >= variant.wide_from[p.type];
        const uint8_t* const weights = static_cast<const uint8_t*>(p.packed) + e * n_groups * step;
        const int64_t chunk = wide ? n_ready_groups(p.type, k) : 1;
        auto unpacked_at = [&](int64_t i) { return reinterpret_cast<uint8_t*>(ready + i * unpacked_bytes(p.type, k)); };
        auto factors_at = [&](int64_t i) { return reinterpret_cast<float*>(unpacked_at(i) + vector_bytes(p.type, k)); };
        for (int64_t g0 = begin; g0 < end; g0 += chunk) {
            const int64_t g1 = g0 + chunk < end ? g0 + chunk : end;
            for (int64_t g = g0; wide && g < g1; g++) variant.unpack[p.type](weights + g * step, k, unpacked_at(g - g0), factors_at(g - g0));
            for (int64_t c0 = 0; c0 < n; c0 += kMaxCols) {
                const int cols = static_cast<int>(n - c0 < kMaxCols ? n - c0 : kMaxCols);
                const Tile tile = tile_at(tiles + (number + c0 / kMaxCols) * tile_step, p.type, k, cols);
                const GroupKernel kernel = wide && cols == kMaxCols ? variant.ready[p.type] : variant.kernel[p.type][cols - 1];
                for (int64_t g = g0; g < g1; g++) {
                    float y[kMaxCols * kRows];
                    kernel(weights + g * step, {unpacked_at(g - g0), factors_at(g - g0), wide}, k, tile, y, kRows, kRows);
                    for (int c = 0; c < cols; c++) {
                        std::memcpy(row_of(p, order.pairs[order.begins[e] + c0 + c]) + g * kRows * 4, y + c * kRows, kRows * 4);
                    }
                }
            }
        }
    }
}

}   // namespace edgellm
