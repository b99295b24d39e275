// Our kernels under an unmodified llama.cpp: a CPU buffer type, asked first by the model loader, that packs the weights it
// claims when they are loaded and computes their products inside ggml's own threads.
#include "plugin.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <thread>

#include "ggml_abi.h"
#include "layout.h"

#if !defined(_WIN32)
#include <dlfcn.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace edgellm {

#if defined(_WIN32)

std::string install_plugin(const Variant&, const char*, const char*, bool) {
    return "llama.cpp's Windows build does not export the list of CPU buffer types";
}

#else

using namespace ggml_abi;

namespace {

// What is used of ggml's C interface. Opaque pointers are void*.
struct Api {
    const char* (*version)();
    const char* (*commit)();
    const char* (*op_name)(int);
    const char* (*type_name)(int);
    size_t (*nbytes)(const Tensor*);
    size_t (*tensor_overhead)();
    struct InitParams {
        size_t mem_size;
        void* mem_buffer;
        bool no_alloc;
    };
    void* (*init)(InitParams);
    void (*free)(void*);
    Tensor* (*new_tensor_2d)(void*, int, int64_t, int64_t);
    Tensor* (*new_tensor_3d)(void*, int, int64_t, int64_t, int64_t);
    Tensor* (*mul_mat)(void*, Tensor*, Tensor*);
    Tensor* (*flash_attn_ext)(void*, Tensor*, Tensor*, Tensor*, Tensor*, float, float, float);
    void* (*new_graph)(void*);
    void (*build_forward_expand)(void*, Tensor*);
    size_t (*quantize_chunk)(int, const float*, void*, int64_t, int64_t, int64_t, const float*);
    Buffer* (*buffer_init)(BufferType*, BufferInterface, void*, size_t);
    void (*buffer_free)(Buffer*);
    size_t (*buffer_get_size)(Buffer*);
    BufferType* (*buffer_get_type)(Buffer*);
    BufferType* (*cpu_buffer_type)();
    const char* (*buft_name)(BufferType*);
    Buffer* (*alloc_ctx_tensors_from_buft)(void*, BufferType*);
    void (*tensor_set)(Tensor*, const void*, size_t, size_t);
    void (*tensor_get)(const Tensor*, void*, size_t, size_t);
    int (*graph_compute)(void*, void*);
    void (*backend_free)(void*);
    Device* (*reg_dev_get)(void*, size_t);
    void* (*reg_get_proc_address)(void*, const char*);
    // of the CPU library
    void* (*cpu_reg)();
    void* (*cpu_init)();
    void (*cpu_set_n_threads)(void*, int);
    void (*barrier)(void*);
    ExtraBufferTypes& (*extra_buffer_types)();
};

Api api;
const Variant* variant;
BufferType buffer_type;
int mul_mat_op = -1, attention_op = -1;
int ggml_type_of[kTypes];

bool type_of(int ggml_type, Type* out) {
    for (int t = 0; t < kTypes; t++) {
        if (ggml_type_of[t] == ggml_type) {
            *out = static_cast<Type>(t);
            return true;
        }
    }
    return false;
}

// Weights are claimed when padding to whole groups costs no more than 3 %.
bool claims(const Tensor* w, Type* type) {
    return type_of(w->type, type) && w->ne[2] == 1 && w->ne[3] == 1 && w->ne[0] % kInfo[*type].block == 0 && w->ne[1] > 0 && !w->view_src &&
           packed_bytes(*type, w->ne[1], w->ne[0]) <= static_cast<double>(api.nbytes(w)) * 1.03 + kLine;
}

bool is_ours(const Tensor* w) { return w && w->buffer && w->buffer->buft == &buffer_type; }

Columns columns_of(const Tensor* x) {
    return {static_cast<const float*>(x->data),
            {x->ne[1], x->ne[2], x->ne[3]},
            {static_cast<int64_t>(x->nb[1]), static_cast<int64_t>(x->nb[2]), static_cast<int64_t>(x->nb[3])}};
}

struct Product final : TensorTraits {
    bool work_size(int n_threads, const Tensor* op, size_t& size) override {
        Type type;
        if (!type_of(op->src[0]->type, &type)) return false;
        const Tensor* x = op->src[1];
        size = static_cast<size_t>(work_bytes(type, x->ne[0], x->ne[1] * x->ne[2] * x->ne[3], n_threads));
        return true;
    }
    bool compute_forward(ComputeParams* params, Tensor* op) override {
        Type type;
        if (op->op != mul_mat_op || !type_of(op->src[0]->type, &type)) return false;
        const Tensor *w = op->src[0], *x = op->src[1];
        matmul(*variant, type, w->data, w->ne[1], w->ne[0], columns_of(x), static_cast<float*>(op->data), w->ne[1], params->wdata, params->ith,
               params->nth, api.barrier, params->threadpool);
        return true;
    }
};

constexpr int kF32 = 0, kF16 = 1, kQ8_0 = 8, kBf16 = 30;

bool plain_of(int ggml_type, Plain* out) {
    *out = ggml_type == kF16 ? Plain::f16 : ggml_type == kBf16 ? Plain::bf16 : ggml_type == kQ8_0 ? Plain::q8_0 : Plain::f32;
    return ggml_type == kF32 || ggml_type == kF16 || ggml_type == kBf16 || ggml_type == kQ8_0;
}

// Whether this is half of an adapter: llama.cpp keeps their names.
bool is_thin(const Tensor* w) {
    const char* name = static_cast<const char*>(w->name);
    const size_t n = strnlen(name, sizeof w->name);
    return n > 7 && (std::memcmp(name + n - 7, ".lora_a", 7) == 0 || std::memcmp(name + n - 7, ".lora_b", 7) == 0);
}

// An adapter's products, in the memory of the CPU: ggml's own sum in another order for one token than for several.
struct ThinProduct final : TensorTraits {
    bool work_size(int, const Tensor*, size_t&) override { return false; }
    bool compute_forward(ComputeParams* params, Tensor* op) override {
        const Tensor *w = op->src[0], *x = op->src[1];
        Plain type;
        if (!plain_of(w->type, &type) || w->ne[2] != 1 || w->ne[3] != 1 || x->type != kF32 || x->nb[0] != sizeof(float) || op->type != kF32 ||
            op->nb[0] != sizeof(float) || op->nb[1] != op->nb[0] * static_cast<size_t>(op->ne[0])) {
            return false;
        }
        // clang-format off
        const Thin product = {type, static_cast<const uint8_t*>(w->data), static_cast<int64_t>(w->nb[1]), w->ne[1], w->ne[0], columns_of(x),
                              static_cast<float*>(op->data), op->ne[0]};
        // clang-format on
        variant->thin(product, params->ith, params->nth);
        return true;
    }
};

bool cell_type_of(int ggml_type, CellType* out) {
    *out = ggml_type == kF16 ? CellType::f16 : ggml_type == kQ8_0 ? CellType::q8_0 : CellType::f32;
    return ggml_type == kF32 || ggml_type == kF16 || ggml_type == kQ8_0;
}

// What FLASH_ATTN_EXT asks for, where it is what our attention computes: no slopes, caps or sinks. Of several sequences that keep caches
// of their own (the last axis of all tensors), this describes the first; `of_sequence` moves on to another.
bool describe(const Tensor* op, Attention* a) {
    const Tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *mask = op->src[3];
    float factors[3];   // scale, largest slope, cap
    std::memcpy(factors, op->op_params, sizeof factors);
    if (q->type != kF32 || q->nb[0] != sizeof(float) || op->type != kF32 || !cell_type_of(k->type, &a->k_type) ||
        !cell_type_of(v->type, &a->v_type) || k->ne[3] != q->ne[3] || v->ne[3] != q->ne[3] || k->ne[2] != v->ne[2] || k->ne[1] != v->ne[1] ||
        k->ne[0] != q->ne[0] || k->ne[2] < 1 || factors[1] != 0 || factors[2] != 0 || op->src[4] ||
        (mask && (mask->type != kF16 || mask->nb[0] != 2 || mask->ne[0] < k->ne[1] || mask->ne[1] < q->ne[1] || mask->ne[2] != 1 ||
                  mask->ne[3] != q->ne[3]))) {
        return false;
    }
    auto bytes = [](size_t n) { return static_cast<int64_t>(n); };
    a->n = q->ne[1], a->n_heads = q->ne[2], a->n_cache_heads = k->ne[2], a->n_cells = k->ne[1], a->d = q->ne[0], a->dv = v->ne[0];
    a->q = static_cast<const char*>(q->data), a->q_row = bytes(q->nb[1]), a->q_head = bytes(q->nb[2]);
    a->k = static_cast<const char*>(k->data), a->k_cell = bytes(k->nb[1]), a->k_head = bytes(k->nb[2]);
    a->v = static_cast<const char*>(v->data), a->v_cell = bytes(v->nb[1]), a->v_head = bytes(v->nb[2]);
    a->mask = mask ? static_cast<const char*>(mask->data) : nullptr, a->mask_row = mask ? bytes(mask->nb[1]) : 0;
    a->scale = factors[0], a->out = static_cast<float*>(op->data);
    return can_attend(*a);
}

Attention of_sequence(const Tensor* op, const Attention& first, int64_t i) {
    Attention a = first;
    a.q += i * static_cast<int64_t>(op->src[0]->nb[3]);
    a.k += i * static_cast<int64_t>(op->src[1]->nb[3]);
    a.v += i * static_cast<int64_t>(op->src[2]->nb[3]);
    if (a.mask) a.mask += i * static_cast<int64_t>(op->src[3]->nb[3]);
    a.out += i * a.n * a.n_heads * a.dv;
    return a;
}

bool attends = false;   // after the self-test

// Ours where it can. Else ggml's, whose attention of a single row over 512 cells or more splits the cache over its threads and sums
// the parts, in another order than for more rows. Its reference path does not: the flag is set for that operation alone.
struct CacheAttention final : TensorTraits {
    bool work_size(int, const Tensor*, size_t&) override { return false; }
    bool compute_forward(ComputeParams* params, Tensor* op) override {
        Attention attention;
        const bool is_attention = op->op == attention_op;
        if (is_attention && attends && describe(op, &attention)) {
            for (int64_t i = 0; i < op->src[0]->ne[3]; i++) variant->attend(of_sequence(op, attention, i), params->ith, params->nth);
            return true;
        }
        params->use_ref = is_attention && op->src[0]->ne[1] == 1;
        return false;
    }
};

struct Claims final : ExtraBufferType {
    Product product;
    CacheAttention attention;
    ThinProduct thin;
    bool supports_op(Device*, const Tensor* op) override {
        Type type;
        const Tensor *w = op->src[0], *x = op->src[1];
        constexpr int f32 = 0;
        return op->op == mul_mat_op && is_ours(w) && claims(w, &type) && x && x->type == f32 && x->nb[0] == sizeof(float) && !is_ours(x) &&
               op->type == f32 && (!x->buffer || !x->buffer->buft->is_host || x->buffer->buft->is_host(x->buffer->buft));
    }
    TensorTraits* get_tensor_traits(const Tensor* op) override {
        if (op->op == mul_mat_op && is_ours(op->src[0])) return &product;
        if (op->op == mul_mat_op && is_thin(op->src[0])) return &thin;
        return &attention;
    }
};

int n_load_threads() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set) < 8 ? CPU_COUNT(&set) : 8;
#endif
    const unsigned n = std::thread::hardware_concurrency();
    return n < 1 ? 1 : n < 8 ? static_cast<int>(n) : 8;
}

