// What one engine step is given, and the smaller step that is left of it once the last layer has its keys and values.
#pragma once

#include "matrix.h"

namespace ziya {

// A LoRA update of one projection: `down` [rank, in], `up` [columns, rank] with the scale in it, added from `column` on.
struct Update {
  Matrix down, up;
  int column = 0;
};

enum Site : int { QKV = 0, OUT = 1, GATE_UP = 2, DOWN = 3, SITES = 4 };

struct Adapter {
  std::vector<std::vector<Update>> updates;  // [layer * SITES + site]
};

struct AdapterRows {
  const Adapter* adapter;
  int32_t start, stop;
};

// One step. `hidden` is the embedded rows at first; in the end it begins with the last layer's output of the rows that
// are asked for, which are the last `wanted` ones of each sequence.
struct Step {
  int32_t rows, sequences;
  const int32_t *starts, *lengths, *tables;  // [sequences + 1], [sequences], [sequences, table_width]
  const int32_t* wanted;                     // [sequences], 0 for a piece of a prompt that is not its last one
  int32_t table_width, blocks;               // blocks that the cache has in a layer
  float* hidden;                             // [rows, hidden]
  void *keys, *values;                       // [layers, blocks, kv_heads, 16, width]
  const AdapterRows* adapters;
  int32_t adapter_ranges;
};

// The rows of a step that are asked for, as a step of their own: nobody reads what the last layer makes of the others,
// so those need no more of it than their keys and values.
class Asked {
 public:
  void of(const Step& whole) {
    rows_.clear(), starts_.assign(1, 0), adapters_.clear();
    for (int s = 0; s < whole.sequences; ++s) {
      for (int row = whole.starts[s + 1] - whole.wanted[s]; row < whole.starts[s + 1]; ++row) rows_.push_back(row);
      starts_.push_back(static_cast<int32_t>(rows_.size()));
    }
    for (int range = 0; range < whole.adapter_ranges; ++range) {
      const AdapterRows& all = whole.adapters[range];
      adapters_.push_back({all.adapter, before(all.start), before(all.stop)});
    }
    step = whole;
    step.rows = static_cast<int32_t>(rows_.size()), step.starts = starts_.data(), step.adapters = adapters_.data();
  }

  // Moves the asked rows of `hidden` to its front. They are in order, so none is written over before it has moved.
  void gather(int width) const {
    for (size_t row = 0; row < rows_.size(); ++row)
      std::memmove(step.hidden + row * width, step.hidden + static_cast<size_t>(rows_[row]) * width, width * sizeof(float));
  }

  Step step;

 private:
  int32_t before(int32_t row) const {
    return static_cast<int32_t>(std::lower_bound(rows_.begin(), rows_.end(), row) - rows_.begin());
  }

  std::vector<int32_t> rows_, starts_;
  std::vector<AdapterRows> adapters_;
};

}  // namespace ziya
