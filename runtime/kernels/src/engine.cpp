#include "engine.h"

#include <cstring>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace edgellm::ggml {

Engine engine;

namespace {

#if defined(_WIN32)

// The path is UTF-8. What the library itself needs lies beside it.
void* open_library(const char* path) {
    wchar_t wide[32768];
    if (!MultiByteToWideChar(CP_UTF8, 0, path, -1, wide, 32768)) return nullptr;
    return reinterpret_cast<void*>(LoadLibraryExW(wide, nullptr, LOAD_WITH_ALTERED_SEARCH_PATH));
}
void* symbol_of(void* library, const char* name) {
    const FARPROC symbol = GetProcAddress(static_cast<HMODULE>(library), name);
    void* address;
    std::memcpy(&address, &symbol, sizeof address);
    return address;
}

#else

void* open_library(const char* path) { return dlopen(path, RTLD_NOW | RTLD_LOCAL); }
void* symbol_of(void* library, const char* name) { return dlsym(library, name); }

#endif

std::string find_functions(const char* base_path, const char* cpu_path) {
    void *base = open_library(base_path), *cpu = open_library(cpu_path);
    if (!base || !cpu) return "llama.cpp's libraries cannot be opened";
    std::string missing;
    auto find = [&](void* library, auto& function, const char* name) {
        void* symbol = symbol_of(library, name);
        if (!symbol && missing.empty()) missing = name;
        std::memcpy(&function, &symbol, sizeof symbol);
    };
    find(base, engine.version, "ggml_version");
    find(base, engine.commit, "ggml_commit");
    find(base, engine.op_name, "ggml_op_name");
    find(base, engine.type_name, "ggml_type_name");
    find(base, engine.nbytes, "ggml_nbytes");
    find(base, engine.tensor_overhead, "ggml_tensor_overhead");
    find(base, engine.init, "ggml_init");
    find(base, engine.free, "ggml_free");
    find(base, engine.new_tensor_2d, "ggml_new_tensor_2d");
    find(base, engine.new_tensor_3d, "ggml_new_tensor_3d");
    find(base, engine.mul_mat, "ggml_mul_mat");
    find(base, engine.mul_mat_id, "ggml_mul_mat_id");
    find(base, engine.flash_attn_ext, "ggml_flash_attn_ext");
    find(base, engine.new_graph, "ggml_new_graph");
    find(base, engine.build_forward_expand, "ggml_build_forward_expand");
    find(base, engine.quantize_chunk, "ggml_quantize_chunk");
    find(base, engine.buffer_free, "ggml_backend_buffer_free");
    find(base, engine.buffer_get_size, "ggml_backend_buffer_get_size");
    find(base, engine.buffer_get_type, "ggml_backend_buffer_get_type");
    find(base, engine.cpu_buffer_type, "ggml_backend_cpu_buffer_type");
    find(base, engine.buft_name, "ggml_backend_buft_name");
    find(base, engine.alloc_ctx_tensors_from_buft, "ggml_backend_alloc_ctx_tensors_from_buft");
    find(base, engine.tensor_set, "ggml_backend_tensor_set");
    find(base, engine.tensor_get, "ggml_backend_tensor_get");
    find(base, engine.graph_compute, "ggml_backend_graph_compute");
    find(base, engine.backend_free, "ggml_backend_free");
    find(base, engine.reg_dev_get, "ggml_backend_reg_dev_get");
    find(base, engine.reg_get_proc_address, "ggml_backend_reg_get_proc_address");
    find(cpu, engine.cpu_reg, "ggml_backend_cpu_reg");
    find(cpu, engine.cpu_init, "ggml_backend_cpu_init");
    find(cpu, engine.cpu_set_n_threads, "ggml_backend_cpu_set_n_threads");
    return missing.empty() ? "" : "llama.cpp's libraries lack " + missing;
}

std::string check_version() {
    const std::string version = engine.version(), commit = engine.commit();
    if (version == "0.25.3" && (commit.compare(0, 7, "0c1e570") == 0 || commit == "unknown")) return "";
    return "the installed ggml is " + version + " (" + commit + "), not 0.25.3 (0c1e570)";
}

// The structures as declared here against what the library makes of them.
std::string check_structures() {
    const char* wrong = "llama.cpp's structures are not laid out as expected: ";
    if (engine.tensor_overhead() != sizeof(Tensor) + 32) return std::string(wrong) + "size of a tensor";
    int f32 = 0;
    if (std::strcmp(engine.type_name(f32), "f32") != 0) return std::string(wrong) + "numbers of the types";
    for (int i = 0; i < 200 && engine.mul_mat_op < 0; i++) {
        const char* name = engine.op_name(i);
        if (name && std::strcmp(name, "MUL_MAT") == 0) engine.mul_mat_op = i;
        if (name && std::strcmp(name, "MUL_MAT_ID") == 0) break;   // beyond it lies no earlier operation, and soon no name at all
    }
    for (int i = engine.mul_mat_op; i >= 0 && i < 100 && engine.attention_op < 0; i++) {   // a hundred is within this version's names
        if (std::strcmp(engine.op_name(i), "MUL_MAT_ID") == 0) engine.mul_mat_id_op = i;
        if (std::strcmp(engine.op_name(i), "SET_ROWS") == 0) engine.set_rows_op = i;
        if (std::strcmp(engine.op_name(i), "FLASH_ATTN_EXT") == 0) engine.attention_op = i;
    }
    if (engine.mul_mat_op < 0 || engine.mul_mat_id_op < 0 || engine.attention_op < 0 || engine.set_rows_op < 0) {
        return std::string(wrong) + "numbers of the operations";
    }
    constexpr int numbers[kTypes] = {2, 3, 6, 7, 8, 20, 12, 13, 14, 39, 23, 11, 10, 21, 18, 1, 30, 16, 17, 22, 34, 35, 41};
    for (int t = 0; t < kTypes; t++) {
        engine.type_of[t] = numbers[t];
        if (std::strcmp(engine.type_name(numbers[t]), kInfo[t].name) != 0) return std::string(wrong) + "numbers of the types";
    }
    if (std::strcmp(engine.type_name(kF16), "f16") != 0 || std::strcmp(engine.type_name(kBf16), "bf16") != 0 ||
        std::strcmp(engine.type_name(kI32), "i32") != 0 || std::strcmp(engine.type_name(kI64), "i64") != 0)
        return std::string(wrong) + "numbers of the types";
    void* context = engine.init({1 << 16, nullptr, true});
    if (!context) return "ggml gives no context";
    Tensor* a = engine.new_tensor_2d(context, numbers[Q4_K], 512, 48);
    Tensor* b = engine.new_tensor_2d(context, f32, 512, 3);
    Tensor* c = engine.mul_mat(context, a, b);
    const bool tensors = a->type == numbers[Q4_K] && a->ne[0] == 512 && a->ne[1] == 48 && a->ne[2] == 1 && a->nb[0] == 144 && a->nb[1] == 288 &&
                         !a->buffer && !a->data && !a->view_src && !a->extra && b->nb[1] == 2048 && c->op == engine.mul_mat_op && c->src[0] == a &&
                         c->src[1] == b && !c->src[2] && c->type == f32 && c->ne[0] == 48 && c->ne[1] == 3 && a->name[0] == 0 &&
                         engine.nbytes(a) == 48 * 288;
    engine.free(context);
    if (!tensors) return std::string(wrong) + "fields of a tensor";
    BufferType* stock = engine.cpu_buffer_type();
    if (!stock || !stock->get_name || stock->get_name(stock) != engine.buft_name(stock) || !stock->is_host || !stock->is_host(stock) ||
        stock->get_alignment(stock) > 4096) {
        return std::string(wrong) + "buffer type";
    }
    Buffer* buffer = stock->alloc_buffer(stock, 4096);
    const bool buffers = buffer && buffer->buft == stock && engine.buffer_get_type(buffer) == stock &&
                         buffer->size == engine.buffer_get_size(buffer) && buffer->size >= 4096 && buffer->usage == 0 && buffer->iface.get_base &&
                         buffer->iface.get_base(buffer) == buffer->context;
    if (buffer) engine.buffer_free(buffer);
    return buffers ? "" : std::string(wrong) + "buffer";
}

}   // namespace

std::string find_engine(const char* ggml_base_path, const char* ggml_cpu_path) {
    std::string problem = find_functions(ggml_base_path, ggml_cpu_path);
    if (problem.empty()) problem = check_version();
    return problem.empty() ? check_structures() : problem;
}

}   // namespace edgellm::ggml
