// Products of a mixture of experts: each column is multiplied with the weights of the experts that its token chose.
#pragma once
#include "layout.h"

namespace edgellm {

// Who chose whom: pair p = slot + token * n_used. The weights of the experts lie one behind the other, each a whole number of groups.
struct Choice {
    const char* ids;    // int32, [token][slot]
    int64_t id_token;   // bytes from one token's to the next
    int64_t n_used, n_tokens, n_experts;
    int64_t pairs() const { return n_used * n_tokens; }
    int32_t of(int64_t pair) const { return reinterpret_cast<const int32_t*>(ids + pair / n_used * id_token)[pair % n_used]; }
};

// y[token][slot][row]; `x` has one column for each slot of a token, or one for all.
struct ExpertProduct {
    Type type;
    const void* packed;
    int64_t rows, k;   // of one expert
    Choice choice;
    Columns x;
    char* y;
    int64_t y_slot, y_token;   // bytes
};

int64_t expert_work_bytes(const Variant& variant, Type type, int64_t k, int64_t n_pairs, int64_t n_experts, int n_threads);
// The share of one thread. An id that is none of an expert is passed over.
void multiply_experts(const Variant& variant, const ExpertProduct& p, void* work, int ith, int nth, void (*barrier)(void*), void* barrier_argument);

}   // namespace edgellm
