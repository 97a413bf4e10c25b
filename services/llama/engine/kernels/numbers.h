// Single numbers and registers of them: whichever registers the compiler is told to use, under the same names.
#pragma once

#include <cmath>
#include <cstring>

#ifdef __AVX512BF16__
#include "avx512.h"
#else
#include "avx2.h"
#endif

namespace ziya {

inline float widen(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

inline float one(const float* from) { return *from; }
inline float one(const uint16_t* from) { return widen(*from); }
inline void put(float* to, float value) { *to = value; }
inline void put(uint16_t* to, float value) { *to = narrow(value); }

// e^x to float precision: 2^n times the Taylor series of the remainder, which is at most ln(2)/2.
inline Floats exponential(Floats x) {
  x = larger(smaller(x, all(88.f)), all(-104.f));
  const Floats n = whole(x * all(1.44269504f));
  Floats r = multiply_take(n, all(0.693359375f), x);
  r = multiply_take(n, all(-2.12194440e-4f), r);
  Floats series = all(1.f / 5040);
  for (const float term : {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f})
    series = multiply_add(series, r, all(term));
  return times_power(series, n);
}

// x / (1 + e^-x)
inline Floats silu(Floats x) { return x / (all(1.f) + exponential(all(0.f) - x)); }

}  // namespace ziya