// Gives the pages of a mapped file back once they have been packed; memory that is not a mapped file is left alone. The pages
// come back from the file when somebody reads them.
void release_file_pages(const void* data, size_t n_bytes) {
#if defined(__linux__)
    const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)), at = reinterpret_cast<uintptr_t>(data);
    const uintptr_t begin = (at + page - 1) / page * page, end = (at + n_bytes) / page * page;
    if (end <= begin) return;
    std::FILE* maps = std::fopen("/proc/self/maps", "re");
    if (!maps) return;
    char line[512];
    while (std::fgets(line, sizeof line, maps)) {
        unsigned long long low, high, offset, inode;
        char mode[5];
        if (std::sscanf(line, "%llx-%llx %4s %llx %*s %llu", &low, &high, mode, &offset, &inode) != 5) continue;
        if (low <= begin && end <= high) {
            if (inode != 0 && mode[1] == '-') madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
            break;
        }
    }
    std::fclose(maps);
#else
    (void)data, (void)n_bytes;
#endif
}

int init_tensor(Buffer*, Tensor*) { return 0; }

void set_tensor(Buffer*, Tensor* tensor, const void* data, size_t offset, size_t size) {
    Type type;
    if (offset != 0 || size != api.nbytes(tensor) || !type_of(tensor->type, &type)) {   // llama.cpp's loader never does this
        std::fputs("edgellm kernels: a packed tensor can be written only as a whole\n", stderr);
        std::abort();
    }
    pack(type, data, tensor->ne[1], tensor->ne[0], tensor->data, n_load_threads());
    release_file_pages(data, size);
}

