// Which variant, which tiles, which thread: everything around the kernels.
#include <cstring>

#include "cpu.h"
#include "layout.h"
#include "tiles.h"

namespace edgellm {

// Which of the files have something in them depends on the target and the compiler, as their own first lines say.
#if defined(__x86_64__) || defined(_M_X64)
#define EDGELLM_X86
extern const Variant kAvx512Vnni, kAvxVnni, kAvx2;
#elif defined(__aarch64__)
extern const Variant kNeonI8mm, kNeonDotprod;
#endif
extern const Variant kGeneric;

const Variant* const kVariants[] = {
#if defined(EDGELLM_X86)
    &kAvx512Vnni,
#if defined(EDGELLM_KNOWS_AVX_VNNI)
    &kAvxVnni,
#endif
    &kAvx2,
#elif defined(__aarch64__)
#if defined(EDGELLM_KNOWS_I8MM)
    &kNeonI8mm,
#endif
    &kNeonDotprod,
#endif
    &kGeneric, nullptr};

const Variant* find_variant(const char* name) {
    const bool choose = std::strcmp(name, "auto") == 0;
    for (const Variant* const* v = kVariants; *v; v++) {
        if (choose ? *v != &kGeneric && (*v)->runs_here() : std::strcmp(name, (*v)->name) == 0) return *v;
    }
    return nullptr;
}

namespace {

// Packed weights that are kept in the second-level cache while all the tiles pass.
constexpr int64_t kChunkBytes = 384 * 1024;

// Even tiles, 9 columns being 4 + 5 and not 8 + 1; where weights are unpacked for all of them, full ones and a rest.
int64_t first_column(int64_t tile, int64_t n, bool wide) {
    if (!wide) return n * tile / n_tiles(n);
    return tile * kMaxCols < n ? tile * kMaxCols : n;
}

Tile nth_tile(char* memory, Type type, int64_t k, int64_t i, int64_t n, bool wide) {
    const int cols = static_cast<int>(first_column(i + 1, n, wide) - first_column(i, n, wide));
    return tile_at(memory + i * tile_bytes(type, k, kMaxCols), type, k, cols);
}

}   // namespace

int64_t work_bytes(const Variant& variant, Type type, int64_t k, int64_t n, int n_threads) {
    const int64_t tiles = n_tiles(n) * tile_bytes(type, k, kMaxCols) * (n * k <= kAlone ? n_threads : 1);
    return tiles + (n >= variant.wide_from[type] ? n_threads * ready_bytes(type, k) : 0) + kLine;
}

void matmul(const Variant& variant, Type type, const void* packed, int64_t rows, int64_t k, const Columns& x, float* y, int64_t y_stride, void* work,
            int ith, int nth, void (*barrier)(void*), void* barrier_argument) {
    const int64_t n = x.n[0] * x.n[1] * x.n[2];
    if (n == 0) return;
    const int64_t tiles = n_tiles(n), tile_step = tile_bytes(type, k, kMaxCols);
    const bool alone = n * k <= kAlone, wide = n >= variant.wide_from[type];
    char* const all = reinterpret_cast<char*>(round_up(reinterpret_cast<intptr_t>(work), kLine));
    char* const memory = all + (alone ? ith * tiles * tile_step : 0);
    const int64_t n_blocks = k / activation_block(type);
    const int64_t first = alone ? 0 : n_blocks * ith / nth, last = alone ? n_blocks : n_blocks * (ith + 1) / nth;
    for (int64_t t = 0; t < tiles; t++) {
        const Tile tile = nth_tile(memory, type, k, t, n, wide);
        for (int c = 0; c < tile.cols; c++) {
            variant.quantize(type, column(x, first_column(t, n, wide) + c), first, last, tile, c);
        }
    }
    if (!alone && nth > 1) barrier(barrier_argument);

    const int64_t n_groups = (rows + kRows - 1) / kRows, step = group_bytes(type, k);
    const int64_t begin = n_groups * ith / nth, end = n_groups * (ith + 1) / nth;
    const int64_t fitting = wide ? n_ready_groups(type, k) : kChunkBytes / step, chunk = fitting > 1 ? fitting : 1;
    char* const ready = all + tiles * tile_step * (alone ? nth : 1) + ith * ready_bytes(type, k);
    auto group_at = [&](int64_t g) { return static_cast<const uint8_t*>(packed) + g * step; };
    auto unpacked_at = [&](int64_t i) { return reinterpret_cast<uint8_t*>(ready + i * unpacked_bytes(type, k)); };
    auto factors_at = [&](int64_t i) { return reinterpret_cast<float*>(unpacked_at(i) + vector_bytes(type, k)); };
    for (int64_t g0 = begin; g0 < end; g0 += chunk) {
        const int64_t g1 = g0 + chunk < end ? g0 + chunk : end;
        for (int64_t g = g0; wide && g < g1; g++) variant.unpack[type](group_at(g), k, unpacked_at(g - g0), factors_at(g - g0));
        for (int64_t t = 0; t < tiles; t++) {
            const Tile tile = nth_tile(memory, type, k, t, n, wide);
            const GroupKernel kernel = wide && tile.cols == kMaxCols ? variant.ready[type] : variant.kernel[type][tile.cols - 1];
            float* out = y + first_column(t, n, wide) * y_stride;
            for (int64_t g = g0; g < g1; g++) {
                const int64_t left = rows - g * kRows;
                kernel(group_at(g), {unpacked_at(g - g0), factors_at(g - g0), wide}, k, tile, out + g * kRows, y_stride,
                       left < kRows ? static_cast<int>(left) : kRows);
            }
        }
    }
}

}   // namespace edgellm
