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
  return __uint_as_float(__float_as_uint(a) & 0x7fffffffu);
}

// A float format's numbers are evenly spaced up to SMALLEST, the first of full MANTISSA, as int8's
// all are: adding ALIGNING, about which float32 has that spacing, rounds to them.
struct E4m3 {
  static constexpr bool IS_FLOAT = true;
  static constexpr int BITS = 8, MANTISSA = 3, BIAS = 7;
  static constexpr float LARGEST = 448, SMALLEST = 0x1p-6f, ALIGNING = 0x1p14f;
  static constexpr unsigned NOT_A_NUMBER = 0x7f, FIRST_SPECIAL = 0x7f;
};
struct E5m2 {
  static constexpr bool IS_FLOAT = true;
  static constexpr int BITS = 8, MANTISSA = 2, BIAS = 15;
  static constexpr float LARGEST = 57344, SMALLEST = 0x1p-14f, ALIGNING = 0x1p7f;
  static constexpr unsigned NOT_A_NUMBER = 0x7f, FIRST_SPECIAL = 0x7c;  // which is infinity
};
struct E2m1 {
  static constexpr bool IS_FLOAT = true;
  static constexpr int BITS = 4, MANTISSA = 1, BIAS = 1;
  static constexpr float LARGEST = 6, SMALLEST = 1, ALIGNING = 0x1p22f;
  static constexpr unsigned NOT_A_NUMBER = 7, FIRST_SPECIAL = 8;
};
struct Int8 {
  static constexpr bool IS_FLOAT = false;
  static constexpr int BITS = 8;
  static constexpr float LARGEST = 127, ALIGNING = 0x1p23f;
  static constexpr unsigned NOT_A_NUMBER = 0;
};

// The code of a number from 0 to LARGEST.
template <class Format>
__device__ inline unsigned code_of_size(float size) {
  const unsigned even =
      __float_as_uint(add(size, Format::ALIGNING)) - __float_as_uint(Format::ALIGNING);
  if constexpr (Format::IS_FLOAT) {
    constexpr int DROPPED = 23 - Format::MANTISSA;
    const unsigned bits = __float_as_uint(size);
    const unsigned below_half = (1u << (DROPPED - 1)) - 1;
    const unsigned rounded = (bits + below_half + (bits >> DROPPED & 1)) >> DROPPED;
    return size < Format::SMALLEST ? even : rounded - ((127 - Format::BIAS) << Format::MANTISSA);
  }
  return even;
}

// The code of a number of any size, whose sign is that of `sign`: what is past LARGEST becomes that.
template <class Format>
__device__ inline unsigned code_of(float size, float sign) {
  const unsigned code = code_of_size<Format>(min_ieee(size, Format::LARGEST));
  const bool is_negative = __float_as_int(sign) < 0;
  const unsigned negative = Format::IS_FLOAT ? code | 1u << (Format::BITS - 1) : 0x100 - code;
  const unsigned with_sign = is_negative ? negative : code;
  return size == size ? with_sign & ((1u << Format::BITS) - 1) : Format::NOT_A_NUMBER;
}

// The codes of two numbers, the first one's in the low bits.
template <class Format>
__device__ inline unsigned codes_of(const float (&size)[2], const float (&sign)[2]) {
#if __CUDA_ARCH__ >= 890
  if constexpr (Format::IS_FLOAT && Format::BITS == 8) {
    float number[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      number[i] = __uint_as_float(__float_as_uint(size[i]) | (__float_as_uint(sign[i]) & 1u << 31));
    }
    unsigned short codes;
    if constexpr (Format::MANTISSA == 3) {
      asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(number[1]), "f"(number[0]));
    } else {
      asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(number[1]), "f"(number[0]));
    }
    return codes;
  }
#endif
  return code_of<Format>(size[0], sign[0]) | code_of<Format>(size[1], sign[1]) << Format::BITS;
}

// The number of a code.
template <class Format>
__device__ inline float number_of(unsigned code) {
  if constexpr (!Format::IS_FLOAT) {
    return static_cast<signed char>(code);
  } else {
    constexpr int LAST = 23 - Format::MANTISSA;
    const unsigned size = code & ((1u << (Format::BITS - 1)) - 1);
    const float even = mul(static_cast<float>(size), Format::ALIGNING * 0x1p-23f);
    const float full = __uint_as_float((size << LAST) + ((127u - Format::BIAS) << 23));
    float number = size >> Format::MANTISSA ? full : even;
    if (size == Format::FIRST_SPECIAL && Format::FIRST_SPECIAL < Format::NOT_A_NUMBER) {
      number = __uint_as_float(0x7f800000u);
    } else if (size >= Format::FIRST_SPECIAL) {
      number = __uint_as_float(0x7fffffffu);
    }
    return code >> (Format::BITS - 1) ? -number : number;
  }
}
