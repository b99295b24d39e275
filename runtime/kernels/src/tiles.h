// How columns become tiles, and how many unpacked groups of weights a thread keeps: of one matrix or of several experts.
#pragma once
#include "layout.h"

namespace edgellm {

// Up to this many activations each thread converts all of them for itself, which is faster than to wait for the others.
constexpr int64_t kAlone = 16384;
// Unpacked weights that are kept in the second-level cache while all the tiles pass: of one group at least.
constexpr int64_t kReadyBytes = 512 * 1024;

inline int64_t n_tiles(int64_t n) { return (n + kMaxCols - 1) / kMaxCols; }
inline int64_t n_ready_groups(Type type, int64_t k) {
    const int64_t n = kReadyBytes / unpacked_bytes(type, k);
    return n > 1 ? n : 1;
}
inline int64_t ready_bytes(Type type, int64_t k) { return round_up(n_ready_groups(type, k) * unpacked_bytes(type, k), kLine); }

}   // namespace edgellm
