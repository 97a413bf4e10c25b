// LLaMA's forward pass over one engine step: every row of every sequence, all threads walking through it together.
//
// The residual stream is float32, whatever the weights are. Left sides of products are rounded to the matrices' kind:
// bfloat16, or 8-bit integers with a scale a row (8-bit weights have a scale an output, 4-bit ones one for 64 inputs).
#pragma once

#include "attention.h"
#include "step.h"
#include "threads.h"

namespace ziya {

struct Shape {
  int32_t kind, layers, hidden, heads, kv_heads, width, intermediate, vocab, context, threads;
  float epsilon;
  const float *cosines, *sines;  // [context, width / 2], kept by the caller
};

struct Layer {
  Buffer<float> input_norm, post_norm;
  Matrix matrices[SITES];
};

// Gate and up weights of the same units, half a tile of each, share a tile, so that their product can be taken while it is in registers.
constexpr int UNITS = TILE / 2;
inline int gate_column(int unit) { return unit / UNITS * TILE + unit % UNITS; }
inline int up_column(int unit) { return gate_column(unit) + UNITS; }

inline void normalise(const float* from, const float* weight, float epsilon, int width, float* to) {
  Floats squares = all(0.f);
  for (int i = 0; i < width; i += LANES) squares = multiply_add(load(from + i), load(from + i), squares);
  const Floats factor = all(1 / std::sqrt(sum_of(squares) / width + epsilon));
  for (int i = 0; i < width; i += LANES) store(to + i, load(from + i) * factor * load(weight + i));
}

template <Kind kind>
class Llama {
 public:
  using Cached = std::conditional_t<kind == FLOAT32, float, uint16_t>;
  static constexpr Kind PLAIN = quantised(kind) ? BFLOAT16 : kind;  // of what is not quantised: adapters

  static constexpr Kind HEAD = left_of(kind);  // 4 bits are too few where the next token is chosen

  // The left side of products; with adapters and quantised weights, as it was as well.
  struct Left {
    Activations values, plain;
    bool both = false;

    void shape(int rows, int width, bool also_plain) {
      values.shape(left_of(kind), rows, width);
      if ((both = also_plain)) plain.shape(PLAIN, rows, width);
    }
    void put(int number, const float* from, int width) {
      put_row<left_of(kind)>(values, number, from, width);
      if (both) put_row<PLAIN>(plain, number, from, width);
    }
  };

  explicit Llama(const Shape& shape)
      : shape_(shape), heads_{shape.heads, shape.kv_heads, shape.width, shape.context, shape.cosines, shape.sines},
        layers(shape.layers), team_(shape.threads) {
    for (int t = 0; t < shape.threads; ++t) heads_of_.emplace_back(heads_, nullptr, nullptr, block_stride());
    scratch_.resize(shape.threads), low_.resize(shape.threads);
  }

  // The number of rows that were asked for.
  int forward(const Step& step) {
    const size_t rows = step.rows;
    pitch_ = layers[0].matrices[QKV].tiles * TILE;
    left_.shape(step.rows, shape_.hidden, plain(step));
    attended_.shape(step.rows, shape_.heads * shape_.width, plain(step));
    inner_.shape(step.rows, shape_.intermediate, plain(step));
    qkv_.reserve(rows * pitch_), mixed_.reserve(rows * shape_.heads * shape_.width);
    if (step.adapter_ranges) raw_.reserve(rows * 2 * shape_.intermediate);
    floats_.reserve(rows * shape_.intermediate);
    sequence_of_.resize(rows);
    for (int s = 0; s < step.sequences; ++s)
      std::fill(sequence_of_.begin() + step.starts[s], sequence_of_.begin() + step.starts[s + 1], s);
    asked_.of(step);
    team_.run([&](int thread) {
      Walk walk{this, &step, thread};
      for (int number = 0; number + 1 < shape_.layers; ++number) walk.layer(number);
      walk.last_layer(shape_.layers - 1);
    });
    return asked_.step.rows;
  }

  // float32 [rows, tiles * TILE] logits of hidden rows.
  void logits(const float* hidden, int rows, float* out) {
    left_.shape(rows, shape_.hidden, false);
    team_.run([&](int thread) {
      unsigned turn = 0;
      norm(thread, turn, hidden, rows, last_norm.data());
      product<HEAD>(thread, turn, left_.values, rows, head, store_to(out, head.tiles * TILE));
    });
  }

  // `work(item)` for each item, on all threads.
  template <class Work>
  void share(int items, const Work& work) {
    team_.run([&](int thread) {
      unsigned turn = 0;
      team_.each(thread, items, turn, work);
    });
  }

 private:
  const Shape shape_;
  const HeadShape heads_;

 public:
  std::vector<Layer> layers;
  Buffer<float> last_norm;
  Matrix head;

 private:
  size_t block_stride() const { return static_cast<size_t>(shape_.kv_heads) * BLOCK * shape_.width; }
  // Whether left sides are kept unquantised too, for adapters.
  static bool plain(const Step& step) { return quantised(kind) && step.adapter_ranges; }

