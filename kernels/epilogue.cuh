// Epilogues: what becomes of a normalised packet. One is ModelScale, or a list of stages,
// Then<...>, each of them a function of a packet's values and of its turn, that ends in one
// rounding to y's type. A stage asks for its parameters before the row is summed, where registers
// allow.

#pragma once

#include "stream.cuh"

// What stands beside the rows that are normalised: a row that all of them share, or rows like them.
// Nothing that a launch writes overlaps a shared one, as kernels say by __restrict__: so it comes
// through the read-only cache.
template <class S, class A, bool ONE_ROW = (A::NUMBER == -1)>
class Operand {
 public:
  using Packet = Pack<typename A::E, S::VEC>;

  __device__ Operand(const typename A::Rows& rows, const Place<S>& place)
      : first_(rows.first), place_(place) {}

  // Packets first, first + 1, ..., in order.
  template <int COUNT>
  __device__ void read(int first, Packet (&packet)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) packet[i] = one(first + i);
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
  __device__ void read(int first, Packet (&packet)[COUNT]) {
    reader_.read(first, S::TURNS, packet);
  }
  __device__ Packet column(int column) {
    return load_column<S>(row_, A::ACCESS == SCALAR ? 0 : column);
  }

 private:
  const typename A::E* row_;
  Reader<S, A> reader_;
};

// The same, kept from before the row is summed where 16 registers hold those of all operands that
// are loaded beside it, WORDS a packet: then their latency hides in x's.
template <class S, class A, int WORDS = Pack<typename A::E, S::VEC>::WORDS>
class EarlyOperand {
 public:
  using Packet = typename Operand<S, A>::Packet;

  __device__ EarlyOperand(const typename A::Rows& rows, const Place<S>& place)
      : operand_(rows, place) {
    if constexpr (EARLY) operand_.read(0, kept_);
  }

  __device__ Packet packet(int turn) const {
    if constexpr (EARLY) return kept_[turn];
    Packet packet[1];
    operand_.read(turn, packet);
    return packet[0];
  }
  __device__ Packet column(int column) const { return operand_.column(column); }

 private:
  static constexpr bool EARLY = S::IN_REGISTERS && S::PACKETS * WORDS <= 16;
  mutable Operand<S, A> operand_;  // it is read in order, and knows how far
  Packet kept_[EARLY ? S::PACKETS : 1];
};

// Rounds to E, as the model does before gamma multiplies.
template <class S, typename E>
struct Round {
  struct Arrays {};
  __device__ Round(const Arrays&, const Place<S>&) {}
  __device__ void packet(int, Values<S>& value) const { unpack(round_to<E>(value), value); }
  __device__ void column(int, Values<S>& value) const { unpack(round_to<E>(value), value); }
};

// Times gamma + offset.
template <class S, class W, bool HAS_OFFSET>
class Scale {
 public:
  struct Arrays {
    typename W::Rows gamma;
    typename S::Acc offset;
  };
  __device__ Scale(const Arrays& arrays, const Place<S>& place)
      : gamma_(arrays.gamma, place), offset_(arrays.offset) {}
  __device__ void packet(int turn, Values<S>& value) const { times(value, gamma_.packet(turn)); }
  __device__ void column(int column, Values<S>& value) const {
    times(value, gamma_.column(column));
  }

 private:
  __device__ void times(Values<S>& value, const Pack<typename W::E, S::VEC>& gamma) const {
    Values<S> factor;
    unpack(gamma, factor);
#pragma unroll
    for (int i = 0; i < S::VEC; ++i) {
      value[i] = mul(value[i], HAS_OFFSET ? add(factor[i], offset_) : factor[i]);
    }
  }

  EarlyOperand<S, W> gamma_;
  typename S::Acc offset_;
};

