// Several sequences in one cache: which cell holds which position of which. llama.cpp takes any cell that is free, so the cells of one
// lie between those of others and in any order. Attention goes through them in the order of the text, as if it had the cache for
// itself: a row's bits then do not depend on what else is there.
#pragma once
#include <cstdint>
#include <mutex>
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

    // Positions [first, first + n) of a sequence were written by nobody whom we saw; `by_cell` has them in the order of their cells. The
    // next pass, over the one token behind them, shows which cells these are.
    void restore(int32_t sequence, int64_t first, int64_t n, const int32_t* by_cell);
    // Whether it did; to be asked behind that pass.
    bool end_restore();

    // Tokens [first, last) of the pass that belong to one sequence, behind each other.
    struct Run {
        int64_t first, last;
        int32_t sequence;
        int64_t n_cells;   // of the sequence, up to its last token in this pass
    };
    // Of the pass, if it is over `n` tokens; empty otherwise.
    const std::vector<Run>& runs(int64_t n) const;
    // The cells of a run in the cache at `base`, in the order of the text; -1 where a position has none any more. False where the
    // cache is not known. `mask`: what the first token of the run sees of `n_seen` cells, as float16; nullptr: all.
    bool places(const void* base, const Run& run, const uint16_t* mask, int64_t n_seen, std::vector<int32_t>* out);

private:
    // Tensors that are written at the same cells, as the keys of all layers are.
    struct Cache {
        std::vector<std::vector<int32_t>> cells;   // [sequence][position]
        std::vector<int32_t> positions;            // [cell]
        int64_t first_pass = 0, pass = 0;          // in which it was written first, and last
        const int64_t* first_cells = nullptr;      // where the first pass had its cells
        std::vector<int64_t> written;              // in the last
        bool is_known = true;
        bool is_restored = false;
    };
    struct Restored {
        int32_t sequence = -1;
        int64_t first = 0;
        std::vector<int32_t> by_cell;
        int n_caches = 0;
        bool is_found = true;
    };
    Cache& cache_at(const void* base, const int64_t* cells);
    bool find_restored(Cache& cache, const Run& run, const uint16_t* mask, int64_t n_seen);

    std::vector<Cache> caches_;
    std::unordered_map<const void*, size_t> cache_of_;
    std::vector<int32_t> ids_, positions_;
    std::vector<Run> runs_, none_;
    int64_t pass_ = 0;
    Restored restored_;
    std::mutex finding_;   // threads of a pass ask for places at once
};

}   // namespace edgellm
