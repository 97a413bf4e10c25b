// The kinds of numbers a matrix may be held in, as one shape: a step of a dot product takes 4 bytes of the left side
// (one float, two bfloat16, four 8-bit integers) and as many numbers of each of 16 columns, in one instruction.
// 4-bit weights are widened to 8 bits on their way.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace ziya {

constexpr int LANES = 16;  // floats of a register

enum Kind : int { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, INT4 = 3 };

constexpr bool quantised(Kind kind) { return kind == INT8 || kind == INT4; }
constexpr Kind left_of(Kind kind) { return kind == INT4 ? INT8 : kind; }  // of a product's left side

constexpr int per_step(Kind kind) { return kind == FLOAT32 ? 1 : kind == BFLOAT16 ? 2 : 4; }
constexpr int bytes_of(Kind kind) { return kind == FLOAT32 ? 4 : kind == BFLOAT16 ? 2 : 1; }

template <Kind kind>
using Sum = std::conditional_t<quantised(kind), __m512i, __m512>;

template <Kind kind>
inline Sum<kind> zero() {
  if constexpr (quantised(kind)) return _mm512_setzero_si512();
  else return _mm512_setzero_ps();
}

template <Kind kind>
inline Sum<kind> dot(Sum<kind> sum, __m512i left, __m512i right) {
  if constexpr (kind == FLOAT32) return _mm512_fmadd_ps(_mm512_castsi512_ps(left), _mm512_castsi512_ps(right), sum);
  else if constexpr (kind == BFLOAT16) return _mm512_dpbf16_ps(sum, (__m512bh)left, (__m512bh)right);
  else return _mm512_dpbusd_epi32(sum, left, right);
}

inline float widen(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

inline __m512 widen(__m256i bits) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)); }
inline __m256i narrow(__m512 values) { return (__m256i)_mm512_cvtneps_pbh(values); }

inline uint16_t narrow(float value) {
  return static_cast<uint16_t>(_mm_extract_epi16((__m128i)_mm_cvtneps_pbh(_mm_set_ss(value)), 0));
}

inline __m512 load(const float* from) { return _mm512_loadu_ps(from); }
inline __m512 load(const uint16_t* from) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))); }
inline void store(float* to, __m512 values) { _mm512_storeu_ps(to, values); }
inline void store(uint16_t* to, __m512 values) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow(values)); }
inline float one(const float* from) { return *from; }
inline float one(const uint16_t* from) { return widen(*from); }
inline void put(float* to, float value) { *to = value; }
inline void put(uint16_t* to, float value) { *to = narrow(value); }

// e^x to float precision: 2^n times the Taylor series of the remainder, which is at most ln(2)/2.
inline __m512 exponential(__m512 x) {
  x = _mm512_max_ps(_mm512_min_ps(x, _mm512_set1_ps(88.f)), _mm512_set1_ps(-104.f));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 series = _mm512_set1_ps(1.f / 5040);
  for (const float term : {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f})
    series = _mm512_fmadd_ps(series, r, _mm512_set1_ps(term));
  return _mm512_scalef_ps(series, n);
}

// x / (1 + e^-x)
inline __m512 silu(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.f);
  return _mm512_div_ps(x, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

}  // namespace ziya
