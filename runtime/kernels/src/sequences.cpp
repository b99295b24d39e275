#include "sequences.h"

#include <algorithm>

namespace edgellm {

namespace {

template <class T>
void grow(std::vector<T>& v, int64_t n, const T& fill) {
    if (static_cast<int64_t>(v.size()) < n) v.resize(static_cast<size_t>(n), fill);
}

}   // namespace

void Sequences::tell(int64_t n, const int32_t* ids, const int32_t* positions) {
    ids_.assign(ids, ids + n);
    positions_.assign(positions, positions + n);
    runs_.clear();
    for (int64_t i = 0; i < n; i++) {
        const bool goes_on = i > 0 && ids[i] == ids[i - 1] && positions[i] == positions[i - 1] + 1;
        if (!goes_on) runs_.push_back({i, i, ids[i], 0});
        runs_.back().last = i + 1;
        runs_.back().n_cells = positions[i] + 1;
    }
}

void Sequences::copy(int32_t from, int32_t to, int64_t n) {
    for (auto& entry : caches_) {
        std::vector<std::vector<int32_t>>& cells = entry.second.cells;
        grow(cells, std::max(from, to) + 1, {});
        const std::vector<int32_t>& source = cells[static_cast<size_t>(from)];
        const int64_t n_known = std::min(n, static_cast<int64_t>(source.size()));
        std::vector<int32_t> copied(source.begin(), source.begin() + n_known);
        cells[static_cast<size_t>(to)] = std::move(copied);
    }
}

void Sequences::write(const void* base, int64_t n, const int64_t* cells) {
    if (n != static_cast<int64_t>(ids_.size())) return;
    Cache& cache = caches_[base];
    for (int64_t i = 0; i < n; i++) {
        const size_t at = static_cast<size_t>(i), position = static_cast<size_t>(positions_[at]);
        grow(cache.cells, ids_[at] + 1, {});
        std::vector<int32_t>& sequence = cache.cells[static_cast<size_t>(ids_[at])];
        grow(sequence, positions_[at] + 1, int32_t{-1});
        sequence[position] = static_cast<int32_t>(cells[i]);
        grow(cache.positions, cells[i] + 1, int32_t{-1});
        cache.positions[static_cast<size_t>(cells[i])] = positions_[at];
    }
}

const std::vector<Sequences::Run>& Sequences::runs(int64_t n) const { return n == static_cast<int64_t>(ids_.size()) ? runs_ : none_; }

bool Sequences::places(const void* base, const Run& run, std::vector<int32_t>* out) const {
    const auto found = caches_.find(base);
    if (found == caches_.end() || static_cast<int64_t>(found->second.cells.size()) <= run.sequence) return false;
    const std::vector<int32_t>& sequence = found->second.cells[static_cast<size_t>(run.sequence)];
    if (static_cast<int64_t>(sequence.size()) < run.n_cells) return false;
    out->resize(static_cast<size_t>(run.n_cells));
    for (size_t p = 0; p < out->size(); p++) {
        // A window that slides lets go of a cell, which then holds another position.
        const int32_t cell = sequence[p];
        (*out)[p] = cell >= 0 && found->second.positions[static_cast<size_t>(cell)] == static_cast<int32_t>(p) ? cell : -1;
    }
    return true;
}

}   // namespace edgellm
