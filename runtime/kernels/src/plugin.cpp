// Our kernels under an unmodified llama.cpp. Its CPU library keeps a list of extra buffer types (repacking, AMX), which the model loader
// asks first and every operation goes by. The first of them is public; its functions are replaced by ours, which take the weights that our
// kernels multiply, pack them as they are loaded, compute their products inside ggml's own threads, and hand on everything else.
#include "plugin.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "engine.h"
#include "experts.h"
#include "join.h"
#include "layout.h"
#include "lent.h"
#include "self_test.h"

#if defined(__linux__)
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace edgellm {

using namespace ggml;

namespace {

const Variant* variant;

bool type_of(int ggml_type, Type* out) {
    for (int t = 0; t < kTypes; t++) {
        if (engine.type_of[t] == ggml_type) {
            *out = static_cast<Type>(t);
            return true;
        }
    }
    return false;
}

int64_t rows_of(const Tensor* w) { return w->ne[1] * w->ne[2]; }

// Weights are claimed when padding to whole groups costs no more than 3 %.
// Experts lie one behind the other, where each is a whole number of groups.
bool claims(const Tensor* w, Type* type) {
    return type_of(w->type, type) && (w->ne[2] == 1 || w->ne[1] % kRows == 0) && w->ne[3] == 1 && w->ne[0] % kInfo[*type].block == 0 &&
           w->ne[1] > 0 && !w->view_src && packed_bytes(*type, rows_of(w), w->ne[0]) <= static_cast<double>(engine.nbytes(w)) * 1.03 + kLine;
}

// What ggml keeps beside a tensor tells whose it is in a buffer that both fill.
char mark;

bool is_ours(const Tensor* w) { return w && w->extra == &mark; }

bool is_packed(const Tensor* w) { return is_ours(w) || lent(w); }

const void* packed(const Tensor* w) {
    const Lent* one = is_ours(w) ? nullptr : lent(w);
    return one ? one->packed : w->data;
}

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
        size = static_cast<size_t>(work_bytes(*variant, type, x->ne[0], x->ne[1] * x->ne[2] * x->ne[3], n_threads));
        return true;
    }
    bool compute_forward(ComputeParams* params, Tensor* op) override {
        Type type;
        if (op->op != engine.mul_mat_op || !type_of(op->src[0]->type, &type)) return false;
        const Tensor *w = op->src[0], *x = op->src[1];
        Meeting meeting = {params->threadpool, params->nth};
        matmul(*variant, type, packed(w), w->ne[1], w->ne[0], columns_of(x), static_cast<float*>(op->data), w->ne[1], params->wdata, params->ith,
               params->nth, join, &meeting);
        return true;
    }
};

struct Experts final : TensorTraits {
    bool work_size(int n_threads, const Tensor* op, size_t& size) override {
        Type type;
        if (!type_of(op->src[0]->type, &type)) return false;
        const Tensor *w = op->src[0], *ids = op->src[2];
        size = static_cast<size_t>(expert_work_bytes(*variant, type, w->ne[0], ids->ne[0] * ids->ne[1], w->ne[2], n_threads));
        return true;
    }
    bool compute_forward(ComputeParams* params, Tensor* op) override {
        Type type;
        if (op->op != engine.mul_mat_id_op || !type_of(op->src[0]->type, &type)) return false;
        const Tensor *w = op->src[0], *x = op->src[1], *ids = op->src[2];
        const Choice choice = {static_cast<const char*>(ids->data), static_cast<int64_t>(ids->nb[1]), ids->ne[0], ids->ne[1], w->ne[2]};
        Meeting meeting = {params->threadpool, params->nth};
        multiply_experts(*variant,
                         {type, packed(w), w->ne[1], w->ne[0], choice, columns_of(x), static_cast<char*>(op->data), static_cast<int64_t>(op->nb[1]),
                          static_cast<int64_t>(op->nb[2])},
                         params->wdata, params->ith, params->nth, join, &meeting);
        return true;
    }
};