  static auto store_to(float* out, int pitch) {
    return [out, pitch](int row, int column, const Floats* sums) {
      for (int band = 0; band < BANDS; ++band) store(out + static_cast<size_t>(row) * pitch + column + band * LANES, sums[band]);
    };
  }

  auto add_to(float* out, int pitch) const {
    return [out, pitch](int row, int column, const Floats* sums) {
      for (int band = 0; band < BANDS && column + band * LANES < pitch; ++band) {
        float* at = out + static_cast<size_t>(row) * pitch + column + band * LANES;
        store(at, load(at) + sums[band]);
      }
    };
  }

  // All rows over tiles `from` to `to`. Many rows are cut in pieces, so that there is work for more threads than tiles; the
  // last piece that goes over a tile fetches the next one.
  template <Kind right_kind = kind, class Take>
  void product(int thread, unsigned& turn, const Activations& left, int rows, const Matrix& right, int from, int to,
               const Take& take) {
    constexpr int piece = 48;
    const int pieces = (rows + piece - 1) / piece;
    team_.each(thread, (to - from) * pieces, turn, [&](int item) {
      const int part = item % pieces, first = rows * part / pieces, end = rows * (part + 1) / pieces;
      over_tile<right_kind>(left, first, end - first, right, from + item / pieces, part == pieces - 1, take);
    });
  }

  template <Kind right_kind = kind, class Take>
  void product(int thread, unsigned& turn, const Activations& left, int rows, const Matrix& right, const Take& take) {
    product<right_kind>(thread, turn, left, rows, right, 0, right.tiles, take);
  }

  void norm(int thread, unsigned& turn, const float* hidden, int rows, const float* weight) {
    float* row = (scratch_[thread].reserve(shape_.hidden), scratch_[thread].data());
    team_.each(thread, rows, turn, [&](int number) {
      normalise(hidden + static_cast<size_t>(number) * shape_.hidden, weight, shape_.epsilon, shape_.hidden, row);
      left_.put(number, row, shape_.hidden);
    });
  }

  // One thread's way through the layers of a step.
  struct Walk {
    Llama* model;
    const Step* step;
    int thread;
    unsigned turn = 0;

    void layer(int number) {
      queries_keys_values(number, 0, model->layers[number].matrices[QKV].tiles);
      into_cache(number);
      onwards(number);
    }

    // As `layer`, but rows that are not asked for come no further than their keys and values.
    void last_layer(int number) {
      Llama& m = *model;
      const Step& asked = m.asked_.step;
      if (asked.rows == step->rows) return layer(number);
      const int queries = m.shape_.heads * m.shape_.width;  // columns; where they end within a tile, it is computed twice
      queries_keys_values(number, queries / TILE, m.layers[number].matrices[QKV].tiles);
      into_cache(number);
      if (!asked.rows) return;
      m.team_.each(thread, 1, turn, [&](int) { m.asked_.gather(m.shape_.hidden); });
      step = &asked;
      queries_keys_values(number, 0, (queries + TILE - 1) / TILE);
      onwards(number);
    }

    // Of these columns' tiles.
    void queries_keys_values(int number, int from, int to) {
      Llama& m = *model;
      const Layer& layer = m.layers[number];
      m.norm(thread, turn, step->hidden, step->rows, layer.input_norm.data());
      m.product(thread, turn, m.left_.values, step->rows, layer.matrices[QKV], from, to, store_to(m.qkv_.data(), m.pitch_));
      update(number, QKV, m.left_, m.qkv_.data(), m.pitch_);
    }

    // All that comes after the keys and values.
    void onwards(int number) {
      Llama& m = *model;
      Layer& layer = m.layers[number];
      const Shape& shape = m.shape_;
      attend(number);
      rows_to(m.attended_, m.mixed_.data(), shape.heads * shape.width);
      m.product(thread, turn, m.attended_.values, step->rows, layer.matrices[OUT], m.add_to(step->hidden, shape.hidden));
      update(number, OUT, m.attended_, step->hidden, shape.hidden);
      m.norm(thread, turn, step->hidden, step->rows, layer.post_norm.data());
      feed_forward(number, layer);
      update(number, DOWN, m.inner_, step->hidden, shape.hidden);
    }

    void rows_to(Left& to, const float* from, int width) {
      model->team_.each(thread, step->rows, turn, [&](int row) { to.put(row, from + static_cast<size_t>(row) * width, width); });
    }

    Span span(int sequence) const {
      const int first = step->starts[sequence];
      return {first, step->starts[sequence + 1] - first, step->lengths[sequence],
              step->tables + static_cast<size_t>(sequence) * step->table_width};
    }

    Head<Cached>& head_of(int number, int head) {
      const size_t layer = model->block_stride() * step->blocks * number;
      const size_t offset = layer + static_cast<size_t>(head) * BLOCK * model->shape_.width;
      Head<Cached>& one = model->heads_of_[thread];
      one.at(static_cast<Cached*>(step->keys) + offset, static_cast<Cached*>(step->values) + offset);
      return one;
    }

