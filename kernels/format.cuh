// Formats of few bits: the codes of numbers and the numbers of codes, rounded to nearest even.
//
// All is exact: the same bits on every architecture. Conversions to floats of 8 bits are the
// hardware's from sm_89 on, and integer arithmetic elsewhere, as they are everywhere for 4 bits and
// for powers of two: the targets that CuPy compiles for have none of those.

#pragma once

#include "packet.cuh"

// Arithmetic as IEEE has it, with subnormal numbers, which CuPy's -ftz=true takes from operators
// and intrinsics.
__device__ inline float mul_ieee(float a, float b) {
  float product;
  asm("mul.rn.f32 %0, %1, %2;" : "=f"(product) : "f"(a), "f"(b));
  return product;
}
__device__ inline float divide_ieee(float a, float b) {
  float quotient;
  asm("div.rn.f32 %0, %1, %2;" : "=f"(quotient) : "f"(a), "f"(b));
  return quotient;
}
// Of a number and NaN both return the number.
__device__ inline float max_ieee(float a, float b) {
  float most;
  asm("max.f32 %0, %1, %2;" : "=f"(most) : "f"(a), "f"(b));
  return most;
}
__device__ inline float min_ieee(float a, float b) {
  float least;
  asm("min.f32 %0, %1, %2;" : "=f"(least) : "f"(a), "f"(b));
  return least;
}
__device__ inline float size_of(float a) {
  float size;
  asm("abs.f32 %0, %1;" : "=f"(size) : "f"(a));
  return size;
}

// A float format's numbers are evenly spaced up to SMALLEST, the first of full MANTISSA: adding
// ALIGNING, about which float32 has that spacing, rounds to them.
struct E4m3 {
  static constexpr int BITS = 8, MANTISSA = 3, BIAS = 7;
  static constexpr float LARGEST = 448, SMALLEST = 0x1p-6f, ALIGNING = 0x1p14f;
  static constexpr unsigned NOT_A_NUMBER = 0x7f, FIRST_SPECIAL = 0x7f;
};
struct E5m2 {
  static constexpr int BITS = 8, MANTISSA = 2, BIAS = 15;
  static constexpr float LARGEST = 57344, SMALLEST = 0x1p-14f, ALIGNING = 0x1p7f;
  static constexpr unsigned NOT_A_NUMBER = 0x7f, FIRST_SPECIAL = 0x7c;  // which is infinity
};
struct E2m1 {
  static constexpr int BITS = 4, MANTISSA = 1, BIAS = 1;
  static constexpr float LARGEST = 6, SMALLEST = 1, ALIGNING = 0x1p22f;
  static constexpr unsigned NOT_A_NUMBER = 7, FIRST_SPECIAL = 8;
};
struct Int8 {
  static constexpr int BITS = 8;
  static constexpr float LARGEST = 127;
};

// The code of a number from 0 to LARGEST.
template <class Format>
__device__ inline unsigned code_of_size(float size) {
  constexpr int DROPPED = 23 - Format::MANTISSA;
  const unsigned even =
      __float_as_uint(add(size, Format::ALIGNING)) - __float_as_uint(Format::ALIGNING);
  const unsigned bits = __float_as_uint(size);
  const unsigned below_half = (1u << (DROPPED - 1)) - 1;
  const unsigned rounded = (bits + below_half + (bits >> DROPPED & 1)) >> DROPPED;
  return size < Format::SMALLEST ? even : rounded - ((127 - Format::BIAS) << Format::MANTISSA);
}

// Codes of any number: past LARGEST they are that of LARGEST, with its sign. NaN has no sign here.
template <class Format>
struct Codes {
  __device__ static unsigned of(float number) {
    const unsigned code = code_of_size<Format>(min_ieee(size_of(number), Format::LARGEST));
    const unsigned sign = __float_as_uint(number) >> 31 << (Format::BITS - 1);
    return number == number ? code | sign : Format::NOT_A_NUMBER;
  }
};

// The numbers are 0 to 4 halves, then 2 to 4, then 4 and 6: of three straight lines, the first two
// of which are steeper, the lowest one counts. About 2^23 a float is its last bits. NaN becomes 7.
template <>
struct Codes<E2m1> {
  __device__ static unsigned of(float number) {
    const float size = size_of(number);
    const float halves = fma_rn(size, 2.0f, 0x1p23f);
    const float ones = add(size, 0x1p23f + 2);
    const float twos = fma_rn(size, 0.5f, 0x1p23f + 4);
    const float code = min_ieee(min_ieee(halves, ones), min_ieee(twos, 0x1p23f + 7));
    return (__float_as_uint(code) & 7) | (__float_as_uint(number) >> 28 & 8);
  }
};

// The conversion makes 0 of NaN.
template <>
struct Codes<Int8> {
  __device__ static unsigned of(float number) {
    const int code = max(-127, min(127, __float2int_rn(number)));
    return static_cast<unsigned>(code) & 0xff;
  }
};

// The codes of two numbers, the first one's in the low bits.
template <class Format>
__device__ inline unsigned codes_of(float first, float second) {
#if __CUDA_ARCH__ >= 890
  unsigned short codes;
  if constexpr (Format::LARGEST == E4m3::LARGEST) {
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(second), "f"(first));
    return codes;
  } else if constexpr (Format::LARGEST == E5m2::LARGEST) {
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(second), "f"(first));
    return codes;
  }
#endif
  return Codes<Format>::of(first) | Codes<Format>::of(second) << Format::BITS;
}

// The number of a code.
template <class Format>
__device__ inline float number_of(unsigned code) {
  constexpr int LAST = 23 - Format::MANTISSA;
  const unsigned size = code & ((1u << (Format::BITS - 1)) - 1);
  const float even = mul(static_cast<float>(size), Format::ALIGNING * 0x1p-23f);
  const float full = __uint_as_float((size << LAST) + ((127u - Format::BIAS) << 23));
  float number = size >> Format::MANTISSA ? full : even;
  if (size >= Format::FIRST_SPECIAL) {
    const bool is_infinite = size == Format::FIRST_SPECIAL && size < Format::NOT_A_NUMBER;
    number = __uint_as_float(is_infinite ? 0x7f800000u : 0x7fffffffu);
  }
  return code >> (Format::BITS - 1) ? -number : number;
}
template <>
__device__ inline float number_of<Int8>(unsigned code) {
  return static_cast<signed char>(code);
}