bool plain_of(int ggml_type, Plain* out) {
    *out = ggml_type == kF16 ? Plain::f16 : ggml_type == kBf16 ? Plain::bf16 : ggml_type == kQ8_0 ? Plain::q8_0 : Plain::f32;
    return ggml_type == kF32 || ggml_type == kF16 || ggml_type == kBf16 || ggml_type == kQ8_0;
}

constexpr int64_t kThin = 1024;   // rows of a matrix of floats, at most: routers, and what a recurrent layer steps by

// Whether this is half of an adapter (llama.cpp keeps their names), or small matrices of floats of the model's own: one, or one a head.
bool is_thin(const Tensor* w) {
    const char* name = static_cast<const char*>(w->name);
    const size_t n = strnlen(name, sizeof w->name);
    const bool floats = w->type == kF32 || w->type == kF16 || w->type == kBf16;
    if (floats && w->ne[1] <= kThin && n > 7 && std::memcmp(name + n - 7, ".weight", 7) == 0) return true;
    return n > 7 && (std::memcmp(name + n - 7, ".lora_a", 7) == 0 || std::memcmp(name + n - 7, ".lora_b", 7) == 0);
}

// An adapter's products, in the memory of the CPU: ggml's own sum in another order for one token than for several.
struct ThinProduct final : TensorTraits {
    bool work_size(int, const Tensor*, size_t&) override { return false; }
    bool compute_forward(ComputeParams* params, Tensor* op) override {
        const Tensor *w = op->src[0], *x = op->src[1];
        Plain type;
        if (!plain_of(w->type, &type) || w->ne[3] != 1 || x->type != kF32 || x->nb[0] != sizeof(float) || op->type != kF32 ||
            op->nb[0] != sizeof(float) || op->nb[1] != op->nb[0] * static_cast<size_t>(op->ne[0]) ||
            (w->ne[2] != 1 && (x->ne[2] != w->ne[2] || x->ne[3] != 1))) {
            return false;
        }
        // clang-format off
        Thin product = {type, static_cast<const uint8_t*>(w->data), static_cast<int64_t>(w->nb[1]), w->ne[1], w->ne[0], columns_of(x),
                        static_cast<float*>(op->data), op->ne[0]};
        // clang-format on
        if (w->ne[2] != 1) product.x.n[1] = 1;
        for (int64_t i = 0; i < w->ne[2]; i++) {   // once, or for each head its own
            variant->thin(product, params->ith, params->nth);
            product.w += w->nb[2];
            product.x.x = reinterpret_cast<const float*>(reinterpret_cast<const char*>(product.x.x) + x->nb[2]);
            product.y = reinterpret_cast<float*>(reinterpret_cast<char*>(product.y) + op->nb[2]);
        }
        return true;
    }
};

bool is_host(const Tensor* x) { return !x->buffer || !x->buffer->buft->is_host || x->buffer->buft->is_host(x->buffer->buft); }

constexpr int64_t kNarrow = 65;   // columns of the widest verification; wider passes read prompts, and go to ggml

// Whether these are the scores of attention that ggml does not fuse, or the values that they mix: T5's scores have biases. The other
// side is halves that the pass itself views or copies, of one matrix a head.
bool is_unfused_attention(const Tensor* op) {
    const Tensor *w = op->src[0], *x = op->src[1];
    return w->type == kF16 && w->op != 0 && w->nb[0] == 2 && w->ne[3] == 1 && x->ne[3] == 1 && x->type == kF32 && x->nb[0] == sizeof(float) &&
           x->ne[1] <= kNarrow && w->ne[2] > 0 && x->ne[2] % w->ne[2] == 0 && op->type == kF32 && op->nb[0] == sizeof(float);
}

