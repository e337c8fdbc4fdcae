// Epilogues: what becomes of a normalised packet. One is ModelScale, or a list of stages,
// Then<...>, each of them a function of a packet's values and of its turn, that ends in one
// rounding to y's type.

#pragma once

#include "operand.cuh"

// Rounds to E, as the model does before gamma multiplies.
template <class S, typename E>
struct Round {
  struct Arrays {};
  __device__ Round(const Arrays&, const Place<S>&) {}
  __device__ void packet(int, Values<S>& value) const { unpack(round_to<E>(value), value); }
  __device__ void column(int, Values<S>& value) const { unpack(round_to<E>(value), value); }
};

// Times gamma + offset, a sum that is rounded to Sum where it is an array's own.
template <class S, class W, bool HAS_OFFSET, typename Sum = typename S::Acc>
class Times {
 public:
  struct Arrays {
    typename W::Rows gamma;
    typename S::Acc offset;
  };
  __device__ Times(const Arrays& arrays, const Place<S>& place)
      : gamma_(arrays.gamma, place), offset_(arrays.offset) {}
  __device__ void packet(int turn, Values<S>& value) const { times(value, gamma_.packet(turn)); }
  __device__ void column(int column, Values<S>& value) const {
    times(value, gamma_.column(column));
  }

 private:
  __device__ void times(Values<S>& value, const Pack<typename W::E, S::VEC>& gamma) const {
    Values<S> factor;
    unpack(gamma, factor);
    if constexpr (HAS_OFFSET) {
#pragma unroll
      for (int i = 0; i < S::VEC; ++i) factor[i] = add(factor[i], offset_);
      unpack(round_to<Sum>(factor), factor);
    }
#pragma unroll
    for (int i = 0; i < S::VEC; ++i) value[i] = mul(value[i], factor[i]);
  }

  EarlyOperand<S, W> gamma_;
  typename S::Acc offset_;
};

// Plus beta, or a shift.
template <class S, class B>
class Plus {
 public:
  struct Arrays {
    typename B::Rows beta;
  };
  __device__ Plus(const Arrays& arrays, const Place<S>& place) : beta_(arrays.beta, place) {}
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

// Times gamma + offset plus beta, in one rounding.
template <class S, class W, class B, bool HAS_OFFSET>
class TimesPlus {
 public:
  struct Arrays {
    typename W::Rows gamma;
    typename B::Rows beta;
    typename S::Acc offset;
  };
  __device__ TimesPlus(const Arrays& arrays, const Place<S>& place)
      : gamma_(arrays.gamma, place), beta_(arrays.beta, place), offset_(arrays.offset) {}
  __device__ void packet(int turn, Values<S>& value) const {
    apply(value, gamma_.packet(turn), beta_.packet(turn));
  }
  __device__ void column(int column, Values<S>& value) const {
    apply(value, gamma_.column(column), beta_.column(column));
  }

 private:
  __device__ void apply(Values<S>& value, const Pack<typename W::E, S::VEC>& gamma,
                        const Pack<typename B::E, S::VEC>& beta) const {
    Values<S> factor, bias;
    unpack(gamma, factor);
    unpack(beta, bias);
#pragma unroll
    for (int i = 0; i < S::VEC; ++i) {
      value[i] = fma_rn(value[i], HAS_OFFSET ? add(factor[i], offset_) : factor[i], bias[i]);
    }
  }

  static constexpr int WORDS =
      Pack<typename W::E, S::VEC>::WORDS + Pack<typename B::E, S::VEC>::WORDS;
  EarlyOperand<S, W, WORDS> gamma_;
  EarlyOperand<S, B, WORDS> beta_;
  typename S::Acc offset_;
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
