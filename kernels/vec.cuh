// Packs of neighbouring elements: how they are loaded, stored and converted.
//
// A packet is 16 bytes of x, VEC = 16 / sizeof(T) elements. What stands beside it (gamma, beta) has
// as many elements in 8, 16 or 32 bytes. All are held as 32-bit words, so that a load is a load
// whatever the type, and a conversion takes two 16-bit elements at a time.
//
// Arithmetic goes through mul, add and fma below: each rounds once and the compiler may not merge
// them. So two variants of a kernel, aligned or not, give a row the same bits.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

// What sums, statistics and products of E are held in. Where squares MAY_OVERFLOW that, RESCUE is a
// power of two that brings any finite value's square, times 2^24 columns, back into range.
template <typename E>
struct Numeric {
  using Acc = float;
  static constexpr bool MAY_OVERFLOW = true;
  static constexpr float RESCUE = 0x1p-80f;
};
template <>
struct Numeric<__half> {
  using Acc = float;
  static constexpr bool MAY_OVERFLOW = false;
  static constexpr float RESCUE = 1.0f;
};
template <>
struct Numeric<double> {
  using Acc = double;
  static constexpr bool MAY_OVERFLOW = true;
  static constexpr double RESCUE = 0x1p-560;
};

template <typename A, typename B>
constexpr bool SAME = false;
template <typename A>
constexpr bool SAME<A, A> = true;

__device__ inline float mul(float a, float b) { return __fmul_rn(a, b); }
__device__ inline double mul(double a, double b) { return __dmul_rn(a, b); }
__device__ inline float add(float a, float b) { return __fadd_rn(a, b); }
__device__ inline double add(double a, double b) { return __dadd_rn(a, b); }
__device__ inline float sub(float a, float b) { return __fsub_rn(a, b); }
__device__ inline double sub(double a, double b) { return __dsub_rn(a, b); }
__device__ inline float fma_rn(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ inline double fma_rn(double a, double b, double c) { return __fma_rn(a, b, c); }

// 1/sqrt(a). The hardware's float32 approximation is off by up to 2 ulp and differs between
// architectures; one Newton step on its exact residual leaves well under one.
__device__ inline float reciprocal_sqrt(float a) {
  const float r = rsqrtf(a);
  const float h = mul(a, r);
  const float residual = fma_rn(-fma_rn(a, r, -h), r, fma_rn(-h, r, 1.0f));
  // Where a is 0 or infinite there is no residual (0 * inf), and the approximation is exact.
  return residual == residual ? fma_rn(mul(0.5f, r), residual, r) : r;
}
__device__ inline double reciprocal_sqrt(double a) { return 1.0 / __dsqrt_rn(a); }

template <typename To, typename From>
__device__ inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits() keeps the size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// An unsigned integer of a size, for elements that are moved and not computed with.
template <int BYTES>
struct Bits;
template <>
struct Bits<2> {
  using Type = unsigned short;
};
template <>
struct Bits<4> {
  using Type = unsigned;
};

template <typename E, int COUNT>
struct Pack {
  static constexpr int BYTES = COUNT * sizeof(E);
  static constexpr int WORDS = BYTES / 4;
  static_assert(BYTES % 8 == 0, "a pack is loaded in 8 or 16 bytes at a time");
  unsigned word[WORDS];
};

// The first `present` elements at `from`; the others are zero. ALIGNED promises that a full pack
// lies on a multiple of min(16, BYTES) bytes. CACHED loads go through the read-only cache, which
// must not be asked for memory that this launch writes.
template <bool ALIGNED, bool CACHED, int COUNT, typename E>
__device__ inline Pack<E, COUNT> load(const E* from, int present) {
  using P = Pack<E, COUNT>;
  P pack = {};
  if (ALIGNED && present == COUNT) {
    if constexpr (P::BYTES % 16 == 0) {
      const uint4* quads = reinterpret_cast<const uint4*>(from);
#pragma unroll
      for (int q = 0; q < P::WORDS / 4; ++q) {
        const uint4 quad = CACHED ? __ldg(quads + q) : quads[q];
        pack.word[4 * q] = quad.x;
        pack.word[4 * q + 1] = quad.y;
        pack.word[4 * q + 2] = quad.z;
        pack.word[4 * q + 3] = quad.w;
      }
    } else {
      const uint2* pair = reinterpret_cast<const uint2*>(from);
      const uint2 both = CACHED ? __ldg(pair) : *pair;
      pack.word[0] = both.x;
      pack.word[1] = both.y;
    }
    return pack;
  }
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    if (i >= present) continue;
    if constexpr (sizeof(E) == 2) {
      const unsigned short* half_words = reinterpret_cast<const unsigned short*>(from);
      const unsigned element = CACHED ? __ldg(half_words + i) : half_words[i];
      pack.word[i / 2] |= element << 16 * (i % 2);
    } else if constexpr (sizeof(E) == 4) {
      const unsigned* words = reinterpret_cast<const unsigned*>(from);
      pack.word[i] = CACHED ? __ldg(words + i) : words[i];
    } else {
      const uint2* pairs = reinterpret_cast<const uint2*>(from);
      const uint2 both = CACHED ? __ldg(pairs + i) : pairs[i];
      pack.word[2 * i] = both.x;
      pack.word[2 * i + 1] = both.y;
    }
  }
  return pack;
}