void clear_buffer(Buffer* buffer, uint8_t value) { std::memset(buffer->context, value, buffer->size); }
void* buffer_base(Buffer* buffer) { return buffer->context; }
void free_buffer(Buffer* buffer) { std::free(buffer->context); }

const char* buffer_name(BufferType*) { return "CPU_EDGELLM"; }
size_t buffer_alignment(BufferType*) { return kLine; }
size_t tensor_bytes(BufferType*, const Tensor* tensor) {
    Type type;
    if (!type_of(tensor->type, &type)) return api.nbytes(tensor);
    return static_cast<size_t>(packed_bytes(type, tensor->ne[1], tensor->ne[0]));
}

// Ordinary pages: asking for huge ones made loading three times as long where free memory is in pieces.
Buffer* allocate(BufferType* type, size_t size) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 4096, size ? size : 1) != 0) return nullptr;
    BufferInterface iface = {};
    iface.free_buffer = free_buffer;
    iface.get_base = buffer_base;
    iface.init_tensor = init_tensor;
    iface.set_tensor = set_tensor;
    iface.clear = clear_buffer;
    Buffer* buffer = api.buffer_init(type, iface, memory, size);
    if (!buffer) std::free(memory);
    return buffer;
}

std::string load_api(const char* base_path, const char* cpu_path) {
    void* base = dlopen(base_path, RTLD_NOW | RTLD_LOCAL);
    void* cpu = dlopen(cpu_path, RTLD_NOW | RTLD_LOCAL);
    if (!base || !cpu) return "llama.cpp's libraries cannot be opened";
    std::string missing;
    auto find = [&](void* library, auto& function, const char* name) {
        void* symbol = dlsym(library, name);
        if (!symbol && missing.empty()) missing = name;
        std::memcpy(&function, &symbol, sizeof symbol);
    };
    find(base, api.version, "ggml_version");
    find(base, api.commit, "ggml_commit");
    find(base, api.op_name, "ggml_op_name");
    find(base, api.type_name, "ggml_type_name");
    find(base, api.nbytes, "ggml_nbytes");
    find(base, api.tensor_overhead, "ggml_tensor_overhead");
    find(base, api.init, "ggml_init");
    find(base, api.free, "ggml_free");
    find(base, api.new_tensor_2d, "ggml_new_tensor_2d");
    find(base, api.new_tensor_3d, "ggml_new_tensor_3d");
    find(base, api.mul_mat, "ggml_mul_mat");
    find(base, api.flash_attn_ext, "ggml_flash_attn_ext");
    find(base, api.new_graph, "ggml_new_graph");
    find(base, api.build_forward_expand, "ggml_build_forward_expand");
    find(base, api.quantize_chunk, "ggml_quantize_chunk");
    find(base, api.buffer_init, "ggml_backend_buffer_init");
    find(base, api.buffer_free, "ggml_backend_buffer_free");
    find(base, api.buffer_get_size, "ggml_backend_buffer_get_size");
    find(base, api.buffer_get_type, "ggml_backend_buffer_get_type");
    find(base, api.cpu_buffer_type, "ggml_backend_cpu_buffer_type");
    find(base, api.buft_name, "ggml_backend_buft_name");
    find(base, api.alloc_ctx_tensors_from_buft, "ggml_backend_alloc_ctx_tensors_from_buft");
    find(base, api.tensor_set, "ggml_backend_tensor_set");
    find(base, api.tensor_get, "ggml_backend_tensor_get");
    find(base, api.graph_compute, "ggml_backend_graph_compute");
    find(base, api.backend_free, "ggml_backend_free");
    find(base, api.reg_dev_get, "ggml_backend_reg_dev_get");
    find(base, api.reg_get_proc_address, "ggml_backend_reg_get_proc_address");
    find(cpu, api.cpu_reg, "ggml_backend_cpu_reg");
    find(cpu, api.cpu_init, "ggml_backend_cpu_init");
    find(cpu, api.cpu_set_n_threads, "ggml_backend_cpu_set_n_threads");
    find(cpu, api.barrier, "ggml_barrier");
    find(cpu, api.extra_buffer_types, "_Z39ggml_backend_cpu_get_extra_buffer_typesv");
    return missing.empty() ? "" : "llama.cpp's libraries lack " + missing;
}

