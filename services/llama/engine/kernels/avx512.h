// Registers of 16 floats, on processors with AVX-512 and its instructions for bfloat16 and 8-bit integers (VNNI).
//
// One instruction takes 4 bytes of the left side of a product (a float, two bfloat16, four 8-bit integers) and as many
// numbers of each of 16 columns. `avx2.h` gives the same names their meaning where there is less.
#pragma once

#include <immintrin.h>

#include "kinds.h"

namespace ziya {

constexpr int LANES = 16;  // floats of a register
constexpr int BANDS = 4;   // registers that a step of a tile fills: 6 rows' sums and one step fit into 32 registers
constexpr int SOON = 0;    // the processor sees by itself what a single pass over a tile needs next
using Floats = __m512;
using Words = __m512i;

template <Kind kind>
using Sum = std::conditional_t<quantised(kind), Words, Floats>;

// A step of a dot product is taken in so many parts, of 4 bytes of the left side each.
constexpr int parts(Kind) { return 1; }
constexpr int LEFT_OFFSET = 128;  // the left side's 8-bit numbers must be positive

inline bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}

template <Kind kind>
inline Sum<kind> zero() {
  if constexpr (quantised(kind)) return _mm512_setzero_si512();
  else return _mm512_setzero_ps();
}

inline Floats all(float value) { return _mm512_set1_ps(value); }
inline Words all(uint32_t bits) { return _mm512_set1_epi32(static_cast<int>(bits)); }
inline Words load_bits(const void* from) { return _mm512_loadu_si512(from); }

template <Kind kind, int part>
inline Words part_of(Words step) {
  return step;
}

template <Kind kind>
inline Sum<kind> dot(Sum<kind> sum, Words left, Words right) {
  if constexpr (kind == FLOAT32) return _mm512_fmadd_ps(_mm512_castsi512_ps(left), _mm512_castsi512_ps(right), sum);
  else if constexpr (kind == BFLOAT16) return _mm512_dpbf16_ps(sum, (__m512bh)left, (__m512bh)right);
  else return _mm512_dpbusd_epi32(sum, left, right);
}

// 4-bit weights, less the 8 that was added to them, as 8-bit ones: those of a step, then those of the next one.
inline Words low_nibbles(Words both) {
  return _mm512_sub_epi8(_mm512_and_si512(both, _mm512_set1_epi8(15)), _mm512_set1_epi8(8));
}
inline Words high_nibbles(Words both) { return low_nibbles(_mm512_srli_epi16(both, 4)); }

inline Floats load(const float* from) { return _mm512_loadu_ps(from); }
inline Floats load(const uint16_t* from) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline void store(float* to, Floats values) { _mm512_storeu_ps(to, values); }
inline void store(uint16_t* to, Floats values) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(values));
}
inline uint16_t narrow(float value) {
  return static_cast<uint16_t>(_mm_extract_epi16((__m128i)_mm_cvtneps_pbh(_mm_set_ss(value)), 0));
}

// LANES floats of a left side, from column `at` of its row on, as a product takes them.
template <Kind kind>
inline void put_left(uint32_t* row, int at, Floats values) {
  if constexpr (kind == FLOAT32) {
    store(reinterpret_cast<float*>(row) + at, values);
  } else if constexpr (kind == BFLOAT16) {
    store(reinterpret_cast<uint16_t*>(row) + at, values);
  } else {
    const Words whole = _mm512_add_epi32(_mm512_cvtps_epi32(values), _mm512_set1_epi32(LEFT_OFFSET));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(row + at / 4), _mm512_cvtepi32_epi8(whole));
  }
}

inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats multiply_take(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }  // c - ab
inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats smaller(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline Floats size_of(Floats values) { return _mm512_abs_ps(values); }
inline Floats whole(Floats values) { return _mm512_roundscale_ps(values, 0); }
inline Floats floats(Words integers) { return _mm512_cvtepi32_ps(integers); }
inline Floats floats(Floats already) { return already; }
inline Floats times_power(Floats values, Floats exponents) { return _mm512_scalef_ps(values, exponents); }  // of two
inline float sum_of(Floats values) { return _mm512_reduce_add_ps(values); }
inline float largest_of(Floats values) { return _mm512_reduce_max_ps(values); }

// The first `count` values (none where it is negative), and `otherwise` after them.
inline Floats first_of(Floats values, int count, Floats otherwise) {
  const int kept = count < 0 ? 0 : count < LANES ? count : LANES;
  return _mm512_mask_mov_ps(otherwise, static_cast<__mmask16>((1u << kept) - 1), values);
}

}  // namespace ziya
