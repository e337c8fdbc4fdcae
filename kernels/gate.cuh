// Gates: rows that are multiplied by an activation of a row beside them, before they are normalised
// or after.

#pragma once

#include "epilogue.cuh"

__device__ inline float exp_of(float a) { return expf(a); }
__device__ inline double exp_of(double a) { return exp(a); }
__device__ inline float divide(float a, float b) { return __fdiv_rn(a, b); }
__device__ inline double divide(double a, double b) { return __ddiv_rn(a, b); }

// Activations, within 2.5 ulp of float32 (float64 for float64 data), of any number; but 0 where exp(g)
// is subnormal, which is flushed. Far below 0 exp(-g) is all that is left of 1 + exp(-g), and would
// leave the range. Without a branch, of which there would be one for each element.
struct Sigmoid {
  // numerator / (1 + exp(-g))
  template <typename Acc>
  __device__ static Acc times(Acc numerator, Acc g) {
    const bool is_far = g < -64;
    const Acc e = exp_of(is_far ? g : -g);
    return divide(is_far ? mul(numerator, e) : numerator, is_far ? Acc(1) : add(Acc(1), e));
  }
  template <typename Acc>
  __device__ static Acc of(Acc g) {
    return times(Acc(1), g);
  }
};
struct Silu {
  template <typename Acc>
  __device__ static Acc of(Acc g) {
    return Sigmoid::times(g, g);
  }
};
struct Identity {
  template <typename Acc>
  __device__ static Acc of(Acc g) {
    return g;
  }
};

template <class S, class Activation, typename E>
__device__ inline void times_gate(Values<S>& value, const Pack<E, S::VEC>& gate) {
  Values<S> g;
  unpack(gate, g);
#pragma unroll
  for (int i = 0; i < S::VEC; ++i) value[i] = mul(value[i], Activation::of(g[i]));
}

// A source: the row is x * activation(gate), not rounded, so that a row of 16 bits is kept in 32.
template <class S_, class X, class G, class Activation>
class Gated {
  using T = typename S_::T;

 public:
  using S = S_;
  struct Arrays {
    Strided<const typename X::E> x;
    Strided<const typename G::E> gate;
  };
  static constexpr int TAKEN = S::KEPT;

  __device__ Gated(const Arrays& arrays, const Place<S>& place)
      : x_row_(arrays.x.row(place)),
        gate_row_(arrays.gate.row(place)),
        x_(x_row_, place),
        gate_(gate_row_, place) {}

  template <int COUNT>
  __device__ void take(int first, int end, Pack<T, S::VEC> (&packet)[COUNT]) {
    Pack<typename X::E, S::VEC> x[COUNT];
    Pack<typename G::E, S::VEC> gate[COUNT];
    x_.read(first, end, x);
    gate_.read(first, end, gate);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (first + i < end) packet[i] = product(x[i], gate[i]);
    }
  }

  __device__ Pack<T, S::VEC> again(int turn) const {
    return product(x_.again(turn), gate_.again(turn));
  }

  __device__ Pack<T, S::VEC> column(int column) {
    return product(load_column<S>(x_row_, column), load_column<S>(gate_row_, column));
  }

  __device__ void finish() {}

 private:
  __device__ static Pack<T, S::VEC> product(const Pack<typename X::E, S::VEC>& x,
                                            const Pack<typename G::E, S::VEC>& gate) {
    Values<S> value;
    unpack(x, value);
    times_gate<S, Activation>(value, gate);
    return round_to<T>(value);
  }

  const typename X::E* x_row_;
  const typename G::E* gate_row_;
  Reader<S, X> x_;
  Reader<S, G> gate_;
};

// A stage: times activation(gate).
template <class S, class G, class Activation>
class TimesGate {
 public:
  struct Arrays {
    typename G::Rows gate;
  };
  __device__ TimesGate(const Arrays& arrays, const Place<S>& place) : gate_(arrays.gate, place) {}
  __device__ void packet(int turn, Values<S>& value) const {
    times_gate<S, Activation>(value, gate_.packet(turn));
  }
  __device__ void column(int column, Values<S>& value) const {
    times_gate<S, Activation>(value, gate_.column(column));
  }

 private:
  EarlyOperand<S, G> gate_;
};
