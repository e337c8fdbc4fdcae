// The kernel of a norm whose result is quantised: a Row comes from a Source, is reduced to a
// Statistic and passes an Epilogue, as in norm.cuh, and is rounded to y's type. y goes to a sink
// that makes codes of it.
//
//   A = max |y| of a row or of a group of its columns; s by A (scale.cuh); q = round(y / s)
//
// Mapping      As in norm.cuh. A group's columns lie beside each other in one turn of a warp, so
//              that its lanes meet in shuffles; a row's A is met for as its sums are, in any order,
//              since a maximum is exact.
//
// Traffic      x is read once, y is not stored unless it is asked for, and made twice where a row
//              has one scale: for A, and for the codes. Rows too long for registers and shared
//              memory are read once more for A. Codes are a byte or half of one, and leave in one
//              access for each packet (codes.cuh).
//
// Numerics     Codes and scales are those of y as rounded, bit for bit (_quant_reference.py).
//
// Preconditions  (cunorm/_check, cunorm/_launch) Those of norm.cuh; y may be x. y is no float64. A
//              group's columns divide a row and a turn of its lanes. q, of COLS codes a row, and the
//              scales with what fills them up overlap nothing. The first of SWIZZLED scales lies on
//              a word.

#pragma once

#include "codes.cuh"
#include "norm.cuh"
#include "scale.cuh"

// The largest |y| of COUNT values; NaN is ignored.
template <int COUNT>
__device__ inline float largest_of(const float (&y)[COUNT]) {
  float largest = size_of(y[0]);
#pragma unroll
  for (int i = 1; i < COUNT; ++i) largest = max_ieee(largest, size_of(y[i]));
  return max_ieee(largest, 0);
}

// The largest of what LANES neighbouring lanes hold.
template <int LANES>
__device__ inline float largest_of_lanes(float largest) {
#pragma unroll
  for (int distance = LANES / 2; distance > 0; distance /= 2) {
    largest = max_ieee(largest, __shfl_xor_sync(FULL_WARP, largest, distance));
  }
  return largest;
}

// A sink that finds the largest |y| of a row.
template <class S, typename Y>
class Largest {
 public:
  using Packet = Pack<Y, S::VEC>;
  static constexpr bool SHIFTS = false;

  __device__ explicit Largest(const Place<S>& place) : place_(place) {}

  template <int COUNT>
  __device__ void packets(int first, int end, const Packet (&packet)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (first + i >= end || !place_.has_packet(first + i)) continue;
      float y[S::VEC];
      unpack(packet[i], y);
      largest_ = max_ieee(largest_, largest_of(y));
    }
  }
  __device__ void column(int, const Packet& packet) {
    float y[S::VEC];
    unpack(packet, y);
    largest_ = max_ieee(largest_, largest_of<1>({y[0]}));
  }
  __device__ void finish() {}

  // Of all of the row, the same in every lane. All of its lanes call together.
  __device__ float of_row() const {
    float largest = largest_of_lanes<S::SPAN>(largest_);
    if constexpr (S::WARPS > 1) {
      __shared__ float of_warp[S::WARPS];
      if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = largest;
      __syncthreads();
      largest = largest_of_lanes<32>(of_warp[threadIdx.x % 32 < S::WARPS ? threadIdx.x % 32 : 0]);
    }
    if constexpr (S::CLUSTER > 1) {
      __shared__ float of_block;
      if (threadIdx.x == 0) of_block = largest;
      cluster_barrier<S::CLUSTER>();
#pragma unroll
      for (int rank = 0; rank < S::CLUSTER; ++rank) {
        largest = max_ieee(largest, *in_block(&of_block, rank));
      }
    }
    return largest;
  }

 private:
  const Place<S>& place_;
  float largest_ = 0;
};

// Beside the codes y may be stored, or not.
template <class S, typename Y>
struct Dropped {
  struct Arrays {};
  static constexpr bool SHIFTS = false;
  __device__ Dropped(const Arrays&, const Place<S>&) {}
  template <int COUNT>
  __device__ void packets(int, int, const Pack<Y, S::VEC> (&)[COUNT]) {}
  __device__ void column(int, const Pack<Y, S::VEC>&) {}
  __device__ void finish() {}
};

// The codes of y to q, and its scales. GROUP columns share a scale: 0 for those of a row. A scale
// that IS_GIVEN is that of all rows.
template <class S, class Format, class Scale, ScaleLayout LAYOUT, int GROUP, bool IS_GIVEN, class Q,
          typename Y, class Beside>
class Quantised {
  static constexpr int GROUPS = GROUP == 0 ? 1 : S::COLS / GROUP;
  static constexpr int LANES_OF_GROUP = GROUP == 0 ? 1 : GROUP / S::VEC;
  static_assert(GROUP == 0 || S::SPAN % LANES_OF_GROUP == 0, "a group lies in one turn");

