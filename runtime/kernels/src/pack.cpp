// From the file's rows to groups of sixteen: mostly a transpose of 4-byte words. Runs once, at load.
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#include "layout.h"

namespace edgellm {
namespace {

using Bytes = const uint8_t*;

// Four-byte words `first`..`first + n` of each of the rows' blocks become n vectors. Rows beyond the matrix are zero.
inline uint8_t* interleave(uint8_t* out, const Bytes (&row)[kRows], int rows, int offset, int n) {
    for (int t = 0; t < n; t++, out += kLine) {
        for (int r = 0; r < rows; r++) std::memcpy(out + 4 * r, row[r] + offset + 4 * t, 4);
        if (rows < kRows) std::memset(out + 4 * rows, 0, 4 * (kRows - rows));
    }
    return out;
}

inline void half(uint8_t* out, const Bytes (&row)[kRows], int rows, int offset) {
    for (int r = 0; r < kRows; r++) {
        if (r < rows) std::memcpy(out + 2 * r, row[r] + offset, 2);
        else std::memset(out + 2 * r, 0, 2);
    }
}

// Fifth bits: bit e of the file's word belongs to weight e; packed, bit t of byte i belongs to weight 4t + i.
inline uint32_t spread_fifth_bits(uint32_t bits) {
    uint32_t out = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t b = (bits >> i) & 0x11111111u;   // bit 4t -> bit t
        b = (b | b >> 3) & 0x03030303u;
        b = (b | b >> 6) & 0x000f000fu;
        b = (b | b >> 12) & 0xffu;
        out |= b << (8 * i);
    }
    return out;
}

void pack_block32(Type type, const Bytes (&row)[kRows], int rows, uint8_t* quants, uint8_t* scales) {
    const bool has_min = type == Q4_1 || type == Q5_1, has_fifth = type == Q5_0 || type == Q5_1;
    if (type == MXFP4) {
        for (int r = 0; r < kRows; r++) scales[r] = r < rows ? row[r][0] : 0;
    } else {
        half(scales, row, rows, 0);
    }
    if (has_min) half(scales + 32, row, rows, 2);
    int offset = type == MXFP4 ? 1 : has_min ? 4 : 2;
    uint8_t* fifth = quants + 256;
    if (has_fifth) {
        for (int r = 0; r < kRows; r++) {
            uint32_t bits = 0;
            if (r < rows) std::memcpy(&bits, row[r] + offset, 4);
            bits = spread_fifth_bits(bits);
            std::memcpy(fifth + 4 * r, &bits, 4);
        }
        offset += 4;
    }
    uint8_t* end = interleave(quants, row, rows, offset, type == Q8_0 ? 8 : 4);
    if (type == Q8_0) {
        for (uint8_t* p = quants; p < end; p++) *p ^= 0x80;   // int8 + 128
    }
}

// The 6-bit scales and minima of Q4_K and Q5_K: bytes 0-3 hold scales 0-3, 4-7 minima 0-3, their top bits those of 4-7 in 8-11.
inline void unpack_scales(Bytes s, uint8_t (&scale)[8], uint8_t (&min)[8]) {
    for (int j = 0; j < 4; j++) {
        scale[j] = s[j] & 63;
        min[j] = s[4 + j] & 63;
        scale[4 + j] = (s[8 + j] & 15) | (s[j] >> 6 << 4);
        min[4 + j] = (s[8 + j] >> 4) | (s[4 + j] >> 6 << 4);
    }
}

void pack_q45k(bool has_fifth, const Bytes (&row)[kRows], int rows, uint8_t* quants, uint8_t* scales) {
    half(scales, row, rows, 0);
    half(scales + 32, row, rows, 2);
    uint8_t* out = interleave(quants, row, rows, has_fifth ? 48 : 16, 32);
    if (has_fifth) out = interleave(out, row, rows, 16, 8);
    uint8_t* min_out = out;
    uint8_t* scale_out = out + 128;
    std::memset(out, 0, 256);
    for (int r = 0; r < rows; r++) {
        uint8_t scale[8], min[8];
        unpack_scales(row[r] + 4, scale, min);
        for (int j = 0; j < 8; j++) {
            scale_out[16 * j + r] = scale[j];
            min_out[64 * (j / 4) + 4 * r + j % 4] = min[j];
        }
    }
}

void pack_q6k(const Bytes (&row)[kRows], int rows, uint8_t* quants, uint8_t* scales) {
    half(scales, row, rows, 208);
    uint8_t* out = interleave(quants, row, rows, 0, 32);
    out = interleave(out, row, rows, 128, 16);
    for (int j = 0; j < 16; j++) {
        for (int r = 0; r < kRows; r++) out[16 * j + r] = r < rows ? row[r][192 + j] : 0;
    }
}

// The nibbles, then the scales, six bits each, as bytes: low nibbles of two scales in a byte of the file, high pairs of bits in a word.
void pack_iq4_xs(const Bytes (&row)[kRows], int rows, uint8_t* quants, uint8_t* scales) {
    half(scales, row, rows, 0);
    uint8_t* out = interleave(quants, row, rows, 8, 32);
    std::memset(out, 0, 2 * kLine);
    for (int r = 0; r < rows; r++) {
        for (int j = 0; j < 8; j++) {
            const int low = row[r][4 + j / 2] >> 4 * (j % 2) & 15, high = row[r][2 + j / 4] >> 2 * (j % 4) & 3;
            out[j / 4 * kLine + 4 * r + j % 4] = static_cast<uint8_t>(low | high << 4);
        }
    }
}

// The file's words as they are. `d`: where the float scale lies, before the words or behind them.
void pack_words(Type type, const Bytes (&row)[kRows], int rows, uint8_t* quants, uint8_t* scales) {
    const int n_bytes = kInfo[type].quant_bytes / kRows, d = kInfo[type].scale_at;
    half(scales, row, rows, d);
    if (type == Q2_K) half(scales + 32, row, rows, d + 2);
    interleave(quants, row, rows, d == 0 ? 2 : 0, n_bytes / 4);
}

void pack_halves(const Bytes (&row)[kRows], int rows, uint8_t* out) {
    for (int i = 0; i < 32; i++) half(out + 2 * kRows * i, row, rows, 2 * i);
}

void pack_group(Type type, Bytes source, int64_t source_row_bytes, int rows, int64_t k, uint8_t* group) {
    const TypeInfo& t = kInfo[type];
    const int64_t n_blocks = k / t.block;
    uint8_t* scales = group + n_blocks * t.quant_bytes;
    for (int64_t b = 0; b < n_blocks; b++) {
        Bytes row[kRows] = {};
        for (int r = 0; r < rows; r++) row[r] = source + r * source_row_bytes + b * t.source_bytes;
        uint8_t* quants = group + b * t.quant_bytes;
        if (type == Q6_K) pack_q6k(row, rows, quants, scales);
        else if (is_float(type)) pack_halves(row, rows, quants);
        else if (type == IQ4_XS) pack_iq4_xs(row, rows, quants, scales);
        else if (is_staged(type)) pack_words(type, row, rows, quants, scales);
        else if (t.block == 256) pack_q45k(type == Q5_K, row, rows, quants, scales);
        else pack_block32(type, row, rows, quants, scales);
        scales += t.scale_bytes;
    }
    std::memset(scales, 0, group + group_bytes(type, k) - scales);
}

}   // namespace

