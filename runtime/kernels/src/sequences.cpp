#include "sequences.h"

#include <algorithm>

namespace edgellm {

namespace {

constexpr uint16_t kSeen = 0;   // in a mask

template <class T>
void grow(std::vector<T>& v, int64_t n, const T& fill) {
    if (static_cast<int64_t>(v.size()) < n) v.resize(static_cast<size_t>(n), fill);
}

}   // namespace

void Sequences::tell(int64_t n, const int32_t* ids, const int32_t* positions) {
    pass_++;
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
    for (Cache& cache : caches_) {
        std::vector<std::vector<int32_t>>& cells = cache.cells;
        grow(cells, std::max(from, to) + 1, {});
        const std::vector<int32_t>& source = cells[static_cast<size_t>(from)];
        const int64_t n_known = std::min(n, static_cast<int64_t>(source.size()));
        std::vector<int32_t> copied(source.begin(), source.begin() + n_known);
        cells[static_cast<size_t>(to)] = std::move(copied);
    }
}

// Tensors that a pass writes by one list of cells lie in one cache, and are from then on.
Sequences::Cache& Sequences::cache_at(const void* base, const int64_t* cells) {
    const auto found = cache_of_.find(base);
    if (found != cache_of_.end()) return caches_[found->second];
    size_t i = 0;
    while (i < caches_.size() && !(caches_[i].first_pass == pass_ && caches_[i].first_cells == cells)) i++;
    if (i == caches_.size()) {
        caches_.emplace_back();
        caches_[i].first_pass = pass_;
        caches_[i].first_cells = cells;
    }
    cache_of_[base] = i;
    return caches_[i];
}

void Sequences::write(const void* base, int64_t n, const int64_t* cells) {
    if (n != static_cast<int64_t>(ids_.size())) return;
    Cache& cache = cache_at(base, cells);
    if (cache.pass == pass_) {
        if (!std::equal(cache.written.begin(), cache.written.end(), cells, cells + n)) cache.is_known = false;
        return;
    }
    cache.pass = pass_;
    cache.written.assign(cells, cells + n);
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

void Sequences::restore(int32_t sequence, int64_t first, int64_t n, const int32_t* by_cell) {
    restored_ = Restored();
    restored_.sequence = sequence;
    restored_.first = first;
    restored_.by_cell.assign(by_cell, by_cell + n);
    for (Cache& cache : caches_) cache.is_restored = false;
}

bool Sequences::end_restore() {
    const bool found = restored_.sequence >= 0 && restored_.is_found && restored_.n_caches > 0;
    restored_ = Restored();
    return found;
}

// The cells that the token sees and that are neither the known beginning's nor its own, in their order.
bool Sequences::find_restored(Cache& cache, const Run& run, const uint16_t* mask, int64_t n_seen) {
    const int64_t first = restored_.first, n = static_cast<int64_t>(restored_.by_cell.size());
    if (!mask || run.last != run.first + 1 || run.n_cells != first + n + 1) return false;
    std::vector<int32_t>& cells = cache.cells[static_cast<size_t>(run.sequence)];
    std::vector<char> others(static_cast<size_t>(n_seen), 0);
    for (int64_t c = 0; c < n_seen; c++) others[static_cast<size_t>(c)] = mask[c] == kSeen;
    for (int64_t p = 0; p < run.n_cells; p++) {
        if (p >= first && p < first + n) continue;
        const int32_t cell = cells[static_cast<size_t>(p)];
        if (cell < 0 || cell >= n_seen || !others[static_cast<size_t>(cell)]) return false;
        others[static_cast<size_t>(cell)] = 0;
    }
    int64_t i = 0;
    grow(cache.positions, n_seen, int32_t{-1});
    for (int64_t c = 0; c < n_seen; c++) {
        if (!others[static_cast<size_t>(c)]) continue;
        if (i == n) return false;
        const int32_t position = restored_.by_cell[static_cast<size_t>(i++)];
        if (position < first || position >= first + n) return false;
        cells[static_cast<size_t>(position)] = static_cast<int32_t>(c);
        cache.positions[static_cast<size_t>(c)] = position;
    }
    return i == n;
}

const std::vector<Sequences::Run>& Sequences::runs(int64_t n) const { return n == static_cast<int64_t>(ids_.size()) ? runs_ : none_; }

bool Sequences::places(const void* base, const Run& run, const uint16_t* mask, int64_t n_seen, std::vector<int32_t>* out) {
    const auto found = cache_of_.find(base);
    if (found == cache_of_.end()) return false;
    Cache& cache = caches_[found->second];
    if (!cache.is_known || static_cast<int64_t>(cache.cells.size()) <= run.sequence) return false;
    if (run.sequence == restored_.sequence) {
        const std::lock_guard<std::mutex> lock(finding_);
        if (!cache.is_restored) {
            cache.is_restored = true;
            restored_.n_caches++;
            if (!find_restored(cache, run, mask, n_seen)) restored_.is_found = false;
        }
    }
    const std::vector<int32_t>& sequence = cache.cells[static_cast<size_t>(run.sequence)];
    if (static_cast<int64_t>(sequence.size()) < run.n_cells) return false;
    out->resize(static_cast<size_t>(run.n_cells));
    for (size_t p = 0; p < out->size(); p++) {
        // A window that slides lets go of a cell, which then holds another position.
        const int32_t cell = sequence[p];
        (*out)[p] = cell >= 0 && cache.positions[static_cast<size_t>(cell)] == static_cast<int32_t>(p) ? cell : -1;
    }
    return true;
}

}   // namespace edgellm