std::string check_version() {
    const std::string version = api.version(), commit = api.commit();
    if (version == "0.25.3" && (commit.compare(0, 7, "0c1e570") == 0 || commit == "unknown")) return "";
    return "the installed ggml is " + version + " (" + commit + "), not 0.25.3 (0c1e570)";
}

// The structures as declared here against what the library makes of them.
std::string check_structures() {
    const char* wrong = "llama.cpp's structures are not laid out as expected: ";
    if (api.tensor_overhead() != sizeof(Tensor) + 32) return std::string(wrong) + "size of a tensor";
    int f32 = 0;
    if (std::strcmp(api.type_name(f32), "f32") != 0) return std::string(wrong) + "numbers of the types";
    for (int i = 0; i < 200 && mul_mat_op < 0; i++) {
        const char* name = api.op_name(i);
        if (name && std::strcmp(name, "MUL_MAT") == 0) mul_mat_op = i;
        if (name && std::strcmp(name, "MUL_MAT_ID") == 0) break;   // beyond it lies no earlier operation, and soon no name at all
    }
    for (int i = mul_mat_op; i >= 0 && i < 100 && attention_op < 0; i++) {   // a hundred is within this version's names
        if (std::strcmp(api.op_name(i), "FLASH_ATTN_EXT") == 0) attention_op = i;
    }
    if (mul_mat_op < 0 || attention_op < 0) return std::string(wrong) + "numbers of the operations";
    constexpr int numbers[kTypes] = {2, 3, 6, 7, 8, 20, 12, 13, 14};
    for (int t = 0; t < kTypes; t++) {
        ggml_type_of[t] = numbers[t];
        if (std::strcmp(api.type_name(numbers[t]), kInfo[t].name) != 0) return std::string(wrong) + "numbers of the types";
    }
    if (std::strcmp(api.type_name(kF16), "f16") != 0 || std::strcmp(api.type_name(kBf16), "bf16") != 0)
        return std::string(wrong) + "numbers of the types";
    void* context = api.init({1 << 16, nullptr, true});
    if (!context) return "ggml gives no context";
    Tensor* a = api.new_tensor_2d(context, numbers[Q4_K], 512, 48);
    Tensor* b = api.new_tensor_2d(context, f32, 512, 3);
    Tensor* c = api.mul_mat(context, a, b);
    const bool tensors = a->type == numbers[Q4_K] && a->ne[0] == 512 && a->ne[1] == 48 && a->ne[2] == 1 && a->nb[0] == 144 && a->nb[1] == 288 &&
                         !a->buffer && !a->data && !a->view_src && !a->extra && b->nb[1] == 2048 && c->op == mul_mat_op && c->src[0] == a &&
                         c->src[1] == b && !c->src[2] && c->type == f32 && c->ne[0] == 48 && c->ne[1] == 3 && a->name[0] == 0 &&
                         api.nbytes(a) == 48 * 288;
    api.free(context);
    if (!tensors) return std::string(wrong) + "fields of a tensor";
    BufferType* stock = api.cpu_buffer_type();
    if (!stock || !stock->get_name || stock->get_name(stock) != api.buft_name(stock) || !stock->is_host || !stock->is_host(stock) ||
        stock->get_alignment(stock) > 4096) {
        return std::string(wrong) + "buffer type";
    }
    Buffer* buffer = stock->alloc_buffer(stock, 4096);
    const bool buffers = buffer && buffer->buft == stock && api.buffer_get_type(buffer) == stock && buffer->size == api.buffer_get_size(buffer) &&
                         buffer->size >= 4096 && buffer->usage == 0 && buffer->iface.get_base && buffer->iface.get_base(buffer) == buffer->context;
    if (buffer) api.buffer_free(buffer);
    return buffers ? "" : std::string(wrong) + "buffer";
}

