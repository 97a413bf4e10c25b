// Attention of one sequence's rows for one key/value head, over blocks of 16 positions.
//
// Within a block, keys stand so that a register (two with AVX2) holds the same dimensions of all 16 positions: a query's
// scores against a block need no sum across a register. Values stand position after position. Up to 4 queries (rows
// and the heads that share this one's keys) go over the cache together. Scores, softmax and sums are float32.
#pragma once

#include <limits>

#include "matrix.h"

namespace ziya {

constexpr int BLOCK = 16, QUERIES = 4;
constexpr int PLACES = BLOCK / LANES;  // registers that a block's positions fill

struct HeadShape {
  int heads, kv_heads, width, context;
  const float *cosines, *sines;  // [context, width / 2]

  int group() const { return heads / kv_heads; }
  int columns() const { return (heads + 2 * kv_heads) * width; }
};

// One sequence in a step: `rows` new positions that end at `length`, and where its blocks are.
struct Span {
  int first_row, rows, length;
  const int32_t* table;
};

// Rotates halves of a head as transformers does: [x1 cos - x2 sin, x2 cos + x1 sin], times `scale`.
inline void rotate(const HeadShape& shape, int position, const float* from, float scale, float* to) {
  const int half = shape.width / 2;
  const float* cosine = shape.cosines + static_cast<size_t>(position) * half;
  const float* sine = shape.sines + static_cast<size_t>(position) * half;
  for (int i = 0; i < half; ++i) {
    to[i] = (from[i] * cosine[i] - from[i + half] * sine[i]) * scale;
    to[i + half] = (from[i + half] * cosine[i] + from[i] * sine[i]) * scale;
  }
}

template <class T>
class Head {
 public:
  static constexpr Kind KIND = sizeof(T) == 4 ? FLOAT32 : BFLOAT16;
  static constexpr int EACH = per_step(KIND);

  // `keys` and `values` are block 0 of this head; `stride` elements lie between blocks.
  Head(const HeadShape& shape, T* keys, T* values, size_t stride)
      : shape_(shape), keys_(keys), values_(values), stride_(stride) {
    const int padded = (shape.context + BLOCK - 1) / BLOCK * BLOCK;
    scores_.reserve(static_cast<size_t>(QUERIES) * padded), row_.reserve(shape.width);
    words_ = words_of(KIND, shape.width), queries_.reserve(static_cast<size_t>(QUERIES) * words_), pitch_ = padded;
  }

  void at(T* keys, T* values) { keys_ = keys, values_ = values; }

  // Puts the key and value of one of the span's rows, from its row of `qkv`, into the cache.
  void write(const Span& span, int row, int head, const float* qkv) {
    const int width = shape_.width, position = span.length - span.rows + row, slot = position % BLOCK;
    const size_t block = span.table[position / BLOCK] * stride_;
    const float* key = qkv + (shape_.heads + head) * width;
    const float* value = key + static_cast<size_t>(shape_.kv_heads) * width;
    rotate(shape_, position, key, 1.f, row_.data());
    for (int i = 0; i < width; ++i)
      put(keys_ + block + (i / EACH * BLOCK + slot) * EACH + i % EACH, row_.data()[i]);
    T* to = values_ + block + static_cast<size_t>(slot) * width;
    for (int i = 0; i < width; i += LANES) store(to + i, load(value + i));
  }

  // The span's rows attend to all up to themselves. `out` has `heads * width` columns.
  void run(const Span& span, int head, const float* qkv, size_t qkv_pitch, float* out) {
    const int width = shape_.width, group = shape_.group(), past = span.length - span.rows;
    for (int first = 0; first < span.rows * group; first += QUERIES) {
      const int count = std::min(QUERIES, span.rows * group - first);
      int limits[QUERIES] = {};
      float* outs[QUERIES] = {};
      for (int n = 0; n < count; ++n) {
        const int row = (first + n) / group, query_head = head * group + (first + n) % group;
        const size_t at = span.first_row + row;
        limits[n] = past + row + 1;
        outs[n] = out + (at * shape_.heads + query_head) * width;
        query(n, past + row, qkv + at * qkv_pitch + query_head * width);
      }
      if (count == 1) attend<1>(span.table, limits, outs, count);
      else if (count == 2) attend<2>(span.table, limits, outs, count);
      else attend<4>(span.table, limits, outs, count);
    }
  }

 private:
  void query(int n, int position, const float* from) {
    rotate(shape_, position, from, 1.f / std::sqrt(static_cast<float>(shape_.width)), row_.data());
    uint32_t* to = queries_.data() + static_cast<size_t>(n) * words_;
    for (int i = 0; i < shape_.width; i += LANES) put_left<KIND>(to, i, load(row_.data() + i));
  }

