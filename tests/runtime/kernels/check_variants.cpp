// Every variant that runs here against the generic one, bit for bit, over odd shapes; for sanitizers and for emulated CPUs.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "experts.h"
#include "join.h"
#include "layout.h"
#include "random_blocks.h"

using namespace edgellm;

namespace {

std::vector<float> multiply(const Variant& v, Type type, const std::vector<uint8_t>& packed, int64_t rows, int64_t k, const std::vector<float>& x,
                            int64_t n) {
    std::vector<float> y(static_cast<size_t>(rows * n), -1);
    std::vector<char> work(static_cast<size_t>(work_bytes(v, type, k, n, 2)));   // exactly as much as is asked for
    const Columns columns = {x.data(), {n, 1, 1}, {k * 4, n * k * 4, n * k * 4}};
    Meeting meeting = {&y, 2};
    auto share = [&](int ith) { matmul(v, type, packed.data(), rows, k, columns, y.data(), rows, work.data(), ith, 2, join, &meeting); };
    std::thread other(share, 1);
    share(0);
    other.join();
    return y;
}

// A float16 of at most 2 in size.
uint16_t small_half(std::mt19937& random) {
    const uint16_t bits = static_cast<uint16_t>(random());
    return static_cast<uint16_t>((bits & 0x83ff) | (0x2c00 + (bits >> 10 & 3) * 0x400));
}

std::vector<float> attend(const Variant& v, const Attention& asked) {
    std::vector<float> y(static_cast<size_t>(asked.n * asked.n_heads * asked.dv), -1);
    Attention a = asked;
    a.out = y.data();
    std::thread other([&] { v.attend(a, 1, 2); });
    v.attend(a, 0, 2);
    other.join();
    return y;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// A cache whose cells are those of another in any order, with others between them; a cell that no query sees may be nowhere.
struct Scattered {
    std::vector<char> k, v;
    std::vector<uint16_t> mask;
    std::vector<int32_t> places;

    Scattered(const Attention& a, std::mt19937& random) {
        const size_t n = static_cast<size_t>(a.n_cells), row = static_cast<size_t>(a.k_cell);
        std::vector<int32_t> order(2 * n);
        std::iota(order.begin(), order.end(), 0);
        std::shuffle(order.begin(), order.end(), random);
        places.assign(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(n));
        k.assign(2 * n * row, 0x11), v.assign(2 * n * row, 0x11);
        mask.assign(2 * n * static_cast<size_t>(a.n), 0xfc00);
        for (size_t c = 0; c < n; c++) {
            const size_t to = static_cast<size_t>(places[c]);
            std::memcpy(k.data() + to * row, a.k + c * row, row);
            std::memcpy(v.data() + to * row, a.v + c * row, row);
            bool seen = false;
            for (size_t i = 0; i < static_cast<size_t>(a.n); i++) {
                std::memcpy(&mask[i * 2 * n + to], a.mask + (i * n + c) * 2, 2);
                seen |= mask[i * 2 * n + to] == 0;
            }
            if (!seen) places[c] = -1;
        }
    }
    Attention of(Attention a) const {
        a.k = k.data(), a.v = v.data(), a.mask = reinterpret_cast<const char*>(mask.data());
        a.mask_row = a.n_cells * 4, a.places = places.data();
        return a;
    }
};

// Queries, heads, heads of the cache, cells, floats a head; the cache is exactly as large as is asked for.
int attention_differs(std::mt19937& random, int* n_checked) {
    int n_wrong = 0;
    const int64_t shapes[][5] = {{1, 1, 1, 1, 16},    {1, 12, 2, 300, 128}, {5, 9, 3, 33, 64},
                                 {17, 4, 1, 64, 256}, {3, 2, 2, 31, 80},    {40, 6, 2, 7, 96}};
    for (const auto& shape : shapes) {
        for (const CellType type : {CellType::f16, CellType::q8_0}) {
            const int64_t n = shape[0], n_heads = shape[1], n_cache_heads = shape[2], n_cells = shape[3], d = shape[4];
            if (type == CellType::q8_0 && d % 32 != 0) continue;
            const int64_t row = type == CellType::f16 ? d * 2 : d / 32 * 34;
            std::vector<float> q(static_cast<size_t>(n * n_heads * d));
            for (float& x : q) x = static_cast<float>(static_cast<int32_t>(random())) / 1e9f;
            std::vector<char> cells[2];
            for (auto& part : cells) {
                part.resize(static_cast<size_t>(n_cells * n_cache_heads * row));
                for (char& byte : part) byte = static_cast<char>(random());
                const int64_t step = type == CellType::f16 ? 2 : 34;   // halves, or the scale of a block
                for (size_t at = 0; at < part.size(); at += static_cast<size_t>(step)) {
                    const uint16_t half = small_half(random);
                    std::memcpy(part.data() + at, &half, 2);
                }
            }
            std::vector<uint16_t> mask(static_cast<size_t>(n * n_cells));
            for (uint16_t& m : mask) m = random() % 3 ? 0 : 0xfc00;
            // clang-format off
            const Attention asked = {n, n_heads, n_cache_heads, n_cells, d, d, reinterpret_cast<const char*>(q.data()), n_heads * d * 4, d * 4, type, type,
                                     cells[0].data(), n_cache_heads * row, row, cells[1].data(), n_cache_heads * row, row,
                                     reinterpret_cast<const char*>(mask.data()), n_cells * 2, 0.1f, nullptr};
            // clang-format on
            if (!can_attend(asked)) std::printf("a shape that cannot be\n"), n_wrong++;
            const std::vector<float> expected = attend(*find_variant("generic"), asked);
            const Scattered scattered(asked, random);
            for (const Variant* const* v = kVariants; *v; v++) {
                if (!(*v)->runs_here()) continue;
                const std::vector<float> y = attend(**v, asked), z = attend(**v, scattered.of(asked));
                ++*n_checked;
                const bool same = same_bits(y, expected);
                if (!same || !same_bits(z, expected)) {
                    n_wrong++;
                    std::printf("%s attention differs%s: n %lld, d %lld\n", (*v)->name, same ? " over cells in any order" : "",
                                static_cast<long long>(n), static_cast<long long>(d));
                }
            }
        }
    }
    return n_wrong;
}

std::vector<float> mixed(const Variant& v, Type type, const std::vector<uint8_t>& packed, int64_t rows, int64_t k, const std::vector<float>& x,
                         const Choice& choice, bool one_column) {
    std::vector<float> y(static_cast<size_t>(rows * choice.pairs()), -1);
    std::vector<char> work(static_cast<size_t>(expert_work_bytes(v, type, k, choice.pairs(), choice.n_experts, 2)));
    const int64_t n = one_column ? 1 : choice.n_used;
    const ExpertProduct product = {type,
                                   packed.data(),
                                   rows,
                                   k,
                                   choice,
                                   {x.data(), {n, choice.n_tokens, 1}, {k * 4, n * k * 4, n * choice.n_tokens * k * 4}},
                                   reinterpret_cast<char*>(y.data()),
                                   rows * 4,
                                   rows * choice.n_used * 4};
    Meeting meeting = {&y, 2};
    auto share = [&](int ith) { multiply_experts(v, product, work.data(), ith, 2, join, &meeting); };
    std::thread other(share, 1);
    share(0);
    other.join();
    return y;
}

// Each row of a mixture against the same column times its expert alone.
int experts_differ(std::mt19937& random, int* n_checked) {
    int n_wrong = 0;
    const int64_t shapes[][6] = {{16, 256, 1, 1, 1, 1}, {48, 512, 4, 2, 5, 0}, {32, 256, 3, 3, 40, 1}, {16, 1024, 9, 2, 12, 0}};
    for (const auto& shape : shapes) {
        const int64_t rows = shape[0], k = shape[1], n_experts = shape[2], n_used = shape[3], n_tokens = shape[4];
        const bool one_column = shape[5] != 0;
        std::vector<int32_t> ids(static_cast<size_t>(n_used * n_tokens));
        for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint32_t>(n_experts));
        const Choice choice = {reinterpret_cast<const char*>(ids.data()), n_used * 4, n_used, n_tokens, n_experts};
        std::vector<float> x(static_cast<size_t>(k * n_tokens * (one_column ? 1 : n_used)));
        for (float& value : x) value = static_cast<float>(static_cast<int32_t>(random())) / 1e9f;
        for (int t = 0; t < kTypes; t++) {
            const Type type = static_cast<Type>(t);
            const int64_t source = rows * k / kInfo[type].block * kInfo[type].source_bytes;
            std::vector<std::vector<uint8_t>> alone;
            std::vector<uint8_t> packed;
            for (int64_t e = 0; e < n_experts; e++) {
                std::vector<uint8_t> w(static_cast<size_t>(source));
                random_blocks(type, rows * k / kInfo[type].block, random, w.data());
                alone.emplace_back(static_cast<size_t>(packed_bytes(type, rows, k)));
                pack(type, w.data(), rows, k, alone.back().data(), 1);
                packed.insert(packed.end(), alone.back().begin(), alone.back().end());
            }
            const Variant& generic = *find_variant("generic");
            std::vector<float> expected;
            for (int64_t pair = 0; pair < choice.pairs(); pair++) {
                const int64_t at = one_column ? pair / n_used : pair;
                const std::vector<float> column(x.begin() + at * k, x.begin() + (at + 1) * k);
                const std::vector<float> y = multiply(generic, type, alone[static_cast<size_t>(choice.of(pair))], rows, k, column, 1);
                expected.insert(expected.end(), y.begin(), y.end());
            }
            for (const Variant* const* v = kVariants; *v; v++) {
                if (!(*v)->runs_here()) continue;
                ++*n_checked;
                if (!same_bits(mixed(**v, type, packed, rows, k, x, choice, one_column), expected)) {
                    n_wrong++;
                    std::printf("%s experts of %s differ: %lld rows, k %lld\n", (*v)->name, kInfo[type].name, static_cast<long long>(rows),
                                static_cast<long long>(k));
                }
            }
        }
    }
    return n_wrong;
}

std::vector<float> thin(const Variant& v, Plain type, const std::vector<uint8_t>& w, int64_t row, int64_t rows, int64_t k,
                        const std::vector<float>& x, int64_t n) {
    std::vector<float> y(static_cast<size_t>(n * rows), -1);
    const Thin product = {type, w.data(), row, rows, k, {x.data(), {n, 1, 1}, {k * 4, n * k * 4, n * k * 4}}, y.data(), rows};
    std::thread other([&] { v.thin(product, 1, 2); });
    v.thin(product, 0, 2);
    other.join();
    return y;
}

// Products with an adapter's matrices, which are exactly as large as is asked for.
int thin_differs(std::mt19937& random, int* n_checked) {
    int n_wrong = 0;
    const int64_t shapes[][3] = {{1, 1, 1}, {8, 96, 5}, {97, 8, 4}, {33, 3, 2}, {16, 64, 9}};   // rows, k, n
    for (const auto& shape : shapes) {
        for (const Plain type : {Plain::f32, Plain::f16, Plain::bf16, Plain::q8_0}) {
            const int64_t rows = shape[0], k = shape[1], n = shape[2];
            if (type == Plain::q8_0 && k % 32 != 0) continue;
            const int64_t row = type == Plain::f32 ? k * 4 : type == Plain::q8_0 ? k / 32 * 34 : k * 2;
            std::vector<uint8_t> w(static_cast<size_t>(rows * row));
            for (size_t at = 0; at + 1 < w.size(); at += 2) {   // finite in every type
                const uint16_t half = small_half(random);
                std::memcpy(w.data() + at, &half, 2);
            }
            std::vector<float> x(static_cast<size_t>(n * k));
            for (float& value : x) value = static_cast<float>(static_cast<int32_t>(random())) / 1e9f;
            const std::vector<float> expected = thin(*find_variant("generic"), type, w, row, rows, k, x, n);
            for (const Variant* const* v = kVariants; *v; v++) {
                if (!(*v)->runs_here()) continue;
                const std::vector<float> y = thin(**v, type, w, row, rows, k, x, n);
                ++*n_checked;
                if (std::memcmp(y.data(), expected.data(), y.size() * sizeof(float)) != 0) {
                    n_wrong++;
                    std::printf("%s adapter differs: %lld rows, k %lld, n %lld\n", (*v)->name, static_cast<long long>(rows),
                                static_cast<long long>(k), static_cast<long long>(n));
                }
            }
        }
    }
    return n_wrong;
}

// Any bits at all, of scales too: nothing beyond the ends is read, and what is a number is the same number everywhere.
int hostile_differs(std::mt19937& random, int* n_checked) {
    int n_wrong = 0;
    for (int t = 0; t < kTypes; t++) {
        const Type type = static_cast<Type>(t);
        for (const int64_t n : {1, 8, 35}) {
            for (const int pattern : {0x100, 0x00, 0x7f, 0x80, 0xff}) {   // the first: random
                const int64_t rows = 17, blocks = 2, k = blocks * kInfo[t].block;
                std::vector<uint8_t> raw(static_cast<size_t>(rows * blocks * kInfo[t].source_bytes));
                for (uint8_t& byte : raw) byte = static_cast<uint8_t>(pattern < 0x100 ? pattern : static_cast<int>(random() >> 8));
                std::vector<float> x(static_cast<size_t>(n * k));
                for (float& value : x) value = static_cast<float>(static_cast<int32_t>(random())) / 1e9f;
                std::vector<uint8_t> packed(static_cast<size_t>(packed_bytes(type, rows, k)));
                pack(type, raw.data(), rows, k, packed.data(), 2);
                const std::vector<float> expected = multiply(*find_variant("generic"), type, packed, rows, k, x, n);
                for (const Variant* const* v = kVariants; *v; v++) {
                    if (!(*v)->runs_here()) continue;
                    const std::vector<float> y = multiply(**v, type, packed, rows, k, x, n);
                    bool same = true;
                    for (size_t i = 0; i < y.size(); i++) same &= y[i] == expected[i] || (y[i] != y[i] && expected[i] != expected[i]);
                    ++*n_checked;
                    if (same) continue;
                    n_wrong++;
                    std::printf("%s %s differs for any bits (%x): n %lld\n", (*v)->name, kInfo[t].name, pattern, static_cast<long long>(n));
                }
            }
        }
    }
    return n_wrong;
}

}   // namespace

