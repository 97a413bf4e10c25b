// Registers of 8 floats, on processors with AVX2 and fused multiply-adds and no AVX-512: `avx512.h` tells of the names.
//
// There is no product of bfloat16 or 8-bit numbers here that adds up in 32 bits. So bfloat16 weights become floats on
// their way and meet rows of floats, which are not rounded; 8-bit numbers become 16-bit ones, two of which a
// multiplication takes and adds. Either is a step in two parts.
#pragma once

#include <immintrin.h>

#include "kinds.h"

namespace ziya {

constexpr int LANES = 8;
constexpr int BANDS = 2;  // 6 rows' sums and one part of a step fit into 16 registers
constexpr int SOON = 1024;  // bytes ahead that a single pass over a tile fetches
using Floats = __m256;
using Words = __m256i;

template <Kind kind>
using Sum = std::conditional_t<quantised(kind), Words, Floats>;

constexpr int parts(Kind kind) { return kind == FLOAT32 ? 1 : 2; }
constexpr int LEFT_OFFSET = 0;

inline bool supported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
         __builtin_cpu_supports("bmi2");
}

template <Kind kind>
inline Sum<kind> zero() {
  if constexpr (quantised(kind)) return _mm256_setzero_si256();
  else return _mm256_setzero_ps();
}

inline Floats all(float value) { return _mm256_set1_ps(value); }
inline Words all(uint32_t bits) { return _mm256_set1_epi32(static_cast<int>(bits)); }
inline Words load_bits(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

// Of two bfloat16 the first or the second one; of four 8-bit numbers the first and third or the second and fourth.
template <Kind kind, int part>
inline Words part_of(Words step) {
  if constexpr (kind == FLOAT32) return step;
  else if constexpr (kind == BFLOAT16)
    return part == 0 ? _mm256_slli_epi32(step, 16) : _mm256_and_si256(step, all(0xffff0000u));
  else return _mm256_srai_epi16(part == 0 ? _mm256_slli_epi16(step, 8) : step, 8);
}

// These very instructions: left to itself the compiler moves sums about, or adds products up first, until registers are
// too few.
template <Kind kind>
inline Sum<kind> dot(Sum<kind> sum, Words left, Words right) {
  if constexpr (quantised(kind)) __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(_mm256_madd_epi16(left, right)));
  else __asm__("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(left), "x"(right));
  return sum;
}

inline Words low_nibbles(Words both) {
  return _mm256_sub_epi8(_mm256_and_si256(both, _mm256_set1_epi8(15)), _mm256_set1_epi8(8));
}
inline Words high_nibbles(Words both) { return low_nibbles(_mm256_srli_epi16(both, 4)); }

inline Floats load(const float* from) { return _mm256_loadu_ps(from); }
inline Floats load(const uint16_t* from) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline void store(float* to, Floats values) { _mm256_storeu_ps(to, values); }

// Rounded to the nearest bfloat16, to the even one of two. What is no number stays none.
inline void store(uint16_t* to, Floats values) {
  const Words bits = _mm256_castps_si256(values), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), all(1u));
  const Words rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, all(0x7fffu)));
  const Words quiet = _mm256_or_si256(bits, all(0x400000u));
  const Floats none = _mm256_cmp_ps(values, values, _CMP_UNORD_Q);
  const Words chosen = _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(none));
  const Words high = _mm256_srli_epi32(chosen, 16);
  const Words packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0b1000);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
}

inline uint16_t narrow(float value) {
  uint16_t narrowed[LANES];
  store(narrowed, all(value));
  return narrowed[0];
}

template <Kind kind>
inline void put_left(uint32_t* row, int at, Floats values) {
  if constexpr (!quantised(kind)) {
    store(reinterpret_cast<float*>(row) + at, values);
  } else {
    // Of each four: the first with the third in one word, and the second with the fourth.
    const Words whole = _mm256_cvtps_epi32(values), low = _mm256_and_si256(whole, all(0xffffu));
    const Words high = _mm256_slli_epi32(_mm256_shuffle_epi32(whole, 0b1110), 16);
    const Words pairs = _mm256_permute4x64_epi64(_mm256_or_si256(low, high), 0b1000);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(row + at / 2), _mm256_castsi256_si128(pairs));
  }
}

inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats multiply_take(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); }
inline Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline Floats smaller(Floats a, Floats b) { return _mm256_min_ps(a, b); }
inline Floats size_of(Floats values) { return _mm256_andnot_ps(all(-0.f), values); }
inline Floats whole(Floats values) { return _mm256_round_ps(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Floats floats(Words integers) { return _mm256_cvtepi32_ps(integers); }
inline Floats floats(Floats already) { return already; }

// In two halves, since a power of two below 2^-126 has no exponent of its own.
inline Floats times_power(Floats values, Floats exponents) {
  const Words all_of_it = _mm256_cvtps_epi32(exponents), half = _mm256_srai_epi32(all_of_it, 1);
  const auto power = [](Words n) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, all(127u)), 23)); };
  return values * power(half) * power(_mm256_sub_epi32(all_of_it, half));
}

inline float sum_of(Floats values) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

inline float largest_of(Floats values) {
  __m128 most = _mm_max_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
  most = _mm_max_ps(most, _mm_movehl_ps(most, most));
  return _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
}

inline Floats first_of(Floats values, int count, Floats otherwise) {
  const Words place = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const Words kept = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), place);
  return _mm256_blendv_ps(otherwise, values, _mm256_castsi256_ps(kept));
}

}  // namespace ziya