// One product of random numbers through ggml, with the weights in buffers of `where`, and called as an adapter's are or not.
bool product(BufferType* where, int type, int64_t rows, int64_t k, int64_t n, std::vector<float>* y, bool adapter = false) {
    uint32_t state = 12345;
    auto next = [&] {
        state = state * 1664525u + 1013904223u;
        return static_cast<float>(state >> 8) / (1 << 23) - 1.0f;
    };
    std::vector<float> w(static_cast<size_t>(rows * k)), x(static_cast<size_t>(n * k));
    for (float& v : w) v = next();
    for (float& v : x) v = next();
    void* weights = api.init({4096, nullptr, true});
    void* rest = api.init({1 << 20, nullptr, true});
    void* backend = api.cpu_init();
    Buffer *weight_buffer = nullptr, *rest_buffer = nullptr;
    bool done = false;
    if (weights && rest && backend) {
        api.cpu_set_n_threads(backend, 2);
        Tensor* a = api.new_tensor_2d(weights, type, k, rows);
        Tensor* b = api.new_tensor_2d(rest, 0, k, n);
        if (adapter) std::strcpy(a->name, "w.lora_a");
        weight_buffer = api.alloc_ctx_tensors_from_buft(weights, where);
        Tensor* c = api.mul_mat(rest, a, b);
        rest_buffer = api.alloc_ctx_tensors_from_buft(rest, api.cpu_buffer_type());
        if (weight_buffer && rest_buffer) {
            std::vector<uint8_t> quantized(api.nbytes(a));
            api.quantize_chunk(type, w.data(), quantized.data(), 0, rows, k, nullptr);
            api.tensor_set(a, quantized.data(), 0, quantized.size());
            api.tensor_set(b, x.data(), 0, x.size() * sizeof(float));
            void* graph = api.new_graph(rest);
            api.build_forward_expand(graph, c);
            y->assign(static_cast<size_t>(rows * n), NAN);
            done = api.graph_compute(backend, graph) == 0;
            if (done) api.tensor_get(c, y->data(), 0, y->size() * sizeof(float));
        }
    }
    if (rest_buffer) api.buffer_free(rest_buffer);
    if (weight_buffer) api.buffer_free(weight_buffer);
    if (backend) api.backend_free(backend);
    if (rest) api.free(rest);
    if (weights) api.free(weights);
    return done;
}

