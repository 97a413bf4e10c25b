// A weight matrix packed for multiplication, rows of activations, and their product.
//
// The matrix stands in tiles of 64 outputs (16 with AVX2); within a tile, step after step of the inputs, 4 bytes for each
// output. A thread takes a tile and runs all rows over it, up to 6 at once: 24 (12) sums stay in registers while the
// tile goes by once for each 6 rows (3 with 4-bit weights, which need more sums). The first pass streams it from memory,
// the others find it in the core's own cache; meanwhile they fetch the next tile, so that memory never rests. With one
// row there is nothing to hide behind: its speed is the memory's.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <vector>

#include "numbers.h"

namespace ziya {

constexpr size_t HUGE_PAGE = 2 << 20;
constexpr int TILE = LANES * BANDS, STEP_BYTES = TILE * 4;
constexpr int GROUP = 64, GROUP_STEPS = GROUP / 4;  // inputs of a 4-bit weight matrix that share a scale

constexpr int most_rows(Kind kind) { return kind == INT4 ? 3 : 6; }  // so many sums that registers hold

constexpr int words_of(Kind kind, int width) { return width / per_step(kind) * parts(kind); }  // of a left side's row

template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer(Buffer&& other) noexcept : data_(other.data_), size_(other.size_) { other.data_ = nullptr, other.size_ = 0; }
  ~Buffer() { std::free(data_); }

  // At least so many; what was in it may be lost.
  void reserve(size_t size) {
    if (size <= size_) return;
    std::free(data_);
    const size_t page = size * sizeof(T) >= HUGE_PAGE ? HUGE_PAGE : 4096, bytes = (size * sizeof(T) + page - 1) / page * page;
    data_ = static_cast<T*>(std::aligned_alloc(page, bytes));
    if (!data_) throw std::bad_alloc();
    if (page == HUGE_PAGE) madvise(data_, bytes, MADV_HUGEPAGE);  // else a weight matrix costs a TLB miss every 4 KiB
    std::memset(static_cast<void*>(data_), 0, bytes);
    size_ = size;
  }

  T* data() const { return data_; }

 private:
  T* data_ = nullptr;
  size_t size_ = 0;
};

// Rows as the left side of a product: 4-byte words, `words` in a row; 8-bit numbers are x / scale + LEFT_OFFSET.
struct Activations {
  Buffer<uint32_t> values;
  Buffer<float> scales;
  int words = 0;

  void shape(Kind kind, int rows, int width) {
    words = words_of(kind, width);
    values.reserve(static_cast<size_t>(rows) * words);
    scales.reserve(rows);
  }
  uint32_t* row(int number) const { return values.data() + static_cast<size_t>(number) * words; }
};

// Turns a row of floats into row `number`. `width` is a multiple of 16.
template <Kind kind>
inline void put_row(Activations& to, int number, const float* from, int width) {
  uint32_t* row = to.row(number);
  if constexpr (quantised(kind)) {
    Floats largest = all(1e-20f);
    for (int i = 0; i < width; i += LANES) largest = larger(largest, size_of(load(from + i)));
    const float most = largest_of(largest);
    to.scales.data()[number] = most / 127;
    for (int i = 0; i < width; i += LANES) put_left<kind>(row, i, load(from + i) * all(127 / most));
  } else {
    for (int i = 0; i < width; i += LANES) put_left<kind>(row, i, load(from + i));
  }
}

struct Matrix {
  Kind kind = FLOAT32;
  int outputs = 0, inputs = 0, tiles = 0, steps = 0;
  Buffer<char> data;
  Buffer<float> scales;   // INT8: of an output; INT4: [tile][group][TILE]
  Buffer<float> offsets;  // of an output: what the LEFT_OFFSET of a left side's numbers has added to the product

  int chunks() const { return kind == INT4 ? steps / 2 : steps; }  // of STEP_BYTES that a tile has
  const char* tile(int number) const { return data.data() + static_cast<size_t>(number) * chunks() * STEP_BYTES; }
  const float* scales_of(int number) const { return scales.data() + static_cast<size_t>(number) * TILE * groups(); }

  void shape(Kind as, int columns, int ins) {
    if (data.data()) return;
    kind = as, outputs = columns, inputs = ins, tiles = (columns + TILE - 1) / TILE, steps = ins / per_step(left_of(as));
    data.reserve(static_cast<size_t>(tiles) * chunks() * STEP_BYTES);
    scales.reserve(static_cast<size_t>(tiles) * TILE * groups()), offsets.reserve(tiles * TILE);
  }

