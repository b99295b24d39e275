// Several sequences in one cache: which cell holds which position of which. llama.cpp takes any cell that is free, so the cells of one
// lie between those of others and in any order. Attention goes through them in the order of the text, as if it had the cache for
// itself: a row's bits then do not depend on what else is there.
#pragma once
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace edgellm {

// The sequences of one context. Told before each pass which token belongs where; learns the cells as they are written.
class Sequences {
public:
    // The next pass is over `n` tokens of these sequences at these positions.
    void tell(int64_t n, const int32_t* ids, const int32_t* positions);
    // The first `n` tokens of a sequence are another's as well.
    void copy(int32_t from, int32_t to, int64_t n);
    // Token i of the pass is written to cell cells[i] of the cache at `base`.
    void write(const void* base, int64_t n, const int64_t* cells);

    // Tokens [first, last) of the pass that belong to one sequence, behind each other.
    struct Run {
        int64_t first, last;
        int32_t sequence;
        int64_t n_cells;   // of the sequence, up to its last token in this pass
    };
    // Of the pass, if it is over `n` tokens; empty otherwise.
    const std::vector<Run>& runs(int64_t n) const;
    // The cells of a run in the cache at `base`, in the order of the text; -1 where a position has none any more. False where the
    // cache is not known.
    bool places(const void* base, const Run& run, std::vector<int32_t>* out) const;

private:
    struct Cache {
        std::vector<std::vector<int32_t>> cells;   // [sequence][position]
        std::vector<int32_t> positions;            // [cell]
    };
    std::unordered_map<const void*, Cache> caches_;
    std::vector<int32_t> ids_, positions_;
    std::vector<Run> runs_, none_;
};

}   // namespace edgellm