// Attention of random rows over a random cache through ggml; the last cells are masked.
bool attention(std::vector<float>* y) {
    constexpr int64_t d = 64, n = 3, n_heads = 4, n_cache_heads = 2, n_cells = 256, n_visible = 100, n_mask_rows = 64;
    uint32_t state = 54321;
    auto next = [&] { return state = state * 1664525u + 1013904223u; };
    void* context = api.init({1 << 20, nullptr, true});
    void* backend = api.cpu_init();
    Buffer* buffer = nullptr;
    bool done = false;
    if (context && backend) {
        api.cpu_set_n_threads(backend, 2);
        Tensor* q = api.new_tensor_3d(context, kF32, d, n, n_heads);
        Tensor* k = api.new_tensor_3d(context, kF16, d, n_cells, n_cache_heads);
        Tensor* v = api.new_tensor_3d(context, kF16, d, n_cells, n_cache_heads);
        Tensor* mask = api.new_tensor_2d(context, kF16, n_cells, n_mask_rows);
        Tensor* out = api.flash_attn_ext(context, q, k, v, mask, 0.125f, 0.0f, 0.0f);
        buffer = api.alloc_ctx_tensors_from_buft(context, api.cpu_buffer_type());
        if (buffer) {
            std::vector<float> rows(static_cast<size_t>(d * n * n_heads));
            for (float& x : rows) x = static_cast<float>(next() >> 8) / (1 << 22) - 2.0f;
            api.tensor_set(q, rows.data(), 0, rows.size() * 4);
            std::vector<uint16_t> halves(static_cast<size_t>(d * n_cells * n_cache_heads));
            for (Tensor* cells : {k, v}) {
                for (uint16_t& x : halves) {   // between 0.25 and 2 on either side of zero
                    x = static_cast<uint16_t>(next() >> 16);
                    x = static_cast<uint16_t>((x & 0x83ff) | (0x3400 + (x >> 10 & 3) % 3 * 0x400));
                }
                api.tensor_set(cells, halves.data(), 0, halves.size() * 2);
            }
            std::vector<uint16_t> masked(static_cast<size_t>(n_cells * n_mask_rows));
            for (size_t i = 0; i < masked.size(); i++) masked[i] = i % n_cells < n_visible ? 0 : 0xfc00;
            api.tensor_set(mask, masked.data(), 0, masked.size() * 2);
            void* graph = api.new_graph(context);
            api.build_forward_expand(graph, out);
            y->assign(static_cast<size_t>(d * n * n_heads), NAN);
            done = api.graph_compute(backend, graph) == 0;
            if (done) api.tensor_get(out, y->data(), 0, y->size() * 4);
        }
    }
    if (buffer) api.buffer_free(buffer);
    if (backend) api.backend_free(backend);
    if (context) api.free(context);
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

std::string self_test() {
    for (int t = 0; t < kTypes; t++) {
        constexpr int64_t rows = 48, k = 512, n = 3;
        std::vector<float> ours, stock;
        if (!product(&buffer_type, ggml_type_of[t], rows, k, n, &ours) || !product(api.cpu_buffer_type(), ggml_type_of[t], rows, k, n, &stock)) {
            return std::string("the self-test could not run for ") + kInfo[t].name;
        }
        if (!(difference_of(ours, stock) <= 4e-4)) return std::string("the self-test disagrees with llama.cpp for ") + kInfo[t].name;   // 2 %
    }
    for (int type : {kF32, kF16, kBf16, kQ8_0}) {
        std::vector<float> ours, stock;
        BufferType* cpu = api.cpu_buffer_type();
        if (!product(cpu, type, 33, 64, 3, &ours, true) || !product(cpu, type, 33, 64, 3, &stock)) return "the self-test could not run for adapters";
        if (!(difference_of(ours, stock) <= 4e-4)) return "the self-test disagrees with llama.cpp for adapters";   // 2 %
    }
    std::vector<float> ours, stock;
    attends = false;
    const bool first = attention(&stock);
    attends = true;
    if (!first || !attention(&ours)) return "the self-test could not run for attention";
    if (!(difference_of(ours, stock) <= 1e-5)) return "the self-test disagrees with llama.cpp for attention";   // 0.3 %
    return "";
}

}   // namespace

