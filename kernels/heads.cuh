// Heads of rows: which columns are pairs, and how a lane gets at the partners of its own.

#pragma once

#include "row.cuh"
#include "sink.cuh"

// Heads of D columns. The first R of each are rotated in pairs: neighbours where INTERLEAVED, else
// columns R / 2 apart.
template <class S, int D_, int R_, bool INTERLEAVED_, typename Product_>
struct Heads {
  using Product = Product_;
  static constexpr int D = D_, R = R_, HALF = R_ / 2;
  static constexpr bool INTERLEAVED = INTERLEAVED_;
  // Whether each packet is of one head, and all of it rotated or none; so is its partner then.
  static constexpr bool IN_PACKETS =
      D % S::VEC == 0 && R % S::VEC == 0 && (INTERLEAVED || HALF % S::VEC == 0);

  __device__ static int column_of_head(int column) { return S::COLS == D ? column : column % D; }
  __device__ static bool is_first(int column) {
    return INTERLEAVED ? column % 2 == 0 : column < HALF;
  }
  // Which of the angles is that of a column of a head.
  __device__ static int angle(int column) {
    return INTERLEAVED ? column / 2 : is_first(column) ? column : column - HALF;
  }
  // From a column to its partner.
  __device__ static int to_partner(int column) {
    constexpr int DISTANCE = INTERLEAVED ? 1 : HALF;
    return is_first(column) ? DISTANCE : -DISTANCE;
  }
};

// A row of type E between its norm and its rotation: a sink, which says of each packet what its
// partners are once finish() was called. PITCH bytes of shared memory are a row's; where it is 0, a
// lane has its packets' partners itself.
template <class S, class H, typename E, int PITCH>
class Kept {
 public:
  using Element = E;
  using Packet = Pack<E, S::VEC>;
  static constexpr bool SHIFTS = false, BY_LANES = false;

  __device__ explicit Kept(const Place<S>& place)
      : place_(place), row_((E*)((char*)in_shared_memory + threadIdx.y * PITCH)) {}

  template <int COUNT>
  __device__ void packets(int first, int end, const Packet (&packet)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (first + i < end && place_.has_packet(first + i)) {
        store<true>(at(number(first + i)), packet[i], S::VEC);
      }
    }
  }
  __device__ void column(int column, const Packet& packet) { store_column(row_, column, packet); }

  __device__ void finish() {
    if constexpr (S::LANES > 32) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  }

  // Of a packet that the lane has.
  __device__ Packet own(int turn) const { return load<true, S::VEC>(at(number(turn)), S::VEC); }

  // The same of one whose partner is a packet, and where its first column is in its head.
  __device__ Packet partner(int turn, int column) const {
    const int packets = H::to_partner(column) / S::VEC;
    return load<true, S::VEC>(at(number(turn) + packets), S::VEC);
  }

  __device__ typename S::Acc value(int column) const {
    Values<S> value;
    unpack(load_column<S>(row_, column), value);
    return value[0];
  }

 private:
  __device__ unsigned number(int turn) const { return place_.first_packet() + turn * S::SPAN; }
  __device__ E* at(unsigned packet) const { return packet_at<S>(row_, packet); }

  const Place<S>& place_;
  E* row_;
};

template <class S, class H, typename E>
class Kept<S, H, E, 0> {
 public:
  using Element = E;
  using Packet = Pack<E, S::VEC>;
  static constexpr bool SHIFTS = false, BY_LANES = true;
  // Turns from a packet to its partner.
  static constexpr int TURNS = H::INTERLEAVED ? 0 : H::HALF / S::TURN_COLS;
  static_assert(H::IN_PACKETS && S::TAIL == 0, "partners are packets");
  static_assert(H::INTERLEAVED || (S::SHARES == 1 && H::D == S::COLS &&
                                   TURNS * S::TURN_COLS == H::HALF),
                "partners are of one lane");

  __device__ explicit Kept(const Place<S>&) {}

  template <int COUNT>
  __device__ void packets(int first, int end, const Packet (&packet)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (first + i < end) held_[first + i] = packet[i];
    }
  }
  __device__ void column(int, const Packet&) {}
  __device__ void finish() {}

  __device__ Packet own(int turn) const { return held_[turn]; }
  __device__ Packet partner(int turn, int) const {
    return held_[turn < TURNS ? turn + TURNS : turn - TURNS];
  }
  __device__ typename S::Acc value(int) const { return 0; }  // rows are packets, and nobody asks

 private:
  Packet held_[S::PACKETS];
};
