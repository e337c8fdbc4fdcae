// The backward pass of heads that were normalised, then rotated.
//
// Formula      As gradient.cuh, of dn in dy's place: pairs of dy turned back, a = a' * c + b' * s
//              and b = b' * c - a' * s. Columns that are not rotated pass.
//
// Mapping      As gradient.cuh; partners as in rope.cuh.
//
// Traffic      As gradient.cuh; the cosines and sines of a token once a row, from cache.
//
// Numerics     As gradient.cuh. Each product and sum of a rotation is rounded to Acc.
//
// Preconditions  As of gradient.cuh, and: registers keep a row. Positions are rows of the tables.

#pragma once

#include "gradient.cuh"
#include "rotation.cuh"

// A row of x beside dy, which is turned back.
template <class S, class X, class DY, class H, class Kept, class Angles>
class TurnedBackPairs {
  using T = typename S::T;
  using Acc = typename S::Acc;
  using Packet = Pack<T, S::VEC>;
  static_assert(S::IN_REGISTERS, "the plan keeps rows in registers");

 public:
  struct Arrays {
    Strided<const T> x;
    Strided<const T> dy;
    typename Angles::Arrays angles;
  };
  struct Beside {};

  __device__ TurnedBackPairs(const Arrays& arrays, const Place<S>& place) {
    const T* const x_row = arrays.x.row(place);
    const T* const dy_row = arrays.dy.row(place);
    const Rotation<S, H, Angles> rotation(arrays.angles, place);
    Reader<S, X> x(x_row, place);
    Reader<S, DY> dy(dy_row, place);
    Kept kept(place);
#pragma unroll
    for (int first = 0; first < S::PACKETS; first += S::TOGETHER) {
      Packet packet[2][S::TOGETHER];
      x.read(first, S::PACKETS, packet[0]);
      dy.read(first, S::PACKETS, packet[1]);
#pragma unroll
      for (int i = 0; i < S::TOGETHER; ++i) {
        if (first + i < S::PACKETS) x_packets_[first + i] = packet[0][i];
      }
      kept.packets(first, S::PACKETS, packet[1]);
    }
#pragma unroll
    for (int turn = 0; turn < S::TAIL_TURNS; ++turn) {
      if (!place.has_tail(turn)) continue;
      const int column = place.tail_column(turn);
      x_tail_[turn] = load_column<S>(x_row, column);
      kept.column(column, load_column<S>(dy_row, column));
    }
    kept.finish();
#pragma unroll
    for (int turn = 0; turn < S::PACKETS; ++turn) {
      unpack(rotation.template packet<Acc>(kept, turn), dn_[turn]);
    }
#pragma unroll
    for (int turn = 0; turn < S::TAIL_TURNS; ++turn) {
      if (!place.has_tail(turn)) continue;
      Values<S> value;
      unpack(rotation.template column<Acc>(kept, place.tail_column(turn)), value);
      dn_tail_[turn] = value[0];
    }
  }

  __device__ void in_register(int turn, Values<S>& x, Values<S>& dn, Beside&) const {
    unpack(x_packets_[turn], x);
    copy(dn_[turn], dn);
  }
  __device__ void past_registers(int, Values<S>&, Values<S>&, Beside&) const {}  // there are none
  __device__ void tail(int turn, Values<S>& x, Values<S>& dn, Beside&) const {
    unpack(x_tail_[turn], x);
    dn[0] = dn_tail_[turn];
#pragma unroll
    for (int i = 1; i < S::VEC; ++i) dn[i] = 0;
  }

 private:
  Packet x_packets_[S::PACKETS];
  Packet x_tail_[S::TAIL_TURNS + 1];
  Values<S> dn_[S::PACKETS];
  Acc dn_tail_[S::TAIL_TURNS + 1];
};
