// The kinds of numbers a matrix may be held in. A step of a dot product takes 4 bytes of a column: one float, two
// bfloat16, four 8-bit integers. 4-bit weights are widened to 8 bits on their way.
#pragma once

#include <cstdint>
#include <type_traits>

namespace ziya {

enum Kind : int { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, INT4 = 3 };

constexpr bool quantised(Kind kind) { return kind == INT8 || kind == INT4; }
constexpr Kind left_of(Kind kind) { return kind == INT4 ? INT8 : kind; }  // of a product's left side

constexpr int per_step(Kind kind) { return kind == FLOAT32 ? 1 : kind == BFLOAT16 ? 2 : 4; }
constexpr int bytes_of(Kind kind) { return kind == FLOAT32 ? 4 : kind == BFLOAT16 ? 2 : 1; }

}  // namespace ziya