// Head by head, each column in the order that it has alone.
struct UnfusedAttention final : TensorTraits {
    bool work_size(int, const Tensor*, size_t&) override { return false; }
    bool compute_forward(ComputeParams* params, Tensor* op) override {
        if (op->op != engine.mul_mat_op || !is_unfused_attention(op) || !is_host(op->src[0]) || !is_host(op->src[1])) return false;
        const Tensor *w = op->src[0], *x = op->src[1];
        const int64_t n_shared = x->ne[2] / w->ne[2];
        for (int64_t h = 0; h < x->ne[2]; h++) {
            const Columns columns = {reinterpret_cast<const float*>(static_cast<const char*>(x->data) + h * static_cast<int64_t>(x->nb[2])),
                                     {x->ne[1], 1, 1},
                                     {static_cast<int64_t>(x->nb[1]), 0, 0}};
            const uint8_t* rows = static_cast<const uint8_t*>(w->data) + h / n_shared * static_cast<int64_t>(w->nb[2]);
            float* out = reinterpret_cast<float*>(static_cast<char*>(op->data) + h * static_cast<int64_t>(op->nb[2]));
            const Thin product = {
                Plain::f16, rows, static_cast<int64_t>(w->nb[1]), w->ne[1], w->ne[0], columns, out, static_cast<int64_t>(op->nb[1] / sizeof(float))};
            variant->thin(product, params->ith, params->nth);
        }
        return true;
    }
};

bool cell_type_of(int ggml_type, CellType* out) {
    *out = ggml_type == kF16 ? CellType::f16 : ggml_type == kQ8_0 ? CellType::q8_0 : CellType::f32;
    return ggml_type == kF32 || ggml_type == kF16 || ggml_type == kQ8_0;
}

