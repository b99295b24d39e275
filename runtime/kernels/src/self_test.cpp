#include "self_test.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "engine.h"
#include "random_blocks.h"

namespace edgellm {

using namespace ggml;

namespace {

constexpr int64_t kUsed = 3, kExperts = 5;   // of a mixture: columns of a token, and who can be chosen
enum class Kind { plain, adapter, experts };

// Weights of random numbers; of a type that is no plain one, blocks of random bits: not every type can be quantised without statistics.
std::vector<uint8_t> weights_of(int type, int64_t rows, int64_t k, size_t n_bytes) {
    uint32_t state = 12345;
    auto next = [&] { return state = state * 1664525u + 1013904223u; };
    std::vector<uint8_t> bytes(n_bytes);
    for (int t = 0; t < kTypes; t++) {
        if (engine.type_of[t] == type && type != kQ8_0 && !is_float(static_cast<Type>(t))) {
            random_blocks(static_cast<Type>(t), rows * k / kInfo[t].block, next, bytes.data());
            return bytes;
        }
    }
    std::vector<float> w(static_cast<size_t>(rows * k));
    for (float& v : w) v = static_cast<float>(next() >> 8) / (1 << 23) - 1.0f;
    engine.quantize_chunk(type, w.data(), bytes.data(), 0, rows, k, nullptr);
    return bytes;
}

// One product of random numbers through ggml, with the weights in buffers of `where`.
bool product(BufferType* where, int type, int64_t rows, int64_t k, int64_t n, std::vector<float>* y, Kind kind = Kind::plain) {
    const bool mixed = kind == Kind::experts;
    const int64_t n_experts = mixed ? kExperts : 1, n_used = mixed ? kUsed : 1;
    uint32_t state = 6789;
    std::vector<float> x(static_cast<size_t>(n * n_used * k));
    for (float& v : x) v = static_cast<float>((state = state * 1664525u + 1013904223u) >> 8) / (1 << 23) - 1.0f;
    void* weights = engine.init({4096, nullptr, true});
    void* rest = engine.init({1 << 20, nullptr, true});
    void* backend = engine.cpu_init();
    Buffer *weight_buffer = nullptr, *rest_buffer = nullptr;
    bool done = false;
    if (weights && rest && backend) {
        engine.cpu_set_n_threads(backend, where == engine.cpu_buffer_type() && kind != Kind::adapter ? 1 : 2);   // two where it is ours
        Tensor* a = engine.new_tensor_3d(weights, type, k, rows, n_experts);
        Tensor* b = mixed ? engine.new_tensor_3d(rest, kF32, k, n_used, n) : engine.new_tensor_2d(rest, kF32, k, n);
        Tensor* ids = mixed ? engine.new_tensor_2d(rest, kI32, n_used, n) : nullptr;
        if (kind == Kind::adapter) std::strcpy(a->name, "w.lora_a");
        weight_buffer = engine.alloc_ctx_tensors_from_buft(weights, where);
        Tensor* c = mixed ? engine.mul_mat_id(rest, a, b, ids) : engine.mul_mat(rest, a, b);
        rest_buffer = engine.alloc_ctx_tensors_from_buft(rest, engine.cpu_buffer_type());
        if (weight_buffer && rest_buffer) {
            const std::vector<uint8_t> bytes = weights_of(type, rows * n_experts, k, engine.nbytes(a));
            engine.tensor_set(a, bytes.data(), 0, bytes.size());
            engine.tensor_set(b, x.data(), 0, x.size() * sizeof(float));
            std::vector<int32_t> chosen(static_cast<size_t>(n * n_used));
            for (size_t i = 0; i < chosen.size(); i++) chosen[i] = static_cast<int32_t>((i * 2 + i / kUsed) % kExperts);
            if (mixed) engine.tensor_set(ids, chosen.data(), 0, chosen.size() * 4);
            void* graph = engine.new_graph(rest);
            engine.build_forward_expand(graph, c);
            y->assign(static_cast<size_t>(rows * n * n_used), NAN);
            done = engine.graph_compute(backend, graph) == 0;
            if (done) engine.tensor_get(c, y->data(), 0, y->size() * sizeof(float));
        }
    }
    if (rest_buffer) engine.buffer_free(rest_buffer);
    if (weight_buffer) engine.buffer_free(weight_buffer);
    if (backend) engine.backend_free(backend);
    if (rest) engine.free(rest);
    if (weights) engine.free(weights);
    return done;
}

// Attention of random rows over a random cache through ggml; the last cells are masked.
bool attention(std::vector<float>* y) {
    constexpr int64_t d = 64, n = 3, n_heads = 4, n_cache_heads = 2, n_cells = 256, n_visible = 100, n_mask_rows = 64;
    uint32_t state = 54321;
    auto next = [&] { return state = state * 1664525u + 1013904223u; };
    void* context = engine.init({1 << 20, nullptr, true});
    void* backend = engine.cpu_init();
    Buffer* buffer = nullptr;
    bool done = false;
    if (context && backend) {
        engine.cpu_set_n_threads(backend, 2);
        Tensor* q = engine.new_tensor_3d(context, kF32, d, n, n_heads);
        Tensor* k = engine.new_tensor_3d(context, kF16, d, n_cells, n_cache_heads);
        Tensor* v = engine.new_tensor_3d(context, kF16, d, n_cells, n_cache_heads);
        Tensor* mask = engine.new_tensor_2d(context, kF16, n_cells, n_mask_rows);
        Tensor* out = engine.flash_attn_ext(context, q, k, v, mask, 0.125f, 0.0f, 0.0f);
        buffer = engine.alloc_ctx_tensors_from_buft(context, engine.cpu_buffer_type());
        if (buffer) {
            std::vector<float> rows(static_cast<size_t>(d * n * n_heads));
            for (float& x : rows) x = static_cast<float>(next() >> 8) / (1 << 22) - 2.0f;
            engine.tensor_set(q, rows.data(), 0, rows.size() * 4);
            std::vector<uint16_t> halves(static_cast<size_t>(d * n_cells * n_cache_heads));
            for (Tensor* cells : {k, v}) {
                for (uint16_t& x : halves) {   // between 0.25 and 2 on either side of zero
                    x = static_cast<uint16_t>(next() >> 16);
                    x = static_cast<uint16_t>((x & 0x83ff) | (0x3400 + (x >> 10 & 3) % 3 * 0x400));
                }
                engine.tensor_set(cells, halves.data(), 0, halves.size() * 2);
            }
            std::vector<uint16_t> masked(static_cast<size_t>(n_cells * n_mask_rows));
            for (size_t i = 0; i < masked.size(); i++) masked[i] = i % n_cells < n_visible ? 0 : 0xfc00;
            engine.tensor_set(mask, masked.data(), 0, masked.size() * 2);
            void* graph = engine.new_graph(context);
            engine.build_forward_expand(graph, out);
            y->assign(static_cast<size_t>(d * n * n_heads), NAN);
            done = engine.graph_compute(backend, graph) == 0;
            if (done) engine.tensor_get(out, y->data(), 0, y->size() * 4);
        }
    }
    if (buffer) engine.buffer_free(buffer);
    if (backend) engine.backend_free(backend);
    if (context) engine.free(context);
    return done;
}

double difference_of(const std::vector<float>& ours, const std::vector<float>& stock) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < stock.size(); i++) {
        difference += (ours[i] - stock[i]) * (ours[i] - stock[i]);
        size += stock[i] * stock[i];
    }
    return difference / size;
}

}   // namespace