    // All keys and values are written before any row attends: a sequence may share blocks that another fills right now.
    void into_cache(int number) {
      Llama& m = *model;
      const int heads = m.shape_.kv_heads;
      m.team_.each(thread, step->rows * heads, turn, [&](int item) {
        const int row = item / heads, sequence = m.sequence_of_[row];
        const Span all = span(sequence);
        head_of(number, item % heads).write(all, row - all.first_row, item % heads, m.qkv_.data() + static_cast<size_t>(row) * m.pitch_);
      });
    }

    void attend(int number) {
      Llama& m = *model;
      const int heads = m.shape_.kv_heads;
      m.team_.each(thread, step->sequences * heads, turn, [&](int item) {
        head_of(number, item % heads).run(span(item / heads), item % heads, m.qkv_.data(), m.pitch_, m.mixed_.data());
      });
    }

    // silu(gate) * up, then down. Where nothing comes between, the silu is taken while both are in registers.
    void feed_forward(int number, Layer& layer) {
      Llama& m = *model;
      const int units = m.shape_.intermediate;
      if (!step->adapter_ranges) {
        m.product(thread, turn, m.left_.values, step->rows, layer.matrices[GATE_UP], [&](int row, int column, const Floats* sums) {
          float* to = m.floats_.data() + static_cast<size_t>(row) * units + column / 2;
          for (int band = 0; band < BANDS / 2; ++band) store(to + band * LANES, silu(sums[band]) * sums[band + BANDS / 2]);
        });
      } else {
        m.product(thread, turn, m.left_.values, step->rows, layer.matrices[GATE_UP], store_to(m.raw_.data(), 2 * units));
        update(number, GATE_UP, m.left_, m.raw_.data(), 2 * units);
        m.team_.each(thread, step->rows, turn, [&](int row) {
          const float* from = m.raw_.data() + static_cast<size_t>(row) * 2 * units;
          float* to = m.floats_.data() + static_cast<size_t>(row) * units;
          for (int tile = 0; tile < units; tile += UNITS, from += TILE, to += UNITS)
            for (int i = 0; i < UNITS; i += LANES) store(to + i, silu(load(from + i)) * load(from + UNITS + i));
        });
      }
      rows_to(m.inner_, m.floats_.data(), units);
      m.product(thread, turn, m.inner_.values, step->rows, layer.matrices[DOWN], m.add_to(step->hidden, m.shape_.hidden));
    }

    // Adds what the rows' adapters change at a site.
    void update(int number, Site site, const Left& left, float* out, int pitch) {
      const Activations& input = quantised(kind) ? left.plain : left.values;
      for (int range = 0; range < step->adapter_ranges; ++range) {
        const AdapterRows& rows = step->adapters[range];
        for (const Update& one : rows.adapter->updates[number * SITES + site]) apply(one, rows, input, out, pitch);
      }
    }

    static constexpr int PIECE = 6;  // rows that a thread takes through an adapter at once

    void apply(const Update& one, const AdapterRows& rows, const Activations& input, float* out, int pitch) {
      const int count = rows.stop - rows.start, pieces = (count + PIECE - 1) / PIECE, rank = one.down.outputs;
      model->team_.each(thread, pieces, turn, [&](int piece) {
        const int first = rows.start + piece * PIECE, some = std::min(PIECE, rows.stop - first);
        auto& scratch = model->scratch_[thread];
        auto& low = model->low_[thread];
        scratch.reserve(static_cast<size_t>(PIECE) * one.down.tiles * TILE), low.shape(PLAIN, PIECE, rank);
        const int wide = one.down.tiles * TILE;
        for (int tile = 0; tile < one.down.tiles; ++tile)
          over_tile<PLAIN>(input, first, some, one.down, tile, false, [&](int row, int column, const Floats* sums) {
            store_to(scratch.data(), wide)(row - first, column, sums);
          });
        for (int row = 0; row < some; ++row) put_row<PLAIN>(low, row, scratch.data() + row * wide, rank);
        for (int tile = 0; tile < one.up.tiles; ++tile)
          over_tile<PLAIN>(low, 0, some, one.up, tile, false, [&](int row, int column, const Floats* sums) {
            for (int band = 0; band < BANDS && column + band * LANES < one.up.outputs; ++band) {
              float* at = out + static_cast<size_t>(first + row) * pitch + one.column + column + band * LANES;
              store(at, load(at) + sums[band]);
            }
          });
      });
    }
  };

  Team team_;
  int pitch_ = 0;
  Left left_, inner_, attended_;
  Buffer<float> qkv_, mixed_, floats_, raw_;
  std::vector<int> sequence_of_;
  Asked asked_;
  std::vector<Head<Cached>> heads_of_;
  std::vector<Buffer<float>> scratch_;
  std::vector<Activations> low_;
};

}  // namespace ziya
