// Where the threads of a pass wait for each other, of any number of thread pools at once.
#pragma once
#include <atomic>
#include <thread>

namespace edgellm {

// Of one thread: the pool that it works for, and how many threads that has.
struct Meeting {
    void* pool;
    int n_threads;
};

// Returns when all threads of the meeting's pool have called it. They wait for microseconds, so they spin, and make way for others
// when it takes longer.
inline void join(void* meeting) {
    struct Place {
        void* pool = nullptr;   // that waits here; nullptr: nobody does
        int n_here = 0;
        std::atomic<unsigned> round{0};
    };
    static Place places[64];
    static std::atomic_flag locked = ATOMIC_FLAG_INIT;   // of pools and counts
    const Meeting& m = *static_cast<const Meeting*>(meeting);
    if (m.n_threads < 2) return;
    Place* place = nullptr;
    unsigned round = 0;
    while (!place) {   // a free place is found at the first look but for more than 64 pools that wait at the same moment
        while (locked.test_and_set(std::memory_order_acquire)) std::this_thread::yield();
        Place* free = nullptr;
        for (Place& p : places) {
            if (p.pool == m.pool) place = &p;
            if (!p.pool && !free) free = &p;
        }
        if (!place) place = free;
        if (place) {
            place->pool = m.pool;
            round = place->round.load(std::memory_order_relaxed);
            if (++place->n_here == m.n_threads) {
                place->pool = nullptr, place->n_here = 0;
                place->round.store(round + 1, std::memory_order_release);
                locked.clear(std::memory_order_release);
                return;
            }
        }
        locked.clear(std::memory_order_release);
    }
    for (int i = 0; place->round.load(std::memory_order_acquire) == round; i++) {
        if (i > 4096) std::this_thread::yield();
    }
}

}   // namespace edgellm
