// A row of the backward pass, x beside dy, as one lane holds it.
//
// A lane keeps its first PACKETS packets of x and dy in registers, the next SHARED in shared
// memory. What is left of a longer row is read twice.

#pragma once

#include "row.cuh"

// Dynamic shared memory: SHARED packets of x, as many of dy, then sums, each [packet][lane]. All
// are their lane's own, and need no barrier.
template <class S>
__device__ inline uint4* in_shared(int array, int turn) {
  return in_shared_memory + (array * S::SHARED + turn - S::PACKETS) * S::LANES + threadIdx.x;
}

template <class S, class X, class DY>
class Pairs {
  using T = typename S::T;
  using Packet = Pack<T, S::VEC>;

 public:
  struct Arrays {
    Strided<const T> x;
    Strided<const T> dy;
  };

  __device__ Pairs(const Arrays& arrays, const Place<S>& place)
      : Pairs(arrays.x.row(place), arrays.dy.row(place), place) {}

  // What else there is of a packet.
  struct Beside {};

  // One of the first PACKETS packets; `turn` must be a constant once loops are unrolled.
  __device__ void in_register(int turn, Values<S>& x, Values<S>& dy, Beside&) const {
    unpack(x_packets_[turn], x);
    unpack(dy_packets_[turn], dy);
  }

  // One of the packets after those.
  __device__ void past_registers(int turn, Values<S>& x, Values<S>& dy, Beside&) const {
    if (turn < S::KEPT) {
      unpack(bits<Packet>(*in_shared<S>(0, turn)), x);
      unpack(bits<Packet>(*in_shared<S>(1, turn)), dy);
    } else {
      unpack(x_.again(turn), x);
      unpack(dy_.again(turn), dy);
    }
  }

  // A column of the tail, in the first element.
  __device__ void tail(int turn, Values<S>& x, Values<S>& dy, Beside&) const {
    unpack(x_tail_[turn], x);
    unpack(dy_tail_[turn], dy);
  }

 private:
  static constexpr int TO_SHARED_AT_ONCE = S::HAS_ROOM ? 2 : 1;

  __device__ Pairs(const T* x, const T* dy, const Place<S>& place) : x_(x, place), dy_(dy, place) {
#pragma unroll
    for (int first = 0; first < S::PACKETS; first += S::TOGETHER) {
      Packet packet[2][S::TOGETHER];
      x_.read(first, S::PACKETS, packet[0]);
      dy_.read(first, S::PACKETS, packet[1]);
#pragma unroll
      for (int i = 0; i < S::TOGETHER; ++i) {
        if (first + i >= S::PACKETS) break;
        x_packets_[first + i] = packet[0][i];
        dy_packets_[first + i] = packet[1][i];
      }
    }
#pragma unroll 1
    for (int first = S::PACKETS; first < S::KEPT; first += TO_SHARED_AT_ONCE) {
      Packet packet[2][TO_SHARED_AT_ONCE];
      x_.read(first, S::KEPT, packet[0]);
      dy_.read(first, S::KEPT, packet[1]);
#pragma unroll
      for (int i = 0; i < TO_SHARED_AT_ONCE; ++i) {
        if (first + i >= S::KEPT) break;
        *in_shared<S>(0, first + i) = bits<uint4>(packet[0][i]);
        *in_shared<S>(1, first + i) = bits<uint4>(packet[1][i]);
      }
    }
#pragma unroll
    for (int turn = 0; turn < S::TAIL_TURNS; ++turn) {
      if (!place.has_tail(turn)) continue;
      x_tail_[turn] = load_column<S>(x, place.tail_column(turn));
      dy_tail_[turn] = load_column<S>(dy, place.tail_column(turn));
    }
  }

  Reader<S, X> x_;
  Reader<S, DY> dy_;
  Packet x_packets_[S::PACKETS];
  Packet dy_packets_[S::PACKETS];
  Packet x_tail_[S::TAIL_TURNS + 1];
  Packet dy_tail_[S::TAIL_TURNS + 1];
};
