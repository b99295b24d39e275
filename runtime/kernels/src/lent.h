// Weights that another machine writes into this one's plain memory, as llama.cpp's RPC server lets it: packed as they come.
#pragma once
#include "ggml_abi.h"
#include "layout.h"

namespace edgellm {

struct Lent {
    Type type;
    int64_t rows, k, n_experts;   // rows of one expert; 1 expert: a matrix
    void* packed;
};

using Claims = bool (*)(const ggml::Tensor*, Type*);

// From now on a matrix of a layer that is written as a whole into a buffer of the CPU is packed beside it, by `n_threads`. The pages
// that it would have filled are never touched, so that it is held once.
void pack_what_is_lent(Claims claims, int n_threads);

// The packed form of a matrix; nullptr where it was not packed. Ends the process where its own pages are asked for in another shape.
const Lent* lent(const ggml::Tensor* w);

// Whether the memory of `x` lies in a matrix that was packed, so that its own pages hold nothing.
bool is_lent(const ggml::Tensor* x);

}   // namespace edgellm