  template <int queries>
  void attend(const int32_t* table, const int* limits, float* const* outs, int count) {
    const int longest = limits[count - 1];  // rows are in order
    for (int start = 0; start < longest; start += BLOCK) score<queries>(keys_ + table[start / BLOCK] * stride_, start);
    float shares[QUERIES];
    for (int n = 0; n < queries; ++n) shares[n] = softmax(scores_.data() + static_cast<size_t>(n) * pitch_, limits[n], longest);
    int from = 0;
    for (; from + TILE <= shape_.width; from += TILE) gather<queries, BANDS>(table, longest, from, shares, outs, count);
    for (; from < shape_.width; from += LANES) gather<queries, 1>(table, longest, from, shares, outs, count);
  }

  template <int queries>
  void score(const T* block, int start) {
    const int groups = shape_.width / EACH;
    Floats sums[queries][PLACES];
    for (auto& query : sums)
      for (auto& sum : query) sum = all(0.f);
    for (int group = 0; group < groups; ++group) {
      const T* keys = block + static_cast<size_t>(group) * BLOCK * EACH;
      const uint32_t* left = queries_.data() + group * parts(KIND);
      score_part<queries, 0>(left, keys, sums);
      if constexpr (parts(KIND) == 2) score_part<queries, 1>(left + 1, keys, sums);
    }
    for (int n = 0; n < queries; ++n)
      for (int place = 0; place < PLACES; ++place)
        store(scores_.data() + static_cast<size_t>(n) * pitch_ + start + place * LANES, sums[n][place]);
  }

  template <int queries, int part>
  void score_part(const uint32_t* left, const T* keys, Floats (&sums)[queries][PLACES]) {
    Words key[PLACES];
#pragma GCC unroll 2
    for (int place = 0; place < PLACES; ++place) key[place] = part_of<KIND, part>(load_bits(keys + place * LANES * EACH));
#pragma GCC unroll 4
    for (int n = 0; n < queries; ++n)
#pragma GCC unroll 2
      for (int place = 0; place < PLACES; ++place) sums[n][place] = dot<KIND>(sums[n][place], all(left[n * words_]), key[place]);
  }

  // Scores to weights that are not yet divided by their sum; gives 1 / sum. Those from `limit` to `longest` weigh 0.
  float softmax(float* scores, int limit, int longest) {
    const Floats lowest = all(-std::numeric_limits<float>::infinity());
    Floats most = lowest, total = all(0.f);
    for (int i = 0; i < limit; i += LANES) most = larger(most, first_of(load(scores + i), limit - i, lowest));
    const Floats top = all(largest_of(most));
    for (int i = 0; i < longest; i += LANES) {
      const Floats weight = first_of(exponential(load(scores + i) - top), limit - i, all(0.f));
      total = total + weight;
      store(scores + i, weight);
    }
    return 1 / sum_of(total);
  }

  // `bands` times 16 dimensions, from `from` on, of the weighted sum of values.
  template <int queries, int bands>
  void gather(const int32_t* table, int longest, int from, const float* shares, float* const* outs, int count) {
    Floats sums[queries][bands];
    for (auto& query : sums)
      for (auto& sum : query) sum = all(0.f);
    for (int start = 0; start < longest; start += BLOCK) {
      const T* value = values_ + table[start / BLOCK] * stride_ + from;
      const int end = std::min(longest, start + BLOCK);
      for (int position = start; position < end; ++position, value += shape_.width) {
        Floats right[bands];
#pragma GCC unroll 4
        for (int band = 0; band < bands; ++band) right[band] = load(value + band * LANES);
#pragma GCC unroll 4
        for (int n = 0; n < queries; ++n) {
          const Floats weight = all(scores_.data()[static_cast<size_t>(n) * pitch_ + position]);
#pragma GCC unroll 4
          for (int band = 0; band < bands; ++band) sums[n][band] = multiply_add(weight, right[band], sums[n][band]);
        }
      }
    }
    for (int n = 0; n < std::min(queries, count); ++n)
      for (int band = 0; band < bands; ++band)
        store(outs[n] + from + band * LANES, sums[n][band] * all(shares[n]));
  }

  const HeadShape& shape_;
  T *keys_, *values_;
  const size_t stride_;
  int pitch_ = 0, words_ = 0;
  Buffer<float> scores_, row_;
  Buffer<uint32_t> queries_;
};

}  // namespace ziya
