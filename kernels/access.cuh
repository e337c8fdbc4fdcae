// How a lane's packets arrive and leave, however their rows lie.
//
//   ALIGNED    every row starts on 16 bytes (on 8 where VEC elements take 8): whole packets
//   SHIFTED    rows start anywhere: aligned chunks, shifted by shuffles (shift.cuh); whole warps
//   ELEMENTS   what is left: sub-warps on odd addresses, and packs of another size than 16 bytes
//
// Tails go element by element in any case.

#pragma once

#include "place.cuh"
#include "shift.cuh"

enum Access { ELEMENTS, ALIGNED, SHIFTED };

// The arrays of rows; each that is shifted has shared memory of its own.
enum Site {
  OF_X,
  OF_Y,
  OF_RESIDUAL,
  OF_RESIDUAL_OUT,
  OF_DY = OF_Y,
  OF_DX = OF_RESIDUAL,
  OF_DRESIDUAL = OF_RESIDUAL_OUT
};

// Reads a lane's packets in order.
template <typename E, int ACCESS, int SITE>
class Reader {
 public:
  __device__ Reader(const E* row, const Place& place)
      : place_(place), mine_(packet_at(row, place.first_packet())) {}

  // Packets first, first + 1, ... below end, as many as `packet` holds.
  template <int COUNT>
  __device__ void read(int first, int end, Pack<E, VEC> (&packet)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (first + i < end) packet[i] = again(first + i);
    }
  }

  // One packet, out of order.
  __device__ Pack<E, VEC> again(int turn) const {
    return load<ACCESS == ALIGNED, VEC>(mine_ + turn * TURN_COLS,
                                        place_.has_packet(turn) ? VEC : 0);
  }

 private:
  const Place& place_;
  const E* mine_;
};

template <typename E, int SITE>
class Reader<E, SHIFTED, SITE> {
 public:
  __device__ Reader(const E* row, const Place& place) : again_(row, place), share_(row, place) {}

  template <int COUNT>
  __device__ void read(int first, int end, Pack<E, VEC> (&packet)[COUNT]) {
    uint4 joined[COUNT];
    share_.read(first, min(end - first, COUNT), joined);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) packet[i] = bits<Pack<E, VEC>>(joined[i]);
  }

  __device__ Pack<E, VEC> again(int turn) const { return again_.again(turn); }

 private:
  Reader<E, ELEMENTS, SITE> again_;
  Shifted<E, SITE> share_;
};

// Writes a lane's packets in order. Lanes without a packet call too.
template <typename E, int ACCESS, int SITE>
class Writer {
 public:
  __device__ Writer(E* row, const Place& place)
      : place_(place), mine_(packet_at(row, place.first_packet())) {}

  // Packets first, first + 1, ... below end.
  template <int COUNT>
  __device__ void write(int first, int end, const Pack<E, VEC> (&packet)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (first + i < end && place_.has_packet(first + i)) {
        store<ACCESS == ALIGNED>(mine_ + (first + i) * TURN_COLS, packet[i], VEC);
      }
    }
  }

  __device__ void finish() {}

 private:
  const Place& place_;
  E* mine_;
};

template <typename E, int SITE>
class Writer<E, SHIFTED, SITE> {
 public:
  __device__ Writer(E* row, const Place& place) : share_(row, place) {}

  template <int COUNT>
  __device__ void write(int first, int end, const Pack<E, VEC> (&packet)[COUNT]) {
    uint4 moved[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; ++i) moved[i] = bits<uint4>(packet[i]);
    share_.write(first, min(end - first, COUNT), moved);
  }

  __device__ void finish() { share_.finish(); }

 private:
  Shifted<E, SITE> share_;
};

// One column, as the first element of a pack.
template <typename E>
__device__ inline Pack<E, VEC> load_column(const E* row, int column) {
  return load<false, VEC>(row + column, 1);
}

template <typename E>
__device__ inline void store_column(E* row, int column, const Pack<E, VEC>& pack) {
  store<false>(row + column, pack, 1);
}

// Gamma or beta beside a lane's packet of `turn`. Nothing that a launch writes overlaps them, as
// kernels say by __restrict__: so they come through the read-only cache.
template <int ACCESS, typename W>
__device__ inline Pack<W, VEC> load_parameters(const W* first, const Place& place, int turn) {
  return load<ACCESS == ALIGNED, VEC>(packet_at(first, place.first_packet()) + turn * TURN_COLS,
                                      place.has_packet(turn) ? VEC : 0);
}
