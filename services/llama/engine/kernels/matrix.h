// A weight matrix packed for multiplication, rows of activations, and their product.
//
// The matrix stands in tiles of 64 outputs; within a tile, step after step of the inputs, 64 times 4 bytes. A thread
// takes a tile and runs all rows over it, up to 6 at once: 24 sums stay in registers while the tile goes by once
// for each 6 rows (3 with 4-bit weights, which need more sums). The first pass streams it from memory, the others find it in the core's own cache; meanwhile
// they fetch the next tile, so that memory never rests. With one row there is nothing to hide behind: its speed
// is the memory's.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <vector>

#include "numbers.h"

namespace ziya {

constexpr size_t HUGE_PAGE = 2 << 20;
constexpr int TILE = 64, BANDS = TILE / LANES, STEP_BYTES = TILE * 4;
constexpr int GROUP = 64, GROUP_STEPS = GROUP / 4;  // inputs of a 4-bit weight matrix that share a scale

constexpr int most_rows(Kind kind) { return kind == INT4 ? 3 : 6; }  // so many sums that registers hold

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

// Rows as the left side of a product: 4-byte groups, `groups` in a row; 8-bit ones are x / scale + 128.
struct Activations {
  Buffer<uint32_t> values;
  Buffer<float> scales;
  int groups = 0;

  void shape(Kind kind, int rows, int width) {
    groups = width / per_step(kind);
    values.reserve(static_cast<size_t>(rows) * groups);
    scales.reserve(rows);
  }
  uint32_t* row(int number) const { return values.data() + static_cast<size_t>(number) * groups; }
};

// Turns a row of floats into row `number`. `width` is a multiple of 16.
inline void put_row(Kind kind, Activations& to, int number, const float* from, int width) {
  if (kind == FLOAT32) {
    std::memcpy(to.row(number), from, width * 4);
  } else if (kind == BFLOAT16) {
    auto* out = reinterpret_cast<uint16_t*>(to.row(number));
    for (int i = 0; i < width; i += LANES) store(out + i, load(from + i));
  } else {
    __m512 largest = _mm512_set1_ps(1e-20f);
    for (int i = 0; i < width; i += LANES) largest = _mm512_max_ps(largest, _mm512_abs_ps(load(from + i)));
    const float most = _mm512_reduce_max_ps(largest);
    to.scales.data()[number] = most / 127;
    const __m512 factor = _mm512_set1_ps(127 / most);
    auto* out = reinterpret_cast<__m128i*>(to.row(number));
    for (int i = 0; i < width; i += LANES) {
      const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(load(from + i), factor));
      _mm_storeu_si128(out++, _mm512_cvtepi32_epi8(_mm512_add_epi32(whole, _mm512_set1_epi32(128))));
    }
  }
}

struct Matrix {
  Kind kind = FLOAT32;
  int outputs = 0, inputs = 0, tiles = 0, steps = 0;
  Buffer<char> data;
  Buffer<float> scales;   // INT8: of an output; INT4: [tile][group][64]
  Buffer<float> offsets;  // of an output: what the 128 that was added to a left side's numbers has added to the product

  int chunks() const { return kind == INT4 ? steps / 2 : steps; }  // of 256 bytes that a tile has
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
    offsets.data()[number] = 128.f * sum;
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
      offset += 128.f * scale * sum;
    }
    offsets.data()[number] = offset;
  }
};

