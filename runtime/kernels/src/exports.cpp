// What load.py calls through ctypes.
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "cpu.h"
#include "join.h"
#include "layout.h"
#include "plugin.h"

#if defined(_WIN32)
#define EDGELLM_EXPORT extern "C" __declspec(dllexport)
#else
#define EDGELLM_EXPORT extern "C" __attribute__((visibility("default")))
#endif

using namespace edgellm;

namespace {

template <class Work>
void on_threads(int n, Work&& work) {
    std::vector<std::thread> threads;
    for (int i = 1; i < n; i++) threads.emplace_back(work, i);
    work(0);
    for (std::thread& thread : threads) thread.join();
}

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Seconds of the fastest of `n` rounds of work(thread, round, meeting) that `n_threads` threads begin and end together.
template <class Work>
double fastest_s(int n_threads, int64_t n, Work&& work) {
    double best = 1e30;
    Meeting meeting = {&best, n_threads};
    on_threads(n_threads, [&](int ith) {
        for (int64_t i = 0; i < n; i++) {
            join(&meeting);
            const double start = now_s();
            work(ith, i, meeting);
            join(&meeting);
            const double took = now_s() - start;
            if (ith == 0 && took < best) best = took;
        }
    });
    return best;
}

}   // namespace

// Name of the i-th variant, best first; nullptr behind the last.
EDGELLM_EXPORT const char* edgellm_variant(int i) { return kVariants[i] ? kVariants[i]->name : nullptr; }
EDGELLM_EXPORT int edgellm_variant_runs_here(int i) { return kVariants[i]->runs_here(); }
// Instruction sets, in the order of Feature; nullptr behind the last.
EDGELLM_EXPORT const char* edgellm_feature(int i) {
    constexpr const char* names[] = {"AVX2", "AVX-VNNI", "AVX512-VNNI", "NEON dotprod", "NEON i8mm", nullptr};
    return names[i];
}
EDGELLM_EXPORT int edgellm_has_feature(int i) { return cpu_has(static_cast<Feature>(i)); }
EDGELLM_EXPORT const char* edgellm_type(int i) { return i < kTypes ? kInfo[i].name : nullptr; }

// Writes what stands in the way, "" when the kernels are in place. `alone`: without the engine's own extra buffer types.
EDGELLM_EXPORT void edgellm_plug_in(const char* name, const char* base_path, const char* cpu_path, int alone, char* problem, int size) {
    const Variant* variant = find_variant(name);
    std::string text = "no such variant for this CPU";
    if (variant && variant->runs_here()) {
        try {
            text = install_plugin(*variant, base_path, cpu_path, alone != 0);
        } catch (const std::exception& error) {
            text = error.what();
        }
    }
    if (size > 0) std::strncpy(problem, text.c_str(), static_cast<size_t>(size) - 1)[size - 1] = 0;
}

// llama_decode, and llama_synchronize behind it, where a driver may throw: what it says is written to `what`, and -1000 returned.
// `batch` is a llama_batch, which is handed over by value; `batch_bytes` says whether it is the one that is known here.
EDGELLM_EXPORT int edgellm_pass(void* decode, void* synchronize, void* context, const void* batch, int batch_bytes, char* what, int size) {
    struct Batch {
        int32_t n_tokens;
        void *token, *embd, *pos, *n_seq_id, *seq_id, *logits;
    };
    if (size > 0) what[0] = 0;
    if (batch_bytes != static_cast<int>(sizeof(Batch))) return -1001;
    try {
        const int status = reinterpret_cast<int32_t (*)(void*, Batch)>(decode)(context, *static_cast<const Batch*>(batch));
        reinterpret_cast<void (*)(void*)>(synchronize)(context);
        return status;
    } catch (const std::exception& error) {
        if (size > 0) std::strncpy(what, error.what(), static_cast<size_t>(size) - 1)[size - 1] = 0;
    } catch (...) {
        if (size > 0) std::strncpy(what, "for a reason it does not tell", static_cast<size_t>(size) - 1)[size - 1] = 0;
    }
    return -1000;
}

EDGELLM_EXPORT int edgellm_lend_memory() { return lend_memory(); }

// Several ids in one context (sequences.h): made, told of the pass that comes, and freed. One pass at a time in the process may be
// over several sequences; `edgellm_sequences_tell` with n = 0 ends it.
EDGELLM_EXPORT Sequences* edgellm_sequences_new() { return new Sequences(); }
EDGELLM_EXPORT void edgellm_sequences_free(Sequences* sequences) { delete sequences; }
EDGELLM_EXPORT void edgellm_sequences_tell(Sequences* sequences, int64_t n, const int32_t* ids, const int32_t* positions) {
    if (n > 0) sequences->tell(n, ids, positions);
    use_sequences(n > 0 ? sequences : nullptr);
}
EDGELLM_EXPORT void edgellm_sequences_copy(Sequences* sequences, int from, int to, int64_t n) { sequences->copy(from, to, n); }
// Positions [first, first + n) came from elsewhere, in the order of their cells; the next pass is over the token behind them.
EDGELLM_EXPORT void edgellm_sequences_restore(Sequences* sequences, int sequence, int64_t first, int64_t n, const int32_t* by_cell) {
    sequences->restore(sequence, first, n, by_cell);
}
EDGELLM_EXPORT int edgellm_sequences_end_restore(Sequences* sequences) { return sequences->end_restore(); }

EDGELLM_EXPORT int64_t edgellm_packed_bytes(int type, int64_t rows, int64_t k) { return packed_bytes(static_cast<Type>(type), rows, k); }

