// Rotary position embedding (RoPE) of heads, after their norm or before it.
//
//   a' = a * c - b * s        of each pair (a, b) of columns, by the angle of the pair
//   b' = b * c + a * s        and the position of the token
//
// Mapping      As of norm.cuh. A row is one head, or all heads of a token. A column needs its
//              partner's value: often the lane has that itself, in the same packet or in one of
//              another turn; otherwise rows pass through shared memory, once (`Kept`).
//
// Traffic      x once, y once; the cosines and sines of a token once a row, from cache; 4 bytes a
//              row for its rstd where that is wanted.
//
// Numerics     What was normalised is rounded as the norm's y is. Each product and sum is rounded
//              to the type that the operators of arrays give it, `Product`; to Acc, it is not.
//              Where all are of one 16-bit type, two are computed at a time, in it.
//
// Preconditions  As of norm.cuh, and: registers keep a row. Heads have an even number of columns.
//              Positions are rows of the tables.

#pragma once

#include "norm.cuh"
#include "rotation.cuh"

// A sink: rotated, to y.
template <class S, class H, class Kept, class Angles, class Y>
class RotatedTo {
 public:
  using Packet = typename Kept::Packet;
  struct Arrays {
    typename Stored<S, Y>::Arrays y;
    typename Angles::Arrays angles;
  };
  static constexpr bool SHIFTS = Kept::SHIFTS;

  __device__ RotatedTo(const Arrays& arrays, const Place<S>& place)
      : place_(place), kept_(place), rotation_(arrays.angles, place), y_(arrays.y, place) {}

  template <int COUNT>
  __device__ void packets(int first, int end, const Packet (&packet)[COUNT]) {
    kept_.packets(first, end, packet);
  }
  __device__ void column(int column, const Packet& packet) { kept_.column(column, packet); }

  __device__ void finish() {
    kept_.finish();
    using E = typename Y::E;
    constexpr int STEP = Stored<S, Y>::SHIFTS ? S::TOGETHER : 1;
#pragma unroll
    for (int first = 0; first < S::PACKETS; first += STEP) {
      Pack<E, S::VEC> made[STEP];
#pragma unroll
      for (int i = 0; i < STEP; ++i) {
        if (first + i < S::PACKETS) made[i] = rotation_.template packet<E>(kept_, first + i);
      }
      y_.packets(first, S::PACKETS, made);
    }
#pragma unroll
    for (int turn = 0; turn < S::TAIL_TURNS; ++turn) {
      if (!place_.has_tail(turn)) continue;
      const int column = place_.tail_column(turn);
      y_.column(column, rotation_.template column<E>(kept_, column));
    }
    y_.finish();
  }

 private:
  const Place<S>& place_;
  Kept kept_;
  Rotation<S, H, Angles> rotation_;
  Stored<S, Y> y_;
};

// A source: the row is x, rotated.
template <class S_, class X, class H, class Kept, class Angles>
class Rotated {
  using T = typename S_::T;

 public:
  using S = S_;
  struct Arrays {
    Strided<const typename X::E> x;
    typename Angles::Arrays angles;
  };
  static constexpr int TAKEN = S::KEPT;

  __device__ Rotated(const Arrays& arrays, const Place<S>& place)
      : kept_(place), rotation_(arrays.angles, place) {
    const typename X::E* row = arrays.x.row(place);
    Reader<S, X> x(row, place);
    typename Kept::Packet packet[S::PACKETS];
    x.read(0, S::PACKETS, packet);
    kept_.packets(0, S::PACKETS, packet);
#pragma unroll
    for (int turn = 0; turn < S::TAIL_TURNS; ++turn) {
      if (!place.has_tail(turn)) continue;
      kept_.column(place.tail_column(turn), load_column<S>(row, place.tail_column(turn)));
    }
    kept_.finish();
  }

  template <int COUNT>
  __device__ void take(int first, int end, Pack<T, S::VEC> (&packet)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (first + i < end) packet[i] = rotation_.template packet<T>(kept_, first + i);
    }
  }

  __device__ Pack<T, S::VEC> again(int) const { return {}; }  // registers keep all of it

  __device__ Pack<T, S::VEC> column(int column) {
    return rotation_.template column<T>(kept_, column);
  }

  __device__ void finish() {}

 private:
  Kept kept_;
  Rotation<S, H, Angles> rotation_;
};

// As normalise() in norm.cuh, of the group'th ROWS rows. The sink is there before the row is summed:
// it knows its angles then.
template <class Source, class Statistic, class Epilogue, class Sink>
__device__ inline void normalise_heads(const typename Source::Arrays& from,
                                       const typename Epilogue::Arrays& parameters,
                                       const typename Sink::Arrays& to,
                                       const typename Statistic::Arrays& statistics,
                                       const Rows& rows, typename Statistic::Acc eps,
                                       long long group) {
  using S = typename Source::S;
  static_assert(S::IN_REGISTERS && S::CLUSTER == 1, "the plan keeps rows in registers");
  const Place<S> here = Place<S>::of(rows, group);
  if (here.is_idle_warp) return;
  wait_for_kernel_before();

  Source source(from, here);
  const Row<Source, Statistic::PASSES> row(source, here);
  const Epilogue epilogue(parameters, here);
  Sink sink(to, here);
  let_kernel_after_start<S>();
  const Statistic statistic = Statistic::of(row, eps);
  write_normalised<S>(row, statistic, epilogue, sink);
  if (here.is_first_lane()) statistic.save(statistics, here.row);
}