// `rows` rows over one tile into totals[row][band]. Fetches `fetched` lines a step from `ahead` on. The sums are an
// array of its own, in loops that are unrolled early, since only so the compiler keeps them in registers.
template <Kind kind, int rows>
inline void multiply(const uint32_t* left, size_t groups, const char* tile, int steps, const char* ahead, int fetched,
                     Sum<kind> (&totals)[rows][BANDS]) {
  Sum<kind> sums[rows][BANDS];
#pragma GCC unroll 8
  for (int row = 0; row < rows; ++row)
#pragma GCC unroll 8
    for (int band = 0; band < BANDS; ++band) sums[row][band] = zero<kind>();
  for (int step = 0; step < steps; ++step) {
    const char* at = tile + static_cast<size_t>(step) * STEP_BYTES;
    __m512i right[BANDS];
#pragma GCC unroll 8
    for (int band = 0; band < BANDS; ++band) right[band] = _mm512_load_si512(at + band * 64);
    for (int line = 0; line < fetched; ++line) _mm_prefetch(ahead + (step * fetched + line) * 64, _MM_HINT_T1);
#pragma GCC unroll 8
    for (int row = 0; row < rows; ++row) {
      const __m512i value = _mm512_set1_epi32(static_cast<int>(left[row * groups + step]));
#pragma GCC unroll 8
      for (int band = 0; band < BANDS; ++band) sums[row][band] = dot<kind>(sums[row][band], value, right[band]);
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < rows; ++row)
#pragma GCC unroll 8
    for (int band = 0; band < BANDS; ++band) totals[row][band] = sums[row][band];
}

// The same with 4-bit weights: two steps come out of one load, and each group's whole sums are scaled into floats.
template <int rows>
inline void multiply_four(const uint32_t* left, size_t groups, const char* tile, const float* scales, int steps,
                          const char* ahead, int fetched, __m512 (&totals)[rows][BANDS]) {
  const __m512i nibble = _mm512_set1_epi8(15), eight = _mm512_set1_epi8(8);
  for (auto& row : totals)
    for (auto& total : row) total = _mm512_setzero_ps();
  for (int step = 0; step < steps; step += GROUP_STEPS, scales += TILE) {
    __m512i sums[rows][BANDS];
#pragma GCC unroll 8
    for (int row = 0; row < rows; ++row)
#pragma GCC unroll 8
      for (int band = 0; band < BANDS; ++band) sums[row][band] = _mm512_setzero_si512();
    for (int pair = step; pair < step + GROUP_STEPS; pair += 2, tile += STEP_BYTES) {
      for (int line = 0; line < fetched; ++line) _mm_prefetch(ahead + (pair / 2 * fetched + line) * 64, _MM_HINT_T1);
#pragma GCC unroll 8
      for (int band = 0; band < BANDS; ++band) {
        const __m512i both = _mm512_load_si512(tile + band * 64);
        const __m512i first = _mm512_sub_epi8(_mm512_and_si512(both, nibble), eight);
        const __m512i second = _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(both, 4), nibble), eight);
#pragma GCC unroll 8
        for (int row = 0; row < rows; ++row) {
          const uint32_t* at = left + row * groups + pair;
          sums[row][band] = _mm512_dpbusd_epi32(sums[row][band], _mm512_set1_epi32(static_cast<int>(at[0])), first);
          sums[row][band] = _mm512_dpbusd_epi32(sums[row][band], _mm512_set1_epi32(static_cast<int>(at[1])), second);
        }
      }
    }
#pragma GCC unroll 8
    for (int row = 0; row < rows; ++row)
#pragma GCC unroll 8
      for (int band = 0; band < BANDS; ++band)
        totals[row][band] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[row][band]), load(scales + band * LANES), totals[row][band]);
  }
}

// Products of rows `first`.. over one tile, each handed to `take(row, column of the tile, four registers of floats)`.
template <Kind kind, int rows, class Take>
inline void rows_over_tile(const Activations& left, int first, const Matrix& right, int number, const char* ahead,
                           int fetched, const Take& take) {
  __m512 floats[rows][BANDS];
  if constexpr (kind == INT4) {
    multiply_four<rows>(left.row(first), left.groups, right.tile(number), right.scales_of(number), right.steps, ahead,
                        fetched, floats);
  } else if constexpr (kind == INT8) {
    Sum<kind> sums[rows][BANDS];
    multiply<kind, rows>(left.row(first), left.groups, right.tile(number), right.steps, ahead, fetched, sums);
    for (int row = 0; row < rows; ++row)
      for (int band = 0; band < BANDS; ++band) floats[row][band] = _mm512_cvtepi32_ps(sums[row][band]);
  } else {
    multiply<kind, rows>(left.row(first), left.groups, right.tile(number), right.steps, ahead, fetched, floats);
  }
  for (int row = 0; row < rows; ++row) {
    if constexpr (quantised(kind)) {
      const __m512 scale = _mm512_set1_ps(left.scales.data()[first + row]);
      for (int band = 0; band < BANDS; ++band) {
        const __m512 offset = load(right.offsets.data() + number * TILE + band * LANES);
        const __m512 factor = kind == INT4 ? scale : _mm512_mul_ps(scale, load(right.scales_of(number) + band * LANES));
        floats[row][band] = _mm512_mul_ps(_mm512_sub_ps(floats[row][band], offset), factor);
      }
    }
    take(first + row, number * TILE, floats[row]);
  }
}

// All of `count` rows from `first` on over tile `number`, in passes as equal as can be; `fetching` has them fetch the next
// tile. A single pass does not: it reads as fast as memory gives, and the processor sees what comes next by itself.
template <Kind kind, class Take>
inline void over_tile(const Activations& left, int first, int count, const Matrix& right, int number, bool fetching,
                      const Take& take) {
  constexpr int most = most_rows(kind);
  const int passes = (count + most - 1) / most;
  const int fetched = passes <= 3 ? 2 : 1;
  const char* next = number + 1 < right.tiles ? right.tile(number + 1) : nullptr;
  for (int pass = 0; pass < passes; ++pass) {
    const int from = first + count * pass / passes, rows = first + count * (pass + 1) / passes - from;
    const bool fetch = fetching && next && passes > 1 && pass * fetched < 4;
    const char* ahead = fetch ? next + static_cast<size_t>(pass) * fetched * right.chunks() * 64 : nullptr;
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