std::string install_plugin(const Variant& chosen, const char* base_path, const char* cpu_path, bool alone) {
    std::string problem = load_api(base_path, cpu_path);
    if (problem.empty()) problem = check_version();
    if (problem.empty()) problem = check_structures();
    if (!problem.empty()) return problem;
    variant = &chosen;
    static Claims claims_of_ours;
    buffer_type.get_name = buffer_name;
    buffer_type.alloc_buffer = allocate;
    buffer_type.get_alignment = buffer_alignment;
    buffer_type.get_alloc_size = tensor_bytes;
    buffer_type.device = api.reg_dev_get(api.cpu_reg(), 0);
    buffer_type.context = static_cast<ExtraBufferType*>(&claims_of_ours);
    ExtraBufferTypes& types = api.extra_buffer_types();
    const ExtraBufferTypes others = types;
    if (alone) types.clear();
    types.insert(types.begin(), &buffer_type);
    problem = self_test();
    if (problem.empty()) {   // the loader keeps its own copy of the list, made when the first model is loaded
        auto get_extra = reinterpret_cast<BufferType** (*)(Device*)>(api.reg_get_proc_address(api.cpu_reg(), "ggml_backend_dev_get_extra_bufts"));
        BufferType** seen = get_extra ? get_extra(buffer_type.device) : nullptr;
        if (!seen || *seen != &buffer_type) problem = "a model was loaded before the kernels were installed";
    }
    if (!problem.empty()) types = others;
    return problem;
}

#endif

}   // namespace edgellm