  // Column `number` from its weights; columns may be packed side by side by several threads.
  template <class T>
  void pack(int number, const T* weights) {
    if (kind == INT4) return pack_four(number, weights);
    float scale = 1;
    if (kind == INT8) {
      float most = 1e-20f;
      for (int i = 0; i < inputs; ++i) most = std::max(most, std::abs(one(weights + i)));
      scales.data()[number] = scale = most / 127;
    }
    char* to = data.data() + static_cast<size_t>(number / TILE) * steps * STEP_BYTES + number % TILE * 4;
    const int wide = bytes_of(kind), each = per_step(kind);
    int32_t sum = 0;
    for (int i = 0; i < inputs; ++i) {
      char* at = to + static_cast<size_t>(i / each) * STEP_BYTES + i % each * wide;
      const float value = one(weights + i);
      if (kind == FLOAT32) std::memcpy(at, &value, 4);
      if (kind == BFLOAT16) put(reinterpret_cast<uint16_t*>(at), value);
      if (kind == INT8) sum += *at = static_cast<signed char>(std::lrintf(value / scale));
    }
    offsets.data()[number] = static_cast<float>(LEFT_OFFSET) * sum;
  }

 private:
  int groups() const { return kind == INT4 ? inputs / GROUP : 1; }

  // Of each group the largest weight becomes -8, so that all 16 values may be used; 8 is added to keep them positive.
  template <class T>
  void pack_four(int number, const T* weights) {
    char* to = data.data() + static_cast<size_t>(number / TILE) * chunks() * STEP_BYTES + number % TILE * 4;
    float offset = 0;
    for (int group = 0; group < groups(); ++group) {
      float most = 1e-20f;
      for (int i = group * GROUP; i < (group + 1) * GROUP; ++i)
        if (std::abs(one(weights + i)) > std::abs(most)) most = one(weights + i);
      const float scale = most / -8;
      int sum = 0;
      for (int i = group * GROUP; i < (group + 1) * GROUP; ++i) {
        const int value = std::clamp(static_cast<int>(std::lrintf(one(weights + i) / scale)), -8, 7);
        to[static_cast<size_t>(i / 8) * STEP_BYTES + i % 4] |= (value + 8) << (i % 8 / 4 * 4);
        sum += value;
      }
      scales.data()[(static_cast<size_t>(number / TILE) * groups() + group) * TILE + number % TILE] = scale;
      offset += static_cast<float>(LEFT_OFFSET) * scale * sum;
    }
    offsets.data()[number] = offset;
  }
};

// One part of a step, `right`, for `rows` rows.
template <Kind kind, int rows>
inline void add_part(const uint32_t* left, size_t words, const Words (&right)[BANDS], Sum<kind> (&sums)[rows][BANDS]) {
#pragma GCC unroll 8
  for (int row = 0; row < rows; ++row) {
    if constexpr (parts(kind) == 2) __asm__ volatile("" ::: "memory");  // no load earlier: registers are few
    const Words value = all(left[row * words]);
#pragma GCC unroll 8
    for (int band = 0; band < BANDS; ++band) sums[row][band] = dot<kind>(sums[row][band], value, right[band]);
  }
}

// A whole step; `step_of(band)` gives a register of its weights.
template <Kind kind, int rows, class StepOf>
inline void add_step(const uint32_t* left, size_t words, const StepOf& step_of, Sum<kind> (&sums)[rows][BANDS]) {
  Words right[BANDS];
#pragma GCC unroll 8
  for (int band = 0; band < BANDS; ++band) right[band] = part_of<kind, 0>(step_of(band));
  add_part<kind, rows>(left, words, right, sums);
  if constexpr (parts(kind) == 2) {
#pragma GCC unroll 8
    for (int band = 0; band < BANDS; ++band) right[band] = part_of<kind, 1>(step_of(band));
    add_part<kind, rows>(left + 1, words, right, sums);
  }
}

// `rows` rows over one tile into totals[row][band]. If `fetching`, fetches `fetched` lines a step from `ahead` on. The
// sums are an array of its own, in loops that are unrolled early, since only so the compiler keeps them in registers.
template <Kind kind, int rows, bool fetching>
inline void multiply(const uint32_t* left, size_t words, const char* tile, int steps, const char* ahead, int fetched,
                     Sum<kind> (&totals)[rows][BANDS]) {
  Sum<kind> sums[rows][BANDS];
#pragma GCC unroll 8
  for (int row = 0; row < rows; ++row)
#pragma GCC unroll 8
    for (int band = 0; band < BANDS; ++band) sums[row][band] = zero<kind>();
  for (int step = 0; step < steps; ++step) {
    const char* at = tile + static_cast<size_t>(step) * STEP_BYTES;
    if constexpr (fetching)
      for (int line = 0; line < fetched; ++line) _mm_prefetch(ahead + (step * fetched + line) * 64, _MM_HINT_T1);
    const auto step_of = [at](int band) { return load_bits(at + band * sizeof(Words)); };
    add_step<kind, rows>(left + step * parts(kind), words, step_of, sums);
  }
#pragma GCC unroll 8
  for (int row = 0; row < rows; ++row)
#pragma GCC unroll 8
    for (int band = 0; band < BANDS; ++band) totals[row][band] = sums[row][band];
}