 public:
  using Element = Y;
  using Packet = Pack<Y, S::VEC>;
  struct Arrays {
    Strided<typename Q::E> q;
    void* scales;
    typename Beside::Arrays y;
    Bounds bounds;
  };
  static constexpr bool SHIFTS = Beside::SHIFTS;
  static constexpr bool IS_OF_ROWS = GROUP == 0 && !IS_GIVEN;

  // `largest` is that of the row, where a row has a scale.
  __device__ Quantised(const Arrays& arrays, const Rows& rows, const Place<S>& place, float largest)
      : place_(place),
        codes_(reinterpret_cast<unsigned char*>(arrays.q.row(place)), place),
        beside_(arrays.y, place),
        bounds_(arrays.bounds),
        scales_(arrays.scales, rows.count, place),
        scale_(GROUP == 0 ? scale(largest) : Scale::of(0, bounds_)) {
    if constexpr (GROUP == 0) {
      if (place.is_first_lane() && (!IS_GIVEN || place.row == 0)) scales_.store(0, scale_.stored);
    }
    if constexpr (!IS_GIVEN) scales_.fill_up();
  }

  // Packets first, first + 1, ... below end, in order.
  template <int COUNT>
  __device__ void packets(int first, int end, const Packet (&packet)[COUNT]) {
    beside_.packets(first, end, packet);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (first + i >= end) continue;
      float y[S::VEC];
      unpack(packet[i], y);
      const int number = place_.first_packet() + (first + i) * S::SPAN;
      const bool is_there = place_.writes() && place_.has_packet(first + i);
      if constexpr (GROUP > 0) {
        scale_ = scale(largest_of_lanes<LANES_OF_GROUP>(largest_of(y)));
        const bool is_first = place_.lane_of_warp() % LANES_OF_GROUP == 0;
        if (is_there && is_first) scales_.store(number / LANES_OF_GROUP, scale_.stored);
      }
      if (Q::ACCESS == STAGGERED || is_there) codes_.write(first + i, number, packed(y));
    }
  }
  __device__ void column(int column, const Packet& packet) {
    beside_.column(column, packet);
    float y[S::VEC];
    unpack(packet, y);
    if (place_.writes()) codes_.column(column, Codes<Format>::of(scale_.quotient(y[0])));
  }
  __device__ void finish() {
    beside_.finish();
    codes_.finish();
  }

 private:
  static constexpr int BYTES = S::VEC * Format::BITS / 8;  // of a packet: 2, 4 or 8

  __device__ Scale scale(float largest) const {
    if constexpr (IS_GIVEN) return Scale(bounds_.given);
    const float bounded = min_ieee(max_ieee(largest, bounds_.floor), bounds_.ceiling);
    return Scale::of(bounded, bounds_);
  }

  __device__ PackOfCodes<BYTES> packed(const float (&y)[S::VEC]) const {
    constexpr int CODES_OF_WORD = 32 / Format::BITS;
    PackOfCodes<BYTES> codes = {};
#pragma unroll
    for (int i = 0; i < S::VEC; i += 2) {
      const unsigned two = codes_of<Format>(scale_.quotient(y[i]), scale_.quotient(y[i + 1]));
      codes.word[i / CODES_OF_WORD] |= two << i % CODES_OF_WORD * Format::BITS;
    }
    return codes;
  }

  const Place<S>& place_;
  CodesWriter<S, Q::ACCESS, BYTES> codes_;
  Beside beside_;
  Bounds bounds_;
  Scales<S, typename Scale::Stored, LAYOUT, GROUPS> scales_;
  Scale scale_;
};

template <class Source, class Statistic, class Epilogue, class Sink>
__device__ inline void quantise(const typename Source::Arrays& from,
                                const typename Epilogue::Arrays& parameters,
                                const typename Sink::Arrays& to, const Rows& rows,
                                typename Source::S::Acc eps) {
  using S = typename Source::S;
  const Place<S> here = Place<S>::of(rows);
  if (here.is_idle_warp) return;
  wait_for_kernel_before();

  Source source(from, here);
  const Row<Source, Statistic::PASSES> row(source, here);  // reads x
  const Epilogue epilogue(parameters, here);
  let_kernel_after_start<S>();
  const Statistic statistic = Statistic::of(row, eps);

  float largest = 0;
  if constexpr (Sink::IS_OF_ROWS) {
    Largest<S, typename Sink::Element> sink(here);
    write_normalised<S>(row, statistic, epilogue, sink);
    largest = sink.of_row();
  }
  Sink sink(to, rows, here, largest);
  write_normalised<S>(row, statistic, epilogue, sink);
  cluster_barrier<S::CLUSTER>();  // other blocks may still read this one's sums
}
