// Activations to the int8 that the dot products take. Part of kernels.h.

// Rounds to the nearest integer, ties to even, as the addition does: the same on every machine and easy on the vectoriser.
EDGELLM_INLINE int32_t nearest(float x) {
    const float shifted = x + 12582912.0f;   // 1.5 * 2^23
    uint32_t bits;
    std::memcpy(&bits, &shifted, 4);
    return static_cast<int32_t>(bits - 0x4b400000u);
}

// Minus the offset times the sums of the first and of the last two of each of `n` fours: two int16, the first below.
EDGELLM_INLINE int32_t start_pair(const int8_t* q, int n, int offset) {
    int32_t first = 0, last = 0;
    for (int i = 0; i < n; i++) first += q[4 * i] + q[4 * i + 1], last += q[4 * i + 2] + q[4 * i + 3];
    return static_cast<int32_t>((static_cast<uint32_t>(-first * offset) & 0xffffu) | static_cast<uint32_t>(-last * offset) << 16);
}

// Blocks [first, last) of one row of activations to int8 with one float a block: d = max|x| / 127.
template <int kBlock, bool kNarrow>
EDGELLM_INLINE void quantize_blocks(Type type, const float* x, int64_t first, int64_t last, const Tile& tile, int c) {
    const int cols = tile.cols;
    for (int64_t b = first; b < last; b++) {
        const float* from = x + b * kBlock;
        uint32_t top = 0;   // of non-negative floats the order is that of their bits
        for (int i = 0; i < kBlock; i++) {
            uint32_t magnitude;
            std::memcpy(&magnitude, from + i, 4);   // one by one: a copy of the block would be read back before it is written
            magnitude &= 0x7fffffffu;
            top = top > magnitude ? top : magnitude;
        }
        float largest;
        std::memcpy(&largest, &top, 4);
        const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
        alignas(64) int8_t q[kBlock];
        for (int i = 0; i < kBlock; i++) q[i] = static_cast<int8_t>(nearest(from[i] * inverse));
        const float d = largest / 127.0f;
        tile.d[b * cols + c] = d;
        int32_t* out = tile.q + b * (kBlock / 4) * cols + c;
        for (int i = 0; i < kBlock / 4; i++) std::memcpy(out + i * cols, q + 4 * i, 4);
        int32_t* sums = tile.sum + b * kInfo[type].sums * cols + c;
        if constexpr (kBlock == 32) {
            int32_t sum = 0;
            for (int i = 0; i < 32; i++) sum += q[i];
            const float product = d * static_cast<float>(sum);
            const int offset = kInfo[type].offset;
            const int32_t start = kNarrow && offset < 128 ? start_pair(q, 8, offset) : -sum * offset;
            if (type == Q4_1 || type == Q5_1) std::memcpy(sums, &product, 4);
            else *sums = start;
        } else {
            int32_t sum16[16];
            for (int j = 0; j < 16; j++) {
                sum16[j] = 0;
                for (int i = 0; i < 16; i++) sum16[j] += q[16 * j + i];
            }
            const int n_parts = kInfo[type].parts, each = 16 / n_parts, offset = kInfo[type].offset;
            auto sum_of = [&](int j) { return each == 1 ? sum16[j] : sum16[2 * j] + sum16[2 * j + 1]; };
            auto start_of = [&](int j) { return start_pair(q + 16 * each * j, 4 * each, offset); };
            if (type == Q4_K || type == Q5_K || type == Q2_K) {
                int8_t split[32];   // [lo 0-3][hi 0-3][lo 4-7][hi 4-7]...
                for (int j = 0; j < n_parts; j++) {
                    const int32_t sum = sum_of(j);
                    split[j / 4 * 8 + j % 4] = static_cast<int8_t>(sum & 63);
                    split[j / 4 * 8 + 4 + j % 4] = static_cast<int8_t>((sum - (sum & 63)) / 64);
                }
                for (int i = 0; i < n_parts / 2; i++) std::memcpy(sums + i * cols, split + 4 * i, 4);
                if (type == Q5_K && kNarrow) {
                    for (int j = 0; j < 8; j++) sums[(4 + j) * cols] = start_of(j);
                }
            } else {
                for (int j = 0; j < n_parts; j++) sums[j * cols] = kNarrow && offset < 128 ? start_of(j) : -offset * sum_of(j);
            }
        }
    }
}

template <class S>
void quantize(Type type, const float* x, int64_t first, int64_t last, const Tile& tile, int c) {
    if (is_float(type)) {
        int32_t* out = tile.q + c;
        for (int64_t i = 32 * first; i < 32 * last; i++) std::memcpy(out + i * tile.cols, x + i, 4);
        return;
    }
    if (activation_block(type) == 32) quantize_blocks<32, S::kNarrow>(type, x, first, last, tile, c);
    else quantize_blocks<256, S::kNarrow>(type, x, first, last, tile, c);
}
