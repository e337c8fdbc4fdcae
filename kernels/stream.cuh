// How a lane's packets arrive and leave, however their rows lie.
//
//   ALIGNED    every row starts on 16 bytes (on 8 where VEC elements take 8): whole packets
//   SHIFTED    rows start anywhere: aligned chunks, shifted by shuffles (shift.cuh); whole warps
//   ELEMENTS   what is left: sub-warps on odd addresses, and packs of other sizes than 8 and 16 bytes
//   SCALAR     one element stands for a whole row
//   STAGGERED  rows of codes start anywhere (codes.cuh)
//
// Tails go element by element in any case, and so do packets of shifted rows that are read again.

#pragma once

#include "place.cuh"
#include "shift.cuh"

enum Access { ELEMENTS, ALIGNED, SHIFTED, SCALAR, STAGGERED };

// What a kernel is told of an array: the type of its elements, and how it reaches them. An array of
// rows has the number of its seam, which is its own where it is SHIFTED; what has none is one row,
// the same for all.
template <typename E_, Access ACCESS_, int SEAM_ = -1>
struct Array {
  using E = E_;
  static constexpr Access ACCESS = ACCESS_;
  static constexpr int SEAM = SEAM_;
  using Rows = Strided<const E, SEAM_ == -1>;
};

// Reads a lane's packets in order.
template <class S, class A, Access = A::ACCESS>
class Reader {
  using E = typename A::E;

 public:
  __device__ Reader(const E* row, const Place<S>& place)
      : place_(place), mine_(packet_at<S>(row, place.first_packet())) {}

  // Packets first, first + 1, ... below end, as many as `packet` holds.
  template <int COUNT>
  __device__ void read(int first, int end, Pack<E, S::VEC> (&packet)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (first + i < end) packet[i] = again(first + i);
    }
  }

  // One packet, out of order.
  __device__ Pack<E, S::VEC> again(int turn) const {
    return load < A::ACCESS == ALIGNED,
           S::VEC > (mine_ + turn * S::TURN_COLS, place_.has_packet(turn) ? S::VEC : 0);
  }

 private:
  const Place<S>& place_;
  const E* mine_;
};

template <class S, class A>
class Reader<S, A, SHIFTED> {
  using E = typename A::E;

 public:
  __device__ Reader(const E* row, const Place<S>& place) : again_(row, place), share_(row, place) {}

  template <int COUNT>
  __device__ void read(int first, int end, Pack<E, S::VEC> (&packet)[COUNT]) {
    share_.read(first, min(end - first, COUNT), packet);
  }

  // Out of order there is no neighbour to shift from: element by element.
  __device__ Pack<E, S::VEC> again(int turn) const { return again_.again(turn); }

 private:
  Reader<S, Array<E, ELEMENTS>> again_;
  Shifted<S, E, A::SEAM> share_;
};

template <class S, class A>
class Reader<S, A, SCALAR> {
  using E = typename A::E;

 public:
  // A row past the last has no element.
  __device__ Reader(const E* row, const Place<S>& place) {
    E element = {};
    if (place.has_columns) element = *row;
    packet_ = same<S::VEC>(element);
  }

  template <int COUNT>
  __device__ void read(int, int, Pack<E, S::VEC> (&packet)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) packet[i] = packet_;
  }

 private:
  Pack<E, S::VEC> packet_;
};

// Writes a lane's packets in order. Lanes without a packet call too.
template <class S, class A, Access = A::ACCESS>
class Writer {
  using E = typename A::E;

 public:
  __device__ Writer(E* row, const Place<S>& place)
      : place_(place), mine_(packet_at<S>(row, place.first_packet())) {}

  // Packets first, first + 1, ... below end.
  template <int COUNT>
  __device__ void write(int first, int end, const Pack<E, S::VEC> (&packet)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (first + i < end && place_.writes() && place_.has_packet(first + i)) {
        store<A::ACCESS == ALIGNED>(mine_ + (first + i) * S::TURN_COLS, packet[i], S::VEC);
      }
    }
  }

  __device__ void finish() {}

 private:
  const Place<S>& place_;
  E* mine_;
};

template <class S, class A>
class Writer<S, A, SHIFTED> {
  using E = typename A::E;

 public:
  __device__ Writer(E* row, const Place<S>& place) : share_(row, place) {}

  template <int COUNT>
  __device__ void write(int first, int end, const Pack<E, S::VEC> (&packet)[COUNT]) {
    share_.write(first, min(end - first, COUNT), packet);
  }

  __device__ void finish() { share_.finish(); }

 private:
  Shifted<S, E, A::SEAM> share_;
};

// One column, as the first element of a pack.
template <class S, typename E>
__device__ inline Pack<E, S::VEC> load_column(const E* row, int column) {
  return load<false, S::VEC>(row + column, 1);
}

template <typename E, int VEC>
__device__ inline void store_column(E* row, int column, const Pack<E, VEC>& pack) {
  store<false>(row + column, pack, 1);
}
