// Threads that walk through one forward pass together: shares of each step's work, and a barrier between the steps.
//
// A pass has some hundred short steps, so a sleep and a wake-up for each would cost more than the work. Threads
// spin for some microseconds and only then sleep: on a machine with other work, a late thread does not burn a core.
#pragma once

#include <immintrin.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace ziya {

constexpr int SPINS = 2000;

inline void wait_while(std::atomic<unsigned>& phase, unsigned old) {
  for (int spin = 0; spin < SPINS; ++spin) {
    if (phase.load(std::memory_order_acquire) != old) return;
    _mm_pause();
  }
  while (phase.load(std::memory_order_acquire) == old) phase.wait(old, std::memory_order_acquire);
}

class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}

  void wait() {
    if (threads_ == 1) return;
    const unsigned phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < threads_) return wait_while(phase_, phase);
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    phase_.notify_all();
  }

 private:
  const int threads_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> phase_{0};
};

// The items of one step. Each thread has a run of neighbours of its own, so that it can fetch what comes next from
// memory early; who has finished takes from the others. A run is one word, where it ends and the next item, so
// that nobody sees half a change.
class Shares {
 public:
  explicit Shares(int threads) : runs_(threads) {}

  // By each thread for itself, at the beginning of a step.
  void deal(int thread, int items) {
    const uint64_t threads = runs_.size(), count = items;
    const uint64_t first = count * thread / threads, end = count * (thread + 1) / threads;
    runs_[thread].word.store(end << 32 | first, std::memory_order_release);
  }

  // The next item for `thread`, or -1. A run that its owner has not dealt yet looks finished, and is left to it.
  int take(int thread) {
    const int threads = static_cast<int>(runs_.size());
    for (int other = 0; other < threads; ++other) {
      auto& word = runs_[(thread + other) % threads].word;
      if (finished(word.load(std::memory_order_acquire))) continue;
      const uint64_t taken = word.fetch_add(1, std::memory_order_acq_rel);
      if (!finished(taken)) return static_cast<int>(taken & 0xffffffff);
    }
    return -1;
  }

 private:
  static bool finished(uint64_t word) { return (word & 0xffffffff) >= word >> 32; }

  struct alignas(64) Run {
    std::atomic<uint64_t> word{0};
  };
  std::vector<Run> runs_;
};

// The threads; the caller of `run` is one of them.
class Team {
 public:
  explicit Team(int threads) : threads_(threads), barrier_(threads), shares_{Shares(threads), Shares(threads)} {
    for (int t = 1; t < threads; ++t) workers_.emplace_back([this, t] { work(t); });
  }

  ~Team() {
    stopping_ = true;
    start();
    for (auto& worker : workers_) worker.join();
  }

  int threads() const { return threads_; }

  // Runs `body(thread)` on all threads, the caller among them.
  void run(const std::function<void(int)>& body) {
    body_ = &body;
    start();
    body(0);
    barrier_.wait();
  }

  // Inside a body, by all threads alike: `item(index)` for each of `items`; all are done when it returns. Two sets of
  // shares take turns: while one thread deals the next step's, another may still look into the last one's.
  template <class Item>
  void each(int thread, int items, unsigned& turn, const Item& item) {
    Shares& shares = shares_[turn++ & 1];
    shares.deal(thread, items);
    for (int i; (i = shares.take(thread)) >= 0;) item(i);
    barrier_.wait();
  }

 private:
  void start() {
    phase_.fetch_add(1, std::memory_order_release);
    phase_.notify_all();
  }

  void work(int thread) {
    for (unsigned seen = 0;;) {
      wait_while(phase_, seen);
      seen = phase_.load(std::memory_order_acquire);
      if (stopping_) return;
      (*body_)(thread);
      barrier_.wait();
    }
  }

  const int threads_;
  Barrier barrier_;
  Shares shares_[2];
  const std::function<void(int)>* body_ = nullptr;
  bool stopping_ = false;
  alignas(64) std::atomic<unsigned> phase_{0};
  std::vector<std::thread> workers_;
};

}  // namespace ziya