std::string self_test(BufferType* ours_in, bool* attends) {
    for (int t = 0; t < kTypes; t++) {
        constexpr int64_t rows = 48, k = 512, n = 3;
        std::vector<float> ours, stock;
        if (!product(ours_in, engine.type_of[t], rows, k, n, &ours) || !product(engine.cpu_buffer_type(), engine.type_of[t], rows, k, n, &stock)) {
            return std::string("the self-test could not run for ") + kInfo[t].name;
        }
        if (!(difference_of(ours, stock) <= 4e-4)) return std::string("the self-test disagrees with llama.cpp for ") + kInfo[t].name;   // 2 %
        BufferType* cpu = engine.cpu_buffer_type();
        if (!product(ours_in, engine.type_of[t], rows, k, n, &ours, Kind::experts) ||
            !product(cpu, engine.type_of[t], rows, k, n, &stock, Kind::experts)) {
            return std::string("the self-test could not run for experts of ") + kInfo[t].name;
        }
        if (!(difference_of(ours, stock) <= 4e-4)) return std::string("the self-test disagrees with llama.cpp for experts of ") + kInfo[t].name;
    }
    for (int type : {kF32, kF16, kBf16, kQ8_0}) {
        std::vector<float> ours, stock;
        BufferType* cpu = engine.cpu_buffer_type();
        if (!product(cpu, type, 33, 64, 3, &ours, Kind::adapter) || !product(cpu, type, 33, 64, 3, &stock))
            return "the self-test could not run for adapters";
        if (!(difference_of(ours, stock) <= 4e-4)) return "the self-test disagrees with llama.cpp for adapters";   // 2 %
    }
    std::vector<float> ours, stock;
    *attends = false;
    const bool first = attention(&stock);
    *attends = true;
    if (!first || !attention(&ours)) return "the self-test could not run for attention";
    if (!(difference_of(ours, stock) <= 1e-5)) return "the self-test disagrees with llama.cpp for attention";   // 0.3 %
    return "";
}

}   // namespace edgellm