// What FLASH_ATTN_EXT asks for, where it is what our attention computes: no slopes or caps. Of several sequences that keep caches
// of their own (the last axis of all tensors), this describes the first; `of_sequence` moves on to another.
bool describe(const Tensor* op, Attention* a) {
    const Tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *mask = op->src[3], *sinks = op->src[4];
    float factors[3];   // scale, largest slope, cap
    std::memcpy(factors, op->op_params, sizeof factors);
    if (q->type != kF32 || q->nb[0] != sizeof(float) || op->type != kF32 || !cell_type_of(k->type, &a->k_type) ||
        !cell_type_of(v->type, &a->v_type) || k->ne[3] != q->ne[3] || v->ne[3] != q->ne[3] || k->ne[2] != v->ne[2] || k->ne[1] != v->ne[1] ||
        k->ne[0] != q->ne[0] || k->ne[2] < 1 || factors[1] != 0 || factors[2] != 0 ||
        (sinks && (sinks->type != kF32 || sinks->nb[0] != sizeof(float) || sinks->ne[0] != q->ne[2])) ||
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
    a->sinks = sinks ? static_cast<const float*>(sinks->data) : nullptr;
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

Sequences* sequences = nullptr;   // of the pass that runs

// The memory of a cache, of which `x` is a view.
const void* cache_of(const Tensor* x) { return x->view_src ? x->view_src->data : x->data; }

// Where the keys and values of a pass are written.
void note_cells(const Tensor* op) {
    const Tensor* cells = op->src[1];
    if (cells->type == kI64 && cells->data) sequences->write(cache_of(op), cells->ne[0], static_cast<const int64_t*>(cells->data));
}

// Attention of a pass over several sequences, each over its own cells. False where they are not known.
bool attend_sequences(const Tensor* op, const Attention& whole, int ith, int nth) {
    thread_local std::vector<int32_t> places;
    const std::vector<Sequences::Run>& runs = sequences->runs(whole.n);
    if (op->src[0]->ne[3] != 1 || runs.empty()) return false;
    for (const Sequences::Run& run : runs) {
        const void* mask = whole.mask ? whole.mask + run.first * whole.mask_row : nullptr;
        // The first run says it for all.
        if (!sequences->places(cache_of(op->src[1]), run, static_cast<const uint16_t*>(mask), whole.n_cells, &places)) return false;
        Attention a = whole;
        a.q += run.first * a.q_row;
        if (a.mask) a.mask += run.first * a.mask_row;
        a.out += run.first * a.n_heads * a.dv;
        a.n = run.last - run.first, a.n_cells = run.n_cells, a.places = places.data();
        variant->attend(a, ith, nth);
    }
    return true;
}

// Ours where it can. Else ggml's, whose attention of a single row over 512 cells or more splits the cache over its threads and sums
// the parts, in another order than for more rows. Its reference path does not: the flag is set for that operation alone.
struct CacheAttention final : TensorTraits {
    bool work_size(int, const Tensor*, size_t&) override { return false; }
    bool compute_forward(ComputeParams* params, Tensor* op) override {
        Attention attention;
        const bool is_attention = op->op == engine.attention_op;
        if (sequences && op->op == engine.set_rows_op && params->ith == 0) note_cells(op);
        if (is_attention && attends && describe(op, &attention)) {
            if (sequences && attend_sequences(op, attention, params->ith, params->nth)) return true;
            for (int64_t i = 0; i < op->src[0]->ne[3]; i++) variant->attend(of_sequence(op, attention, i), params->ith, params->nth);
            return true;
        }
        params->use_ref = is_attention && op->src[0]->ne[1] == 1;
        return false;
    }
};

// An entry of the engine's list, and what it was before.
struct Slot {
    BufferType* type = nullptr;
    BufferType was = {};
    BufferInterface buffers = {};   // of the buffers that it allocates
    bool hands_on = true;           // what we do not take goes to what it was
    ExtraBufferType* before() const { return static_cast<ExtraBufferType*>(was.context); }
};
Slot slot;

struct Takeover final : ExtraBufferType {
    Product product;
    Experts experts;
    CacheAttention attention;
    ThinProduct thin;
    UnfusedAttention unfused;
    bool supports_op(Device* device, const Tensor* op) override {
        Type type;
        const Tensor *w = op->src[0], *x = op->src[1];
        if (w && (is_ours(w->view_src) || is_ours(x))) return false;                // a part of packed weights is none
        if (w && w->buffer && w->buffer->buft == slot.type && claims(w, &type)) {   // its mark comes when it is loaded
            const Tensor* ids = op->src[2];
            const bool one = op->op == engine.mul_mat_op && w->ne[2] == 1;
            const bool several =
                op->op == engine.mul_mat_id_op && w->ne[1] % kRows == 0 && ids && ids->type == kI32 && ids->nb[0] == 4 && is_host(ids);
            return (one || several) && x && x->type == kF32 && x->nb[0] == sizeof(float) && op->type == kF32 && is_host(x);
        }
        return slot.hands_on && slot.before()->supports_op(device, op);
    }
    TensorTraits* get_tensor_traits(const Tensor* op) override {
        if (op->op == engine.mul_mat_op && is_packed(op->src[0])) return &product;
        if (op->op == engine.mul_mat_id_op && is_packed(op->src[0])) return &experts;
        if (is_lent(op->src[0]) || is_lent(op->src[1])) {
            std::fputs("edgellm kernels: packed weights are asked for by another operation than a product\n", stderr);
            std::abort();
        }
        if (TensorTraits* traits = slot.before()->get_tensor_traits(op)) return traits;
        if (op->op == engine.mul_mat_op && is_thin(op->src[0])) return &thin;
        if (op->op == engine.mul_mat_op && is_unfused_attention(op)) return &unfused;
        return &attention;
    }
};

// In the place of an entry that must not be used.
struct Nothing final : ExtraBufferType {
    bool supports_op(Device*, const Tensor*) override { return false; }
    TensorTraits* get_tensor_traits(const Tensor*) override { return nullptr; }
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

int init_tensor(Buffer* buffer, Tensor* tensor) {
    Type type;
    if (!claims(tensor, &type)) return slot.buffers.init_tensor ? slot.buffers.init_tensor(buffer, tensor) : 0;
    tensor->extra = &mark;
    return 0;
}

void set_tensor(Buffer* buffer, Tensor* tensor, const void* data, size_t offset, size_t size) {
    Type type;
    if (!is_ours(tensor)) return slot.buffers.set_tensor(buffer, tensor, data, offset, size);
    if (offset != 0 || size != engine.nbytes(tensor) || !type_of(tensor->type, &type)) {   // llama.cpp's loader never does this
        std::fputs("edgellm kernels: a packed tensor can be written only as a whole\n", stderr);
        std::abort();
    }
    pack(type, data, rows_of(tensor), tensor->ne[0], tensor->data, n_load_threads());
    release_file_pages(data, size);
}

const char* buffer_name(BufferType*) { return "CPU_EDGELLM"; }
size_t buffer_alignment(BufferType* type) {
    const size_t before = slot.was.get_alignment(type);
    return before > kLine ? before : kLine;
}
size_t tensor_bytes(BufferType* buffer_type, const Tensor* tensor) {
    Type type;
    if (claims(tensor, &type)) return static_cast<size_t>(packed_bytes(type, rows_of(tensor), tensor->ne[0]));
    return slot.was.get_alloc_size ? slot.was.get_alloc_size(buffer_type, tensor) : engine.nbytes(tensor);
}

// Ordinary pages: asking for huge ones made loading three times as long where free memory is in pieces.
Buffer* allocate(BufferType* type, size_t size) {
    Buffer* buffer = slot.was.alloc_buffer(type, size);
    if (!buffer) return nullptr;
    buffer->iface.init_tensor = init_tensor;
    buffer->iface.set_tensor = set_tensor;
    return buffer;
}

// The engine's list of extra buffer types.
std::vector<BufferType*> extra_buffer_types() {
    auto list = reinterpret_cast<BufferType** (*)(Device*)>(engine.reg_get_proc_address(engine.cpu_reg(), "ggml_backend_dev_get_extra_bufts"));
    std::vector<BufferType*> types;
    for (BufferType** entry = list ? list(engine.reg_dev_get(engine.cpu_reg(), 0)) : nullptr; entry && *entry; entry++) types.push_back(*entry);
    return types;
}

}   // namespace

void use_sequences(Sequences* used) { sequences = used; }

bool lend_memory() {
    if (!variant) return false;
    pack_what_is_lent(claims, n_load_threads());
    return true;
}

std::string install_plugin(const Variant& chosen, const char* base_path, const char* cpu_path, bool alone) {
    std::string problem = find_engine(base_path, cpu_path);
    if (!problem.empty()) return problem;
    static Takeover ours;
    static Nothing nothing;
    const std::vector<BufferType*> types = extra_buffer_types();
    if (types.empty()) return "llama.cpp was built without buffer types for packed weights (GGML_CPU_REPACK)";
    std::vector<void*> contexts;
    for (BufferType* type : types) {
        if (!type->context || !type->alloc_buffer || !type->get_alignment) return "llama.cpp's extra buffer types are not as expected";
        contexts.push_back(type->context);
    }
    variant = &chosen;
    slot.type = types[0], slot.was = *types[0], slot.hands_on = !alone;
    Buffer* probe = slot.type->alloc_buffer(slot.type, 4096);
    if (!probe) return "llama.cpp's extra buffer types give no buffer";
    slot.buffers = probe->iface;
    engine.buffer_free(probe);
    if (alone) {
        for (BufferType* type : types) type->context = static_cast<ExtraBufferType*>(&nothing);
    }
    BufferType& type = *slot.type;
    type.get_name = buffer_name;
    type.alloc_buffer = allocate;
    type.get_alignment = buffer_alignment;
    type.get_alloc_size = tensor_bytes;
    type.context = static_cast<ExtraBufferType*>(&ours);
    problem = self_test(slot.type, &attends);
    if (!problem.empty()) {
        for (size_t i = 0; i < types.size(); i++) types[i]->context = contexts[i];
        type = slot.was;
        variant = nullptr;
    }
    return problem;
}

}   // namespace edgellm