// Plus beta.
template <class S, class B>
class AddBeta {
 public:
  struct Arrays {
    typename B::Rows beta;
  };
  __device__ AddBeta(const Arrays& arrays, const Place<S>& place) : beta_(arrays.beta, place) {}
  __device__ void packet(int turn, Values<S>& value) const { plus(value, beta_.packet(turn)); }
  __device__ void column(int column, Values<S>& value) const { plus(value, beta_.column(column)); }

 private:
  __device__ static void plus(Values<S>& value, const Pack<typename B::E, S::VEC>& beta) {
    Values<S> bias;
    unpack(beta, bias);
#pragma unroll
    for (int i = 0; i < S::VEC; ++i) value[i] = add(value[i], bias[i]);
  }

  EarlyOperand<S, B> beta_;
};

// Times gamma plus beta, in one rounding.
template <class S, class W, class B>
class Affine {
 public:
  struct Arrays {
    typename W::Rows gamma;
    typename B::Rows beta;
  };
  __device__ Affine(const Arrays& arrays, const Place<S>& place)
      : gamma_(arrays.gamma, place), beta_(arrays.beta, place) {}
  __device__ void packet(int turn, Values<S>& value) const {
    apply(value, gamma_.packet(turn), beta_.packet(turn));
  }
  __device__ void column(int column, Values<S>& value) const {
    apply(value, gamma_.column(column), beta_.column(column));
  }

 private:
  __device__ static void apply(Values<S>& value, const Pack<typename W::E, S::VEC>& gamma,
                               const Pack<typename B::E, S::VEC>& beta) {
    Values<S> factor, bias;
    unpack(gamma, factor);
    unpack(beta, bias);
#pragma unroll
    for (int i = 0; i < S::VEC; ++i) value[i] = fma_rn(value[i], factor[i], bias[i]);
  }

  static constexpr int WORDS =
      Pack<typename W::E, S::VEC>::WORDS + Pack<typename B::E, S::VEC>::WORDS;
  EarlyOperand<S, W, WORDS> gamma_;
  EarlyOperand<S, B, WORDS> beta_;
};

// Stages in order, and a rounding to Y.
template <class S, typename Y, class... Stages>
struct Then;

template <class S, typename Y>
struct Then<S, Y> {
  struct Arrays {};
  __device__ Then(const Arrays&, const Place<S>&) {}
  __device__ Pack<Y, S::VEC> packet(int, Values<S>& value) const { return round_to<Y>(value); }
  __device__ Pack<Y, S::VEC> column(int, Values<S>& value) const { return round_to<Y>(value); }
};

template <class S, typename Y, class First, class... Others>
class Then<S, Y, First, Others...> {
 public:
  struct Arrays {
    typename First::Arrays first;
    typename Then<S, Y, Others...>::Arrays others;
  };
  __device__ Then(const Arrays& arrays, const Place<S>& place)
      : first_(arrays.first, place), others_(arrays.others, place) {}
  __device__ Pack<Y, S::VEC> packet(int turn, Values<S>& value) const {
    first_.packet(turn, value);
    return others_.packet(turn, value);
  }
  __device__ Pack<Y, S::VEC> column(int column, Values<S>& value) const {
    first_.column(column, value);
    return others_.column(column, value);
  }

 private:
  First first_;
  Then<S, Y, Others...> others_;
};

// Rounded to the 16-bit type of gamma and y, and times gamma in it, as the models define it: the
// 16-bit multiplier rounds the exact product, so that nothing is converted in between.
template <class S, class W>
class ModelScale {
  using E = typename W::E;

 public:
  struct Arrays {
    typename W::Rows gamma;
  };
  __device__ ModelScale(const Arrays& arrays, const Place<S>& place)
      : gamma_(arrays.gamma, place) {}
  __device__ Pack<E, S::VEC> packet(int turn, Values<S>& value) const {
    return multiply_rounded(round_to<E>(value), gamma_.packet(turn));
  }
  __device__ Pack<E, S::VEC> column(int column, Values<S>& value) const {
    return multiply_rounded(round_to<E>(value), gamma_.column(column));
  }

 private:
  EarlyOperand<S, W> gamma_;
};
