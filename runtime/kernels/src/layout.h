// The packed layout of a weight matrix and of a tile of activations: what the packer writes and every kernel reads.
//
// Sixteen weight rows form a group. Within a group, four consecutive weights of each of the sixteen rows lie side by side in
// one 64-byte vector, so that one int8 dot-product instruction serves 16 rows x 4 weights against four broadcast activations:
//   vector[t]: row 0 weights 4t..4t+3 | row 1 weights 4t..4t+3 | ... | row 15 weights 4t..4t+3
// A group holds its blocks' quants first (each block a whole number of 64-byte lines), then its blocks' float scales:
//   [quants of block 0][quants of block 1]...[scales of block 0][scales of block 1]...[padding to 64]
#pragma once
#include <cstddef>
#include <cstdint>

namespace edgellm {

constexpr int kRows = 16;     // weight rows of a group
constexpr int kMaxCols = 8;   // activation columns of a tile: with three sums each they fill the 32 registers of AVX-512
constexpr int kLine = 64;     // bytes of a vector of quants, and of a cache line

// Numbered from 0 without gaps: they index tables. `ggml` names are the ones of the file format.
enum Type : int {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    IQ4_NL,
    Q4_K,
    Q5_K,
    Q6_K,
    MXFP4,
    IQ4_XS,
    Q3_K,
    Q2_K,
    IQ3_S,
    IQ3_XXS,
    F16,
    BF16,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    TQ1_0,
    TQ2_0,
    Q1_0,
    kTypes
};

struct TypeInfo {
    const char* name;   // as ggml prints it
    int block;          // weights in a block
    int source_bytes;   // bytes of one row's block in the file
    int quant_bytes;    // bytes of sixteen rows' block: the integer part
    int scale_bytes;    // bytes of sixteen rows' block: the float part
    int sums;           // activation sums kept for each block of activations (see Tile)
    int parts;          // of a block of activations, with a scale each
    int offset;         // added to weights to make them unsigned, which the start of a sum takes off again; 128: they need all eight bits
    int scale_at;       // where the file's block keeps its float16, and how many there are
    int n_scales;
};

constexpr TypeInfo kInfo[kTypes] = {
    {"q4_0", 32, 18, 256, 32, 1, 1, 8, 0, 1},           // nibbles | d
    {"q4_1", 32, 20, 256, 64, 1, 1, 0, 0, 2},           // nibbles | d, m
    {"q5_0", 32, 22, 320, 32, 1, 1, 16, 0, 1},          // nibbles, fifth bits | d
    {"q5_1", 32, 24, 320, 64, 1, 1, 0, 0, 2},           // nibbles, fifth bits | d, m
    {"q8_0", 32, 34, 512, 32, 1, 1, 128, 0, 1},         // bytes, 128 added | d
    {"iq4_nl", 32, 18, 256, 32, 1, 1, 128, 0, 1},       // nibbles that index a table | d
    {"q4_K", 256, 144, 2304, 64, 4, 8, 0, 0, 2},        // nibbles, 8x16 minima as [2][16 rows][4], scales [8][16 rows] | d, dmin
    {"q5_K", 256, 176, 2816, 64, 12, 8, 16, 0, 2},      // the same with eight vectors of fifth bits after the nibbles
    {"q6_K", 256, 210, 3328, 32, 16, 16, 32, 208, 1},   // nibbles, 2-bit parts, signed scales [16][16 rows] | d
    {"mxfp4", 32, 17, 256, 16, 1, 1, 12, 0, 0},         // nibbles that index a table | a byte that is an exponent
    {"iq4_xs", 256, 136, 2176, 32, 8, 8, 128, 0, 1},    // nibbles that index a table, scales [2][16 rows][4] | d
    // The file's words as they are, a vector each. See unpack_parts.h.
    {"q3_K", 256, 110, 1728, 32, 16, 16, 4, 108, 1},    // third bits, 2-bit parts, scales | d
    {"q2_K", 256, 84, 1280, 64, 8, 16, 0, 80, 2},       // scales and minima, 2-bit parts | d, dmin
    {"iq3_s", 256, 110, 1728, 32, 8, 8, 16, 0, 1},      // indices of fours, their ninth bits, signs, scales | d
    {"iq3_xxs", 256, 98, 1536, 32, 8, 8, 128, 0, 1},    // indices of fours, signs and scales | d
    {"f16", 32, 64, 1024, 0, 0, 1, 0, 0, 32},           // [32][16 rows]
    {"bf16", 32, 64, 1024, 0, 0, 1, 0, 0, 0},           // the same
    {"iq2_xxs", 256, 66, 1024, 32, 8, 8, 128, 0, 1},    // indices of eights, signs and scales, by turns | d
    {"iq2_xs", 256, 74, 1152, 32, 16, 16, 128, 0, 1},   // indices of eights with their signs, scales | d
    {"iq2_s", 256, 82, 1280, 32, 16, 16, 128, 0, 1},    // indices of eights, signs, ninth and tenth bits, scales | d
    {"tq1_0", 256, 54, 832, 32, 8, 8, 1, 52, 1},        // five digits of base three a byte, then four | d
    {"tq2_0", 256, 66, 1024, 32, 8, 8, 1, 64, 1},       // 2-bit parts | d
    {"q1_0", 128, 18, 256, 32, 1, 1, 1, 0, 1},          // bits | d
};

constexpr bool is_float(Type type) { return type == F16 || type == BF16; }
// Types whose blocks are unpacked into memory before they are multiplied, whatever the number of columns.
constexpr bool is_staged(Type type) { return type >= IQ4_XS && kInfo[type].block == 256; }
// Activations that share a scale.
constexpr int activation_block(Type type) { return kInfo[type].block == 256 ? 256 : 32; }

// The table of IQ4_NL (the file format's definition), with 128 added so that the entries are unsigned.
constexpr uint8_t kIq4[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};
// That of MXFP4, doubled as its scales are halved, with 12 added.
constexpr uint8_t kMxfp4[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

inline int64_t group_bytes(Type type, int64_t k) {
    const TypeInfo& t = kInfo[type];
    return round_up(k / t.block * (t.quant_bytes + t.scale_bytes), kLine);
}

inline int64_t packed_bytes(Type type, int64_t rows, int64_t k) { return (rows + kRows - 1) / kRows * group_bytes(type, k); }

// Activations of `cols` columns, interleaved so that a kernel walks one pointer:
//   q    [k / 4][cols]          four int8 in an int32; for F16 and BF16 the floats, [k][cols], and nothing else
//   d    [blocks][cols]         the float that turns the int8 back
//   sum  [blocks][sums][cols]   per type:
//        types with an offset: int32, of each part, minus the offset times the sum of the int8: where a sum starts
//        Q4_1, Q5_1: float, d times the sum of the int8
//        Q4_K, Q5_K, Q2_K: sums s of each part as s = 64 hi + lo, four int8 in an int32: [lo 0-3][hi 0-3][lo 4-7][hi 4-7]...;
//        Q5_K then has, of each 32, what a narrow sum starts at (offset 16)
struct Tile {
    int cols;
    int32_t* q;
    float* d;
    int32_t* sum;
};

constexpr int64_t activation_words(Type type, int64_t k) { return is_float(type) ? k : k / 4; }

inline int64_t tile_bytes(Type type, int64_t k, int cols) {
    return round_up((activation_words(type, k) + k / activation_block(type) * (1 + kInfo[type].sums)) * 4 * cols, kLine);
}

inline Tile tile_at(void* memory, Type type, int64_t k, int cols) {
    Tile tile;
    tile.cols = cols;
    tile.q = static_cast<int32_t*>(memory);
    tile.d = reinterpret_cast<float*>(tile.q + activation_words(type, k) * cols);
    tile.sum = reinterpret_cast<int32_t*>(tile.d + k / activation_block(type) * cols);
    return tile;
}

// A group's weights as a dot product takes them, a byte each in the order of the products, for many tiles to share:
//   vectors  [k / block][n_vectors][16 rows][4]   Q2_K: 64 of weights, then its minima
//   factors  [k / block][n_factors][16 rows]      the whole scales of a block's parts, times d where the type is staged; Q2_K: then dmin
struct Unpacked {
    const uint8_t* vectors;
    const float* factors;
    bool filled;   // or there are none
};
constexpr int n_vectors(Type type) { return kInfo[type].block / 4 + (type == Q2_K ? 4 : 0); }
constexpr int n_factors(Type type) { return kInfo[type].block != 256 ? 0 : kInfo[type].parts + (type == Q2_K ? 1 : 0); }
inline int64_t vector_bytes(Type type, int64_t k) { return k / kInfo[type].block * n_vectors(type) * kLine; }
inline int64_t unpacked_bytes(Type type, int64_t k) { return vector_bytes(type, k) + k / kInfo[type].block * n_factors(type) * kRows * 4; }

// One group of sixteen rows times one tile: y[c * stride + r] for r < rows. `ready` is read by the kernels of unpacked weights, and by those
// of staged types where it is filled.
using GroupKernel = void (*)(const uint8_t* group, const Unpacked& ready, int64_t k, const Tile& tile, float* y, int64_t stride, int rows);
using Unpack = void (*)(const uint8_t* group, int64_t k, uint8_t* vectors, float* factors);
// Blocks [first, last) of one row of activations into column `c` of a tile.
using Quantize = void (*)(Type type, const float* x, int64_t first, int64_t last, const Tile& tile, int c);

// Attention of `n` queries over one cache, which `n_heads / n_cache_heads` heads share. Strides in bytes.
enum class CellType { f32, f16, q8_0 };
constexpr int kMaxHead = 256;   // floats of a head
struct Attention {
    int64_t n, n_heads, n_cache_heads, n_cells, d, dv;
    const char* q;   // float32
    int64_t q_row, q_head;
    CellType k_type, v_type;
    const char* k;
    int64_t k_cell, k_head;
    const char* v;
    int64_t v_cell, v_head;
    const char* mask;   // float16, added to the scores: [query][cell]; nullptr: every query sees every cell
    int64_t mask_row;
    float scale;
    float* out;   // [query][head][dv]
    // Where the cells lie: the first of the text, the second and so on; below 0 one that nobody sees. nullptr: one behind the other.
    const int32_t* places = nullptr;
    const float* sinks = nullptr;   // [head]: a score of a cell without a value, which every query sees
};
inline bool can_attend(const Attention& a) {
    auto whole = [](CellType type, int64_t d, int unit) { return d % (type == CellType::q8_0 ? 32 : unit) == 0 && d <= kMaxHead; };
    return whole(a.k_type, a.d, 8) && whole(a.v_type, a.dv, 16) && a.n_heads % a.n_cache_heads == 0;
}

// Columns of floats: activations.
struct Columns {
    const float* x;
    int64_t n[3];        // columns along each outer axis
    int64_t stride[3];   // bytes
};
inline const float* column(const Columns& x, int64_t i) {
    const int64_t at = i % x.n[0] * x.stride[0] + i / x.n[0] % x.n[1] * x.stride[1] + i / (x.n[0] * x.n[1]) * x.stride[2];
    return reinterpret_cast<const float*>(reinterpret_cast<const char*>(x.x) + at);
}

// A product with a matrix as files have it, of an adapter: y[column][row].
enum class Plain { f32, f16, bf16, q8_0 };
struct Thin {
    Plain type;
    const uint8_t* w;
    int64_t w_row;   // bytes
    int64_t rows, k;
    Columns x;
    float* y;
    int64_t y_stride;
};

struct Variant {
    const char* name;
    bool (*runs_here)();   // asks the CPU
    Quantize quantize;
    GroupKernel kernel[kTypes][kMaxCols];                   // [type][cols - 1]
    int64_t wide_from[kTypes];                              // columns from which weights are unpacked once for all of them
    Unpack unpack[kTypes];                                  // nullptr for a type that gains nothing
    GroupKernel ready[kTypes];                              // of unpacked weights and kMaxCols columns
    double (*peak)(int64_t rounds);                         // multiply-adds done by `rounds` rounds of the bare dot-product instruction
    void (*read)(const uint8_t* from, int64_t n_bytes);     // does nothing but read
    void (*attend)(const Attention& a, int ith, int nth);   // the share of one thread
    void (*thin)(const Thin& t, int ith, int nth);          // likewise
};

extern const Variant* const kVariants[];         // best first, ends with nullptr
const Variant* find_variant(const char* name);   // "auto": the best that runs here; nullptr when there is none

void pack(Type type, const void* source, int64_t rows, int64_t k, void* packed, int n_threads);

// Rows [ith/nth) of y = W x, for n columns; `work` holds work_bytes(). `barrier` joins all the threads of this call.
int64_t work_bytes(const Variant& variant, Type type, int64_t k, int64_t n, int n_threads);
void matmul(const Variant& variant, Type type, const void* packed, int64_t rows, int64_t k, const Columns& x, float* y, int64_t y_stride, void* work,
            int ith, int nth, void (*barrier)(void*), void* barrier_argument);

}   // namespace edgellm
