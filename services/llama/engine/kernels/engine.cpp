// What Python calls, by ctypes: make a model, give it its weights one by one, run steps. Nothing here throws out.
#include "llama.h"

#include <exception>

using namespace ziya;

namespace {

template <class Call>
int guarded(const Call& call) {
  try {
    return call(), 0;
  } catch (const std::exception&) {
    return -1;
  }
}

// A model of any kind of numbers, behind one type.
struct AnyLlama {
  virtual ~AnyLlama() = default;
  virtual void vector(int layer, int which, const float* values) = 0;
  virtual void matrix(int layer, int site, int part, const void* weights, bool narrow) = 0;
  virtual void adapt(Adapter& to, int layer, int site, int part, int rank, const void* down, const void* up) = 0;
  virtual int forward(const Step& step) = 0;
  virtual void logits(const float* hidden, int rows, float* out) = 0;
};

template <Kind kind>
struct Model final : AnyLlama {
  const Shape shape;
  Llama<kind> llama;

  explicit Model(const Shape& given) : shape(given), llama(given) {}

  struct Part {
    int outputs, inputs, columns, column;
  };

  // Of a site's fused matrix: how large a part is, and where it begins.
  Part part_of(int site, int part) const {
    const int width = shape.width, query = shape.heads * width, key = shape.kv_heads * width;
    if (site == QKV) return {part ? key : query, shape.hidden, query + 2 * key, part ? query + (part - 1) * key : 0};
    if (site == OUT) return {shape.hidden, query, shape.hidden, 0};
    if (site == GATE_UP) return {shape.intermediate, shape.hidden, 2 * shape.intermediate, 0};
    return {shape.hidden, shape.intermediate, shape.hidden, 0};
  }

  template <class Use>
  static void placed(int site, int part, int column, const Use& use) {
    if (site != GATE_UP) use([column](int out) { return column + out; });
    else if (part == 0) use(gate_column);
    else use(up_column);
  }

  void vector(int layer, int which, const float* values) override {
    Buffer<float>& to = layer < 0 ? llama.last_norm : which ? llama.layers[layer].post_norm : llama.layers[layer].input_norm;
    to.reserve(shape.hidden);
    std::memcpy(to.data(), values, shape.hidden * 4);
  }

  void matrix(int layer, int site, int part, const void* weights, bool narrow) override {
    const Part all = layer < 0 ? Part{shape.vocab, shape.hidden, shape.vocab, 0} : part_of(site, part);
    Matrix& to = layer < 0 ? llama.head : llama.layers[layer].matrices[site];
    to.shape(layer < 0 ? Llama<kind>::HEAD : kind, all.columns, all.inputs);
    placed(layer < 0 ? OUT : site, part, all.column, [&](auto place) {
      llama.share(all.outputs, [&](int out) {
        const size_t row = static_cast<size_t>(out) * all.inputs;
        if (narrow) to.pack(place(out), static_cast<const uint16_t*>(weights) + row);
        else to.pack(place(out), static_cast<const float*>(weights) + row);
      });
    });
  }

  void adapt(Adapter& to, int layer, int site, int part, int rank, const void* down, const void* up) override {
    using Plain = std::conditional_t<kind == FLOAT32, float, uint16_t>;
    constexpr Kind plain = Llama<kind>::PLAIN;
    const Part all = part_of(site, part);
    Update one;
    one.down.shape(plain, rank, all.inputs), one.up.shape(plain, site == GATE_UP ? all.columns : all.outputs, rank);
    for (int i = 0; i < rank; ++i) one.down.pack(i, static_cast<const Plain*>(down) + static_cast<size_t>(i) * all.inputs);
    placed(site, part, 0, [&](auto place) {
      for (int out = 0; out < all.outputs; ++out)
        one.up.pack(place(out), static_cast<const Plain*>(up) + static_cast<size_t>(out) * rank);
    });
    one.column = site == GATE_UP ? 0 : all.column;
    to.updates.resize(static_cast<size_t>(shape.layers) * SITES);
    to.updates[layer * SITES + site].push_back(std::move(one));
  }

  int forward(const Step& step) override { return llama.forward(step); }
  void logits(const float* hidden, int rows, float* out) override { llama.logits(hidden, rows, out); }
};

AnyLlama* make(const Shape& shape) {
  if (shape.kind == FLOAT32) return new Model<FLOAT32>(shape);
  if (shape.kind == BFLOAT16) return new Model<BFLOAT16>(shape);
  if (shape.kind == INT8) return new Model<INT8>(shape);
  return new Model<INT4>(shape);
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// Whether this processor has the instructions that all else here is made of.
int ziya_supported() { return supported(); }

// Rows of logits are filled up to whole tiles of so many numbers.
int ziya_tile() { return TILE; }

AnyLlama* ziya_new(const Shape* shape) {
  AnyLlama* model = nullptr;
  guarded([&] { model = make(*shape); });
  return model;
}

void ziya_free(AnyLlama* model) { delete model; }

// The norms of a layer (0 input, 1 post-attention), or with layer -1 the last one.
int ziya_vector(AnyLlama* model, int layer, int which, const float* values) {
  return guarded([&] { model->vector(layer, which, values); });
}

// Part of a site's matrix, [outputs, inputs] in float32 or (`narrow`) bfloat16; with layer -1 the head's.
int ziya_matrix(AnyLlama* model, int layer, int site, int part, const void* weights, int narrow) {
  return guarded([&] { model->matrix(layer, site, part, weights, narrow); });
}

Adapter* ziya_adapter() { return new (std::nothrow) Adapter; }
void ziya_adapter_free(Adapter* adapter) { delete adapter; }

int ziya_adapt(AnyLlama* model, Adapter* adapter, int layer, int site, int part, int rank, const void* down, const void* up) {
  return guarded([&] { model->adapt(*adapter, layer, site, part, rank, down, up); });
}

// The number of rows that `hidden` begins with in the end, or -1.
int ziya_forward(AnyLlama* model, const Step* step) {
  int rows = -1;
  guarded([&] { rows = model->forward(*step); });
  return rows;
}

int ziya_logits(AnyLlama* model, const float* hidden, int rows, float* out) {
  return guarded([&] { model->logits(hidden, rows, out); });
}
}
#pragma GCC visibility pop