// The same with 4-bit weights: two steps come out of one load, and each group's whole sums are scaled into floats.
template <int rows>
inline void multiply_four(const uint32_t* left, size_t words, const char* tile, const float* scales, int steps,
                          const char* ahead, int fetched, Floats (&totals)[rows][BANDS]) {
  for (auto& row : totals)
    for (auto& total : row) total = all(0.f);
  for (int step = 0; step < steps; step += GROUP_STEPS, scales += TILE) {
    Sum<INT8> sums[rows][BANDS];
#pragma GCC unroll 8
    for (int row = 0; row < rows; ++row)
#pragma GCC unroll 8
      for (int band = 0; band < BANDS; ++band) sums[row][band] = zero<INT8>();
    for (int pair = step; pair < step + GROUP_STEPS; pair += 2, tile += STEP_BYTES) {
      for (int line = 0; line < fetched; ++line) _mm_prefetch(ahead + (pair / 2 * fetched + line) * 64, _MM_HINT_T1);
      const auto first = [tile](int band) { return low_nibbles(load_bits(tile + band * sizeof(Words))); };
      const auto second = [tile](int band) { return high_nibbles(load_bits(tile + band * sizeof(Words))); };
      add_step<INT8, rows>(left + pair * parts(INT8), words, first, sums);
      add_step<INT8, rows>(left + (pair + 1) * parts(INT8), words, second, sums);
    }
#pragma GCC unroll 8
    for (int row = 0; row < rows; ++row)
#pragma GCC unroll 8
      for (int band = 0; band < BANDS; ++band)
        totals[row][band] = multiply_add(floats(sums[row][band]), load(scales + band * LANES), totals[row][band]);
  }
}

// Products of rows `first`.. over one tile, each handed to `take(row, column of the tile, BANDS registers of floats)`.
template <Kind kind, int rows, class Take>
inline void rows_over_tile(const Activations& left, int first, const Matrix& right, int number, const char* ahead,
                           int fetched, const Take& take) {
  Floats totals[rows][BANDS];
  if constexpr (kind == INT4) {
    multiply_four<rows>(left.row(first), left.words, right.tile(number), right.scales_of(number), right.steps, ahead,
                        fetched, totals);
  } else {
    Sum<kind> sums[rows][BANDS];
    const auto run = fetched ? multiply<kind, rows, true> : multiply<kind, rows, false>;
    run(left.row(first), left.words, right.tile(number), right.steps, ahead, fetched, sums);
    for (int row = 0; row < rows; ++row)
      for (int band = 0; band < BANDS; ++band) totals[row][band] = floats(sums[row][band]);
  }
  for (int row = 0; row < rows; ++row) {
    if constexpr (quantised(kind)) {
      const Floats scale = all(left.scales.data()[first + row]);
      for (int band = 0; band < BANDS; ++band) {
        const Floats offset = load(right.offsets.data() + number * TILE + band * LANES);
        const Floats factor = kind == INT4 ? scale : scale * load(right.scales_of(number) + band * LANES);
        totals[row][band] = (totals[row][band] - offset) * factor;
      }
    }
    take(first + row, number * TILE, totals[row]);
  }
}

// All of `count` rows from `first` on over tile `number`, in passes as equal as can be; `fetching` has them fetch the next
// tile. A single pass reads as fast as memory gives, and fetches at most what it needs soon itself.
template <Kind kind, class Take>
inline void over_tile(const Activations& left, int first, int count, const Matrix& right, int number, bool fetching,
                      const Take& take) {
  constexpr int most = most_rows(kind);
  const int passes = (count + most - 1) / most;
  constexpr int lines_a_step = STEP_BYTES / 64;
  const int fetched = passes <= 3 && lines_a_step > 1 ? 2 : 1;
  const char* next = number + 1 < right.tiles ? right.tile(number + 1) : nullptr;
  const bool alone = passes == 1;
  for (int pass = 0; pass < passes; ++pass) {
    const int from = first + count * pass / passes, rows = first + count * (pass + 1) / passes - from;
    const bool fetch = alone ? SOON > 0 : fetching && next && pass * fetched < lines_a_step;
    const char* ahead = nullptr;
    if (fetch) ahead = alone ? right.tile(number) + SOON : next + static_cast<size_t>(pass) * fetched * right.chunks() * 64;
    const int lines = fetch ? fetched : 0;
    const auto run = [&]<int n>() { rows_over_tile<kind, n>(left, from, right, number, ahead, lines, take); };
    if (rows == 1) run.template operator()<1>();
    else if (rows == 2) run.template operator()<2>();
    else if (rows == 3) run.template operator()<3>();
    else if constexpr (most > 3) {
      if (rows == 4) run.template operator()<4>();
      else if (rows == 5) run.template operator()<5>();
      else run.template operator()<6>();
    }
  }
}

}  // namespace ziya