// Stores the first `present` elements of a pack; the others are left alone. ALIGNED as in load().
template <bool ALIGNED, typename E, int COUNT>
__device__ inline void store(E* to, const Pack<E, COUNT>& pack, int present) {
  using P = Pack<E, COUNT>;
  if (ALIGNED && present == COUNT) {
    if constexpr (P::BYTES % 16 == 0) {
#pragma unroll
      for (int q = 0; q < P::WORDS; q += 4) {
        reinterpret_cast<uint4*>(to)[q / 4] =
            make_uint4(pack.word[q], pack.word[q + 1], pack.word[q + 2], pack.word[q + 3]);
      }
    } else {
      *reinterpret_cast<uint2*>(to) = make_uint2(pack.word[0], pack.word[1]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    if (i >= present) continue;
    if constexpr (sizeof(E) == 2) {
      reinterpret_cast<unsigned short*>(to)[i] = pack.word[i / 2] >> 16 * (i % 2);
    } else if constexpr (sizeof(E) == 4) {
      reinterpret_cast<unsigned*>(to)[i] = pack.word[i];
    } else {
      reinterpret_cast<uint2*>(to)[i] = make_uint2(pack.word[2 * i], pack.word[2 * i + 1]);
    }
  }
}

// Two 16-bit elements of one word.
template <typename E>
struct Pair;
template <>
struct Pair<__half> {
  static __device__ float2 widen(unsigned word) { return __half22float2(bits<__half2>(word)); }
  static __device__ unsigned narrow(float2 v) { return bits<unsigned>(__float22half2_rn(v)); }
  static __device__ unsigned mul(unsigned a, unsigned b) {
    return bits<unsigned>(__hmul2(bits<__half2>(a), bits<__half2>(b)));
  }
};
template <>
struct Pair<__nv_bfloat16> {
  static __device__ float2 widen(unsigned word) {
    return __bfloat1622float2(bits<__nv_bfloat162>(word));
  }
  static __device__ unsigned narrow(float2 v) { return bits<unsigned>(__float22bfloat162_rn(v)); }
  static __device__ unsigned mul(unsigned a, unsigned b) {
    return bits<unsigned>(__hmul2(bits<__nv_bfloat162>(a), bits<__nv_bfloat162>(b)));
  }
};

template <typename Acc, typename E, int COUNT>
__device__ inline void unpack(const Pack<E, COUNT>& pack, Acc (&value)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    if constexpr (sizeof(E) == 2) {
      if (i % 2 == 0) {
        const float2 both = Pair<E>::widen(pack.word[i / 2]);
        value[i] = both.x;
        value[i + 1] = both.y;
      }
    } else if constexpr (sizeof(E) == 4) {
      value[i] = __uint_as_float(pack.word[i]);
    } else {
      value[i] = __hiloint2double(pack.word[2 * i + 1], pack.word[2 * i]);
    }
  }
}

// Rounds to E, to nearest even.
template <typename E, typename Acc, int COUNT>
__device__ inline Pack<E, COUNT> round_to(const Acc (&value)[COUNT]) {
  Pack<E, COUNT> pack;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    if constexpr (sizeof(E) == 2) {
      if (i % 2 == 0) pack.word[i / 2] = Pair<E>::narrow(make_float2(value[i], value[i + 1]));
    } else if constexpr (sizeof(E) == 4) {
      pack.word[i] = __float_as_uint(value[i]);
    } else {
      pack.word[2 * i] = __double2loint(value[i]);
      pack.word[2 * i + 1] = __double2hiint(value[i]);
    }
  }
  return pack;
}

// a * b, rounded once to E: the 16-bit multiplier rounds the exact product of two 16-bit numbers.
template <typename E, int COUNT>
__device__ inline Pack<E, COUNT> multiply_rounded(const Pack<E, COUNT>& a,
                                                  const Pack<E, COUNT>& b) {
  static_assert(sizeof(E) == 2, "wider products are not exact in Acc either way");
  Pack<E, COUNT> product;
#pragma unroll
  for (int w = 0; w < a.WORDS; ++w) product.word[w] = Pair<E>::mul(a.word[w], b.word[w]);
  return product;
}