int main() {
    std::mt19937 random(1);
    int n_checked = 0, n_wrong = attention_differs(random, &n_checked) + thin_differs(random, &n_checked) + experts_differ(random, &n_checked);
    n_wrong += hostile_differs(random, &n_checked);
    const int64_t shapes[][3] = {{1, 1, 1},  {16, 1, 0}, {17, 2, 17}, {31, 3, 4},  {40, 1, 8},  {5, 1, 300},
                                 {64, 5, 2}, {17, 1, 0}, {15, 1, 1},  {33, 1, 17}, {3, 1, 4096}};   // rows, blocks, n
    for (int t = 0; t < kTypes; t++) {
        const Type type = static_cast<Type>(t);
        for (const auto& shape : shapes) {
            const int64_t rows = shape[0], k = shape[1] * kInfo[t].block, n = shape[2];
            std::vector<uint8_t> raw(static_cast<size_t>(rows * shape[1] * kInfo[t].source_bytes));
            random_blocks(type, rows * shape[1], random, raw.data());
            std::vector<float> x(static_cast<size_t>(n * k));
            for (float& value : x) value = static_cast<float>(static_cast<int32_t>(random())) / 1e9f;
            std::vector<uint8_t> packed(static_cast<size_t>(packed_bytes(type, rows, k)));
            pack(type, raw.data(), rows, k, packed.data(), 2);
            const std::vector<float> expected = multiply(*find_variant("generic"), type, packed, rows, k, x, n);
            for (const Variant* const* v = kVariants; *v; v++) {
                if (!(*v)->runs_here()) continue;
                const std::vector<float> y = multiply(**v, type, packed, rows, k, x, n);
                n_checked++;
                if (y.size() && std::memcmp(y.data(), expected.data(), y.size() * sizeof(float)) != 0) {
                    n_wrong++;
                    std::printf("%s %s differs: %lld rows, k %lld, n %lld\n", (*v)->name, kInfo[t].name, static_cast<long long>(rows),
                                static_cast<long long>(k), static_cast<long long>(n));
                }
            }
        }
    }
    for (const Variant* const* v = kVariants; *v; v++) std::printf("%s%s ", (*v)->name, (*v)->runs_here() ? "" : " (not here)");
    std::printf("\n%d checked, %d wrong\n", n_checked, n_wrong);
    return n_wrong != 0;
}
