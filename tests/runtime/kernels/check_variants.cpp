// Every variant that runs here against the generic one, bit for bit, over odd shapes; for sanitizers and for emulated CPUs.
#include <atomic>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "layout.h"

using namespace edgellm;

namespace {

struct Barrier {
    std::atomic<int> waiting{0}, round{0};
    static void wait(void* self) {
        Barrier& b = *static_cast<Barrier*>(self);
        const int round = b.round.load();
        if (b.waiting.fetch_add(1) == 1) b.waiting.store(0), b.round.fetch_add(1);
        else
            while (b.round.load() == round) std::this_thread::yield();
    }
};

std::vector<float> multiply(const Variant& v, Type type, const std::vector<uint8_t>& packed, int64_t rows, int64_t k, const std::vector<float>& x,
                            int64_t n) {
    std::vector<float> y(static_cast<size_t>(rows * n), -1);
    std::vector<char> work(static_cast<size_t>(work_bytes(type, k, n, 2)));   // exactly as much as is asked for
    const Columns columns = {x.data(), {n, 1, 1}, {k * 4, n * k * 4, n * k * 4}};
    Barrier barrier;
    auto share = [&](int ith) { matmul(v, type, packed.data(), rows, k, columns, y.data(), rows, work.data(), ith, 2, Barrier::wait, &barrier); };
    std::thread other(share, 1);
    share(0);
    other.join();
    return y;
}

}  // namespace

int main() {
    std::mt19937 random(1);
    int n_checked = 0, n_wrong = 0;
    const int64_t shapes[][3] = {{1, 1, 1}, {16, 1, 0}, {17, 2, 17}, {31, 3, 4}, {40, 1, 8}, {5, 1, 300}, {64, 5, 2},
                                {17, 1, 0}, {15, 1, 1}, {33, 1, 17}, {3, 1, 4096}};   // rows, blocks, n
    for (int t = 0; t < kTypes; t++) {
        const Type type = static_cast<Type>(t);
        for (const auto& shape : shapes) {
            const int64_t rows = shape[0], k = shape[1] * kInfo[t].block, n = shape[2];
            std::vector<uint8_t> raw(static_cast<size_t>(rows * shape[1] * kInfo[t].source_bytes));
            for (uint8_t& byte : raw) byte = static_cast<uint8_t>(random());
            for (int64_t b = 0; b < rows * shape[1]; b++) {   // the float scales: anything finite
                uint8_t* block = raw.data() + b * kInfo[t].source_bytes;
                for (int at : {type == Q6_K ? 208 : 0, 2}) block[at + 1] &= at == 2 && type == Q6_K ? 0xff : 0x3f;
            }
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
