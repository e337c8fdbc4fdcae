// Epilogues: what becomes of a normalised packet. One is ModelScale, or a list of stages,
// Then<...>, each of them a function of a packet's values and of its turn, that ends in one
// rounding to y's type. A stage asks for its parameters before the row is summed, where registers
// allow.

#pragma once

#include "stream.cuh"

// Parameters of a row, which are the same for all rows. Nothing that a launch writes overlaps them,
// as kernels say by __restrict__: so they come through the read-only cache.
template <class S, class W>
class Parameter {
 public:
  using Packet = Pack<typename W::E, S::VEC>;

  __device__ Parameter(const typename W::E* first, const Place<S>& place)
      : first_(first), place_(place) {}

  __device__ Packet packet(int turn) const {
    const typename W::E* first = first_;
    if (S::AT_ONCE == 1) forget(first);  // there are no registers to keep it in
    return load < W::ACCESS == ALIGNED,
           S::VEC > (packet_at<S>(first, place_.first_packet()) + turn * S::TURN_COLS,
                     place_.has_packet(turn) ? S::VEC : 0);
  }
  __device__ Packet column(int column) const { return load_column<S>(first_, column); }

 private:
  const typename W::E* first_;
  const Place<S>& place_;
};

// The same, kept from before the row is summed where 16 registers hold those of all parameters that
// are loaded beside it, WORDS a packet: then their latency hides in x's.
template <class S, class W, int WORDS = Pack<typename W::E, S::VEC>::WORDS>
class EarlyParameter : public Parameter<S, W> {
 public:
  using typename Parameter<S, W>::Packet;

  __device__ EarlyParameter(const typename W::E* first, const Place<S>& place)
      : Parameter<S, W>(first, place) {
#pragma unroll
    for (int turn = 0; EARLY && turn < S::PACKETS; ++turn) {
      kept_[turn] = Parameter<S, W>::packet(turn);
    }
  }

  __device__ Packet packet(int turn) const {
    return EARLY ? kept_[turn] : Parameter<S, W>::packet(turn);
  }

 private:
  static constexpr bool EARLY = S::IN_REGISTERS && S::PACKETS * WORDS <= 16;
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
    const typename W::E* gamma;
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

  EarlyParameter<S, W> gamma_;
  typename S::Acc offset_;
};

// Plus beta.
template <class S, class B>
class AddBeta {
 public:
  struct Arrays {
    const typename B::E* beta;
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

  EarlyParameter<S, B> beta_;
};

// Times gamma plus beta, in one rounding.
template <class S, class W, class B>
class Affine {
 public:
  struct Arrays {
    const typename W::E* gamma;
    const typename B::E* beta;
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
  EarlyParameter<S, W, WORDS> gamma_;
  EarlyParameter<S, B, WORDS> beta_;
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
    const E* gamma;
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
  EarlyParameter<S, W> gamma_;
};