void pack(Type type, const void* source, int64_t rows, int64_t k, void* packed, int n_threads) {
    const int64_t n_groups = (rows + kRows - 1) / kRows, stride = group_bytes(type, k);
    const int64_t row_bytes = k / kInfo[type].block * kInfo[type].source_bytes;
    auto share = [&](int ith, int nth) {
        for (int64_t g = n_groups * ith / nth; g < n_groups * (ith + 1) / nth; g++) {
            const int64_t left = rows - g * kRows;
            pack_group(type, static_cast<Bytes>(source) + g * kRows * row_bytes, row_bytes, left < kRows ? static_cast<int>(left) : kRows, k,
                       static_cast<uint8_t*>(packed) + g * stride);
        }
    };
    if (rows * row_bytes < (1 << 20)) n_threads = 1;   // starting a thread costs more than that
    if (n_threads < 1) n_threads = 1;
    std::vector<std::thread> threads;
    int started = 1;
    try {
        for (; started < n_threads; started++) threads.emplace_back(share, started, n_threads);
    } catch (const std::system_error&) {   // no more threads to be had: their shares are done here
    }
    share(0, n_threads);
    for (int i = started; i < n_threads; i++) share(i, n_threads);
    for (std::thread& thread : threads) thread.join();
}

}   // namespace edgellm
