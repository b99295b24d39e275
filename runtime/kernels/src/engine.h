// The loaded ggml: the functions of its public interface that are used, and the numbers of its operations and types.
#pragma once
#include <string>

#include "ggml_abi.h"
#include "layout.h"

namespace edgellm::ggml {

// Opaque pointers are void*.
struct Engine {
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
    Tensor* (*mul_mat_id)(void*, Tensor*, Tensor*, Tensor*);
    Tensor* (*flash_attn_ext)(void*, Tensor*, Tensor*, Tensor*, Tensor*, float, float, float);
    void* (*new_graph)(void*);
    void (*build_forward_expand)(void*, Tensor*);
    size_t (*quantize_chunk)(int, const float*, void*, int64_t, int64_t, int64_t, const float*);
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
    // numbers
    int mul_mat_op = -1, mul_mat_id_op = -1, attention_op = -1, set_rows_op = -1;
    int type_of[kTypes];   // ggml's of ours
};

extern Engine engine;

constexpr int kF32 = 0, kF16 = 1, kQ8_0 = 8, kI32 = 26, kI64 = 27, kBf16 = 30;   // ggml's numbers of plain types, and of caches'

// Finds the functions in the libraries at these paths, and checks version, numbers and the structures of ggml_abi.h against what
// the library makes of them. Returns what is not as expected, "" when nothing is.
std::string find_engine(const char* ggml_base_path, const char* ggml_cpu_path);

}   // namespace edgellm::ggml
