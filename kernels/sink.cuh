// Sinks: where a finished packet goes.

#pragma once

#include "stream.cuh"

// To y.
template <class S, class Y>
class Stored {
 public:
  using Packet = Pack<typename Y::E, S::VEC>;
  struct Arrays {
    Strided<typename Y::E> y;
  };
  static constexpr bool SHIFTS = Y::ACCESS == SHIFTED;  // then several packets share the work

  __device__ Stored(const Arrays& arrays, const Place<S>& place)
      : place_(place), row_(arrays.y.row(place)), y_(row_, place) {}

  // Packets first, first + 1, ... below end, in order.
  template <int COUNT>
  __device__ void packets(int first, int end, const Packet (&packet)[COUNT]) {
    y_.write(first, end, packet);
  }
  __device__ void column(int column, const Packet& packet) {
    if (place_.writes()) store_column(row_, column, packet);
  }
  __device__ void finish() { y_.finish(); }

 private:
  const Place<S>& place_;
  typename Y::E* row_;
  Writer<S, Y> y_;
};
