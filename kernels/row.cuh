// The row that is normalised, as one lane holds it: taken from its source once, summed and visited
// as often as it takes.

#pragma once

#include "source.cuh"
#include "tree.cuh"

// Packets in shared memory, [packet][lane]. Each is its lane's own, and needs no barrier.
extern __shared__ uint4 in_shared_memory[];

// PASSES says how often a statistic visits the row, before it is written. What is visited more than
// once, and rows of up to three packets, which 24 registers hold, are kept converted: twice the
// registers of 16-bit elements, and no conversion after the first. Sums over a second row of a kernel
// have SITES of their own (tree.cuh).
template <class Source, int PASSES, int SITES = 0>
class Row {
 public:
  using S = typename Source::S;
  using T = typename S::T;
  using Acc = typename S::Acc;

  __device__ Row(Source& source, const Place<S>& place) : source_(source), place_(place) {
#pragma unroll
    for (int first = 0; first < S::PACKETS; first += S::AT_ONCE) {
      take(first, S::PACKETS, [&](int turn, const Packet& packet) {
        if constexpr (CONVERTED) {
          unpack(packet, values_[turn]);
        } else {
          packets_[turn] = packet;
        }
      });
    }
#pragma unroll 1
    for (int first = S::PACKETS; first < Source::TAKEN; first += S::AT_ONCE) {
      take(first, Source::TAKEN, [&](int turn, const Packet& packet) {
        if (turn < S::KEPT) *in_shared(turn) = bits<uint4>(packet);
      });
    }
#pragma unroll
    for (int turn = 0; turn < S::TAIL_TURNS; ++turn) {
      if (!place.has_tail(turn)) continue;
      Values<S> value;
      unpack(source.column(place.tail_column(turn)), value);
      tail_[turn] = value[0];
    }
    source.finish();
  }

  // One of the first PACKETS packets; `turn` must be a constant once loops are unrolled.
  __device__ void in_register(int turn, Values<S>& value) const {
    if constexpr (CONVERTED) {
#pragma unroll
      for (int i = 0; i < S::VEC; ++i) value[i] = values_[turn][i];
    } else {
      unpack(packets_[turn], value);
    }
  }

  // One of the packets after those.
  __device__ void past_registers(int turn, Values<S>& value) const {
    unpack(turn < S::KEPT ? bits<Packet>(*in_shared(turn)) : source_.again(turn), value);
  }

  // Calls visit(column, value) for each column of the tail, in the first element.
  template <class Visit>
  __device__ void tail(Visit visit) const {
#pragma unroll
    for (int turn = 0; turn < S::TAIL_TURNS; ++turn) {
      if (!place_.has_tail(turn)) continue;
      Values<S> value = {tail_[turn]};
      visit(place_.tail_column(turn), value);
    }
  }

  // Sums over the row of KINDS terms a column: term(value, sums) adds those of one column.
  template <int SITE, int KINDS, class Term>
  __device__ void sum(Acc (&total)[KINDS], Term term) const {
    Tree<S, KINDS, SITES + SITE> tree;
    Values<S> value;
    tree.template sum<2>(
        total,
        [&](int turn) {
          if (turn < S::TAIL_TURNS && place_.has_tail(turn)) term(tail_[turn], tree.columns(0));
          if (turn >= S::PACKETS) return;
          in_register(turn, value);
          add_packet(turn, value, tree, term);
        },
        [&](int turn) {
          past_registers(turn, value);
          add_packet(turn, value, tree, term);
        });
  }

  // Writes make(turn, value) of each packet to a sink, and make_column(column, value) of each
  // column of the tail. A sink takes several of the packets in registers at once where that saves
  // it work.
  template <class Sink, class Make, class MakeColumn>
  __device__ void write(Sink& sink, Make make, MakeColumn make_column) const {
    constexpr int STEP = Sink::SHIFTS ? S::TOGETHER : 1;
#pragma unroll
    for (int first = 0; first < S::PACKETS; first += STEP) {
      typename Sink::Packet made[STEP];
#pragma unroll
      for (int i = 0; i < STEP; ++i) {
        if (first + i >= S::PACKETS) continue;
        Values<S> value;
        in_register(first + i, value);
        made[i] = make(first + i, value);
      }
      sink.packets(first, S::PACKETS, made);
    }
#pragma unroll 2
    for (int turn = S::PACKETS; turn < S::TURNS; ++turn) {
      Values<S> value;
      past_registers(turn, value);
      const typename Sink::Packet made[1] = {make(turn, value)};
      sink.packets(turn, S::TURNS, made);
    }
    tail([&](int column, Values<S>& value) { sink.column(column, make_column(column, value)); });
    sink.finish();
  }

 private:
  using Packet = Pack<T, S::VEC>;
  static constexpr bool CONVERTED = S::IN_REGISTERS && (PASSES > 1 || S::PACKETS <= 3);

  template <class Sums, class Term>
  __device__ void add_packet(int turn, const Values<S>& value, Sums& sums, Term term) const {
    if (!place_.has_packet(turn)) return;
#pragma unroll
    for (int i = 0; i < S::VEC; ++i) term(value[i], sums.columns(i));
  }

  // Takes packets first, first + 1, ... below end, and hands each to keep().
  template <class Keep>
  __device__ void take(int first, int end, Keep keep) {
    Packet packet[S::AT_ONCE];
    source_.take(first, end, packet);
#pragma unroll
    for (int i = 0; i < S::AT_ONCE; ++i) {
      if (first + i < end) keep(first + i, packet[i]);
    }
  }

  __device__ uint4* in_shared(int turn) const {
    return in_shared_memory + (turn - S::PACKETS) * S::LANES + threadIdx.x;
  }

  Source& source_;
  const Place<S>& place_;
  Packet packets_[CONVERTED ? 1 : S::PACKETS];
  Values<S> values_[CONVERTED ? S::PACKETS : 1];
  Acc tail_[S::TAIL_TURNS + 1];
};
