// Operands: what stands beside the rows that are normalised, and broadcasts against them. They are
// asked for before the row is summed, where registers allow.

#pragma once

#include "stream.cuh"

// A row that all rows share, or rows like them. Nothing that a launch writes overlaps an operand, as
// kernels say by __restrict__: so it comes through the read-only cache.
template <class S, class A, bool ONE_ROW = (A::SEAM == -1)>
class Operand {
 public:
  using Packet = Pack<typename A::E, S::VEC>;

  __device__ Operand(const typename A::Rows& rows, const Place<S>& place)
      : first_(rows.first), place_(place) {}

  // Packets first, first + 1, ... below end, in order.
  template <int COUNT>
  __device__ void read(int first, int end, Packet (&packet)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (first + i < end) packet[i] = one(first + i);
    }
  }
  __device__ Packet column(int column) { return load_column<S>(first_, column); }

 private:
  __device__ Packet one(int turn) const {
    const typename A::E* first = first_;
    if (S::AT_ONCE == 1) forget(first);  // there are no registers to keep it in
    return load < A::ACCESS == ALIGNED,
           S::VEC > (packet_at<S>(first, place_.first_packet()) + turn * S::TURN_COLS,
                     place_.has_packet(turn) ? S::VEC : 0);
  }

  const typename A::E* first_;
  const Place<S>& place_;
};

template <class S, class A>
class Operand<S, A, false> {
 public:
  using Packet = Pack<typename A::E, S::VEC>;

  __device__ Operand(const typename A::Rows& rows, const Place<S>& place)
      : row_(rows.row(place)), reader_(row_, place) {}

  template <int COUNT>
  __device__ void read(int first, int end, Packet (&packet)[COUNT]) {
    reader_.read(first, end, packet);
  }
  __device__ Packet column(int column) {
    return load_column<S>(row_, A::ACCESS == SCALAR ? 0 : column);
  }

 private:
  const typename A::E* row_;
  Reader<S, A> reader_;
};

// An operand that is kept from before the row is summed where there are registers for it with all
// that is loaded beside it, WORDS a packet: then its latency hides in x's.
template <class S, class A, int WORDS = Pack<typename A::E, S::VEC>::WORDS>
class EarlyOperand {
 public:
  using Packet = typename Operand<S, A>::Packet;

  __device__ EarlyOperand(const typename A::Rows& rows, const Place<S>& place)
      : operand_(rows, place) {
    if constexpr (EARLY) operand_.read(0, S::PACKETS, kept_);
  }

  __device__ Packet packet(int turn) const {
    if constexpr (EARLY) return kept_[turn];
    Packet packet[1];
    operand_.read(turn, turn + 1, packet);
    return packet[0];
  }
  __device__ Packet column(int column) const { return operand_.column(column); }

 private:
  static constexpr bool EARLY = S::IN_REGISTERS && S::PACKETS * WORDS <= S::EARLY_WORDS;
  mutable Operand<S, A> operand_;  // it is read in order, and knows how far
  Packet kept_[EARLY ? S::PACKETS : 1];
};