EDGELLM_EXPORT void edgellm_pack(int type, const void* source, int64_t rows, int64_t k, void* packed, int n_threads) {
    pack(static_cast<Type>(type), source, rows, k, packed, n_threads);
}

// y (n, rows) = x (n, k) W^T, `repeat` times for each of `n_copies` packed matrices that lie behind each other and are taken in
// turn, so that none is still in a cache. Returns the seconds of the fastest product, negative for an unknown variant.
EDGELLM_EXPORT double edgellm_matmul(const char* name, int type, const void* packed, int64_t n_copies, int64_t rows, int64_t k, const float* x,
                                     int64_t n, float* y, int n_threads, int repeat) {
    const Variant* variant = find_variant(name);
    if (!variant || !variant->runs_here()) return -1;
    const Type t = static_cast<Type>(type);
    std::vector<char> work(static_cast<size_t>(work_bytes(*variant, t, k, n, n_threads)));
    const Columns columns = {x, {n, 1, 1}, {k * 4, n * k * 4, n * k * 4}};
    const int64_t step = packed_bytes(t, rows, k);
    return fastest_s(n_threads, repeat * n_copies, [&](int ith, int64_t i, Meeting& meeting) {
        matmul(*variant, t, static_cast<const char*>(packed) + i % n_copies * step, rows, k, columns, y, rows, work.data(), ith, n_threads, join,
               &meeting);
    });
}

// Attention of q (n, n_heads, d) over k and v (n_cells, n_cache_heads, d) of cell type `type` (0 float32, 1 float16, 2 q8_0) with a
// float16 mask (n, n_cells) or none, and a sink for each head or none, into y (n, n_heads, d), `repeat` times. Returns the seconds of
// the fastest, negative where it cannot be.
EDGELLM_EXPORT double edgellm_attend(const char* name, int type, const float* q, const void* k, const void* v, const void* mask, int64_t n,
                                     int64_t n_heads, int64_t n_cache_heads, int64_t n_cells, int64_t d, float scale, float* y, int n_threads,
                                     int repeat, const float* sinks) {
    const Variant* variant = find_variant(name);
    if (!variant || !variant->runs_here()) return -1;
    const CellType cell = static_cast<CellType>(type);
    const int64_t row = cell == CellType::f32 ? d * 4 : cell == CellType::f16 ? d * 2 : d / 32 * 34;
    // clang-format off
    const Attention attention = {n, n_heads, n_cache_heads, n_cells, d, d,
                                 reinterpret_cast<const char*>(q), n_heads * d * 4, d * 4, cell, cell,
                                 static_cast<const char*>(k), n_cache_heads * row, row,
                                 static_cast<const char*>(v), n_cache_heads * row, row,
                                 static_cast<const char*>(mask), n_cells * 2, scale, y, nullptr, sinks};
    // clang-format on
    if (!can_attend(attention)) return -1;
    return fastest_s(n_threads, repeat, [&](int ith, int64_t, Meeting&) { variant->attend(attention, ith, n_threads); });
}

// y (n, rows) = x (n, k) W^T for an adapter's matrix of type `type` (0 float32, 1 float16, 2 bfloat16, 3 q8_0), `repeat` times.
// Returns the seconds of the fastest, negative for an unknown variant.
EDGELLM_EXPORT double edgellm_thin(const char* name, int type, const void* w, int64_t rows, int64_t k, const float* x, int64_t n, float* y,
                                   int n_threads, int repeat) {
    const Variant* variant = find_variant(name);
    if (!variant || !variant->runs_here()) return -1;
    const Plain plain = static_cast<Plain>(type);
    const int64_t row = plain == Plain::f32 ? k * 4 : plain == Plain::q8_0 ? k / 32 * 34 : k * 2;
    const Thin product = {plain, static_cast<const uint8_t*>(w), row, rows, k, {x, {n, 1, 1}, {k * 4, n * k * 4, n * k * 4}}, y, rows};
    return fastest_s(n_threads, repeat, [&](int ith, int64_t, Meeting&) { variant->thin(product, ith, n_threads); });
}

// Multiply-adds a second of the variant's dot-product instruction on `n_threads` threads: the sum of their best moments.
EDGELLM_EXPORT double edgellm_peak(const char* name, int n_threads, double seconds) {
    const Variant* variant = find_variant(name);
    if (!variant || !variant->runs_here()) return 0;
    std::vector<double> best(static_cast<size_t>(n_threads), 0.0);
    const double end = now_s() + seconds;
    on_threads(n_threads, [&](int ith) {
        double& mine = best[static_cast<size_t>(ith)];
        for (double start = now_s(); start < end; start = now_s()) {
            const double done = variant->peak(10000), rate = done / (now_s() - start);
            if (rate > mine) mine = rate;
        }
    });
    double total = 0;
    for (double rate : best) total += rate;
    return total;
}

// Bytes a second that `n_threads` threads read from `n_bytes` of memory, the best of `repeat` passes.
EDGELLM_EXPORT double edgellm_bandwidth(const char* name, int64_t n_bytes, int n_threads, int repeat) {
    const Variant* variant = find_variant(name);
    if (!variant || !variant->runs_here()) return 0;
    std::vector<char> memory(static_cast<size_t>(n_bytes), 1);
    return static_cast<double>(n_bytes) / fastest_s(n_threads, repeat, [&](int ith, int64_t, Meeting&) {
               variant->read(reinterpret_cast<const uint8_t*>(memory.data()) + n_bytes / n_threads * ith, n_bytes / n_threads);
           });
}
