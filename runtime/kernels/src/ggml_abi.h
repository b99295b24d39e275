// The few structures of ggml 0.25.3 (llama.cpp 0c1e57098, in llama-cpp-python 0.3.36) that the plug-in reads or fills, declared
// here so that no header of llama.cpp is needed to build. engine.cpp checks every one of them against the loaded library.
#pragma once
#include <cstddef>
#include <cstdint>

namespace edgellm::ggml {

struct Buffer;
struct BufferType;
struct Device;

struct Tensor {
    int type;
    Buffer* buffer;
    int64_t ne[4];   // elements along each axis, the fastest first
    size_t nb[4];    // bytes from one to the next along each axis
    int op;
    int32_t op_params[16];
    int32_t flags;
    Tensor* src[10];
    Tensor* view_src;
    size_t view_offs;
    void* data;
    char name[64];
    void* extra;
    char padding[8];
};

struct BufferType {
    const char* (*get_name)(BufferType*);
    Buffer* (*alloc_buffer)(BufferType*, size_t);
    size_t (*get_alignment)(BufferType*);
    size_t (*get_max_size)(BufferType*);
    size_t (*get_alloc_size)(BufferType*, const Tensor*);
    bool (*is_host)(BufferType*);
    Device* device;
    void* context;
};

struct BufferInterface {
    void (*free_buffer)(Buffer*);
    void* (*get_base)(Buffer*);
    int (*init_tensor)(Buffer*, Tensor*);
    void (*memset_tensor)(Buffer*, Tensor*, uint8_t, size_t, size_t);
    void (*set_tensor)(Buffer*, Tensor*, const void*, size_t, size_t);
    void (*get_tensor)(Buffer*, const Tensor*, void*, size_t, size_t);
    void* set_tensor_2d;
    void* get_tensor_2d;
    bool (*cpy_tensor)(Buffer*, const Tensor*, Tensor*);
    void (*clear)(Buffer*, uint8_t);
    void (*reset)(Buffer*);
};

struct Buffer {
    BufferInterface iface;
    BufferType* buft;
    void* context;
    size_t size;
    int usage;
};

struct ComputeParams {
    int ith, nth;
    size_t wsize;
    void* wdata;
    void* threadpool;
    bool use_ref;
};

// The order of the virtual functions is the interface: two destructor slots, then these.
struct TensorTraits {
    virtual ~TensorTraits() = default;
    virtual bool work_size(int n_threads, const Tensor* op, size_t& size) = 0;
    virtual bool compute_forward(ComputeParams* params, Tensor* op) = 0;
};

struct ExtraBufferType {
    virtual ~ExtraBufferType() = default;
    virtual bool supports_op(Device* device, const Tensor* op) = 0;
    virtual TensorTraits* get_tensor_traits(const Tensor* op) = 0;
};

}   // namespace edgellm::ggml
