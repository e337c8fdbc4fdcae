// What codes stand for: y = number * s, in float32, rounded to y's type.
//
// Mapping      A block owns a row, at least: its threads take bytes of codes in turns.
// Traffic      Codes once, y once, scales from cache.
// Numerics     One product, as IEEE has it, and one rounding. An e4m3 scale is divided by what all
//              of them were multiplied by, first.
// Preconditions  (cunorm/_call/dequantised.py) y and q are in C order; a group divides a row.

#pragma once

#include "scale.cuh"

// From one row of scales to the next and from one group, or word of four, to the next, in elements.
struct ScaleStrides {
  long long row;
  long long group;
  long long rows;
  float given;
};

template <class Format, bool ANY>
__device__ inline float factor_of(Float32Scale<Format, ANY>*, float stored, float) {
  return stored;
}
template <class Format, bool ANY>
__device__ inline float factor_of(E8m0Scale<Format, ANY>*, unsigned char stored, float) {
  const unsigned subnormal = 1u << 22, not_a_number = 0x7fffffffu;
  const unsigned bits = stored == 0 ? subnormal : static_cast<unsigned>(stored) << 23;
  return __uint_as_float(stored == 255 ? not_a_number : bits);
}
template <class Format, bool ANY>
__device__ inline float factor_of(E4m3Scale<Format, ANY>*, unsigned char stored, float given) {
  return divide_ieee(number_of<E4m3>(stored), given);
}

template <typename Y, int COUNT>
__device__ inline void store_rounded(Y* to, const float (&value)[COUNT]) {
  if constexpr (sizeof(Y) == 8) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      double wide;
      asm("cvt.f64.f32 %0, %1;" : "=d"(wide) : "f"(value[i]));  // a subnormal number stays one
      to[i] = wide;
    }
  } else {
    float padded[16 / sizeof(Y)] = {};
#pragma unroll
    for (int i = 0; i < COUNT; ++i) padded[i] = value[i];
    store<false>(to, round_to<Y>(padded), COUNT);
  }
}

template <class Format, class Scale, ScaleLayout LAYOUT, int COLS, int GROUP, typename Y>
__device__ inline void dequantise(Y* y, const unsigned char* q, const void* scales,
                                  const ScaleStrides& strides) {
  constexpr int CODES = 8 / Format::BITS, BYTES = COLS / CODES;
  constexpr int GROUPS = GROUP == 0 ? 1 : COLS / GROUP;
  const auto* const stored = static_cast<const typename Scale::Stored*>(scales);
  for (long long row = blockIdx.x; row < strides.rows; row += gridDim.x) {
    for (int byte = threadIdx.x; byte < BYTES; byte += blockDim.x) {
      const int group = GROUP == 0 ? 0 : byte * CODES / GROUP;
      long long place = row * strides.row + group * strides.group;
      if (LAYOUT == PACKED) place = (row * strides.row + group / 4 * strides.group) * 4 + group % 4;
      if (LAYOUT == SWIZZLED) place = swizzled<GROUPS>(row, group);
      const float factor = factor_of(static_cast<Scale*>(nullptr), stored[place], strides.given);
      const unsigned codes = q[row * BYTES + byte];
      float value[CODES];
#pragma unroll
      for (int i = 0; i < CODES; ++i) {
        const unsigned code = codes >> i * Format::BITS & ((1u << Format::BITS) - 1);
        value[i] = mul_ieee(number_of<Format>(code), factor);
      }
      store_rounded(y + row * COLS + static_cast<long long>(byte) * CODES, value);
    }
  }
}
