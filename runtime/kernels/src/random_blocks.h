// Blocks of a file's weights: any bits, and scales between 1/16 and 1 in size. For tests, on their own and of the engine's library.
#pragma once
#include <cstring>

#include "layout.h"

namespace edgellm {

// `next()` gives 32 random bits.
template <class Next>
void random_blocks(Type type, int64_t n, Next&& next, uint8_t* out) {
    const TypeInfo& t = kInfo[type];
    for (int64_t b = 0; b < n; b++, out += t.source_bytes) {
        for (int i = 0; i < t.source_bytes; i++) out[i] = static_cast<uint8_t>(next() >> 8);
        for (int i = 0; i < t.n_scales; i++) {
            const uint32_t bits = next() >> 8;
            const uint16_t half = static_cast<uint16_t>((bits & 0x83ff) | (0x2c00 + (bits >> 10 & 3) * 0x400));
            std::memcpy(out + t.scale_at + 2 * i, &half, 2);
        }
        if (type == MXFP4) out[0] = static_cast<uint8_t>(120 + out[0] % 8);
        for (int i = 0; type == BF16 && i < 32; i++) out[2 * i + 1] = static_cast<uint8_t>((out[2 * i + 1] & 0x80) | 0x3e);
    }
}

}   // namespace edgellm
