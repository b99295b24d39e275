#include "lent.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>

#include "engine.h"

namespace edgellm {

using namespace ggml;

namespace {

struct Kept {
    Lent lent;
    uintptr_t end;   // of its own pages
};

std::map<uintptr_t, Kept> kept;   // by where its own pages begin
std::mutex writing;               // the server writes and computes in turn; other buffers of the process are written whenever
bool lends = false;
Claims claimed;
int n_packing;
BufferType was;
BufferInterface buffers;

uintptr_t at(const void* data) { return reinterpret_cast<uintptr_t>(data); }

std::map<uintptr_t, Kept>::iterator holding(const void* data) {
    auto next = kept.upper_bound(at(data));
    if (next == kept.begin()) return kept.end();
    const auto found = std::prev(next);
    return at(data) < found->second.end ? found : kept.end();
}

void drop(uintptr_t begin, uintptr_t end) {
    auto one = kept.upper_bound(begin);
    if (one != kept.begin()) one = std::prev(one);
    while (one != kept.end() && one->first < end) {
        if (one->second.end <= begin) {
            ++one;
            continue;
        }
        ::operator delete(one->second.lent.packed, std::align_val_t(kLine));
        one = kept.erase(one);
    }
}

// "blk.3.ffn_up.weight": what is multiplied with, and neither looked up nor written by a pass.
bool is_of_layer(const Tensor* x) {
    const size_t n = strnlen(x->name, sizeof x->name);
    return n > 11 && std::memcmp(x->name, "blk.", 4) == 0 && std::memcmp(x->name + n - 7, ".weight", 7) == 0;
}

[[noreturn]] void refuse(const char* why) {
    std::fprintf(stderr, "edgellm kernels: packed weights %s\n", why);
    std::abort();
}

void set_tensor(Buffer* buffer, Tensor* tensor, const void* data, size_t offset, size_t size) {
    const std::lock_guard<std::mutex> lock(writing);
    const size_t n_bytes = engine.nbytes(tensor);
    Type type;
    if (is_of_layer(tensor) && claimed(tensor, &type)) {
        if (offset != 0 || size != n_bytes) refuse("can be written only as a whole");
        drop(at(tensor->data), at(tensor->data) + n_bytes);
        const int64_t rows = tensor->ne[1] * tensor->ne[2], k = tensor->ne[0];
        void* packed = ::operator new(static_cast<size_t>(packed_bytes(type, rows, k)), std::align_val_t(kLine));
        pack(type, data, rows, k, packed, n_packing);
        kept[at(tensor->data)] = {{type, tensor->ne[1], k, tensor->ne[2], packed}, at(tensor->data) + n_bytes};
        return;
    }
    drop(at(tensor->data) + offset, at(tensor->data) + offset + size);
    buffers.set_tensor(buffer, tensor, data, offset, size);
}

void get_tensor(Buffer* buffer, const Tensor* tensor, void* data, size_t offset, size_t size) {
    if (is_lent(tensor)) refuse("cannot be read back");
    buffers.get_tensor(buffer, tensor, data, offset, size);
}

void clear(Buffer* buffer, uint8_t value) {
    const uintptr_t base = at(buffers.get_base(buffer));
    const std::lock_guard<std::mutex> lock(writing);
    drop(base, base + buffer->size);
    buffers.clear(buffer, value);
}

void free_buffer(Buffer* buffer) {
    const uintptr_t base = at(buffers.get_base(buffer));
    {
        const std::lock_guard<std::mutex> lock(writing);
        drop(base, base + buffer->size);
    }
    buffers.free_buffer(buffer);
}

Buffer* allocate(BufferType* type, size_t size) {
    Buffer* buffer = was.alloc_buffer(type, size);
    if (!buffer || !buffer->iface.set_tensor) return buffer;
    buffers = buffer->iface;
    buffer->iface.set_tensor = set_tensor;
    buffer->iface.get_tensor = get_tensor;
    buffer->iface.clear = clear;
    buffer->iface.free_buffer = free_buffer;
    return buffer;
}

}   // namespace

void pack_what_is_lent(Claims claims, int n_threads) {
    if (lends) return;
    claimed = claims, n_packing = n_threads;
    BufferType& type = *engine.cpu_buffer_type();
    was = type;
    type.alloc_buffer = allocate;
    lends = true;
}

const Lent* lent(const Tensor* w) {
    if (!lends || !w || kept.empty()) return nullptr;
    const auto found = holding(w->data);
    if (found == kept.end()) return nullptr;
    const Lent& one = found->second.lent;
    if (found->first != at(w->data) || engine.type_of[one.type] != w->type || w->ne[0] != one.k || w->ne[1] != one.rows ||
        w->ne[2] != one.n_experts) {
        refuse("are asked for in another shape");
    }
    return &one;
}

bool is_lent(const Tensor* x) { return lends && x && x->data && !kept.empty() && holding(x->data) != kept.end(); }

}   // namespace edgellm
