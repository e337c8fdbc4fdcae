// The backward pass of gated norms: beside dx and the sums, the gradient of the gate.
//
// Formula      s = activation(gate). Where the gate follows, y = t * s with t = n * (gamma +
//              gamma_offset) + beta: what gradient.cuh takes for dy is dy * s, and dgate = dy * t *
//              s'. Where it comes first, v = x * s is normalised: what it makes is dv, dx = dv * s,
//              and dgate = dv * x * s'.
//
// Traffic      As gradient.cuh, and gate and dgate once; gate once more past the registers.

#pragma once

#include "gate.cuh"
#include "gradient.cuh"

// Activations with their slopes, both made of one number, `inner`: sigmoid' = s * (1 - s) and
// silu' = s + g * s * (1 - s) of s = sigmoid.
struct SigmoidAndSlope {
  template <typename Acc>
  __device__ static Acc inner(Acc g) {
    return Sigmoid::of(g);
  }
  template <typename Acc>
  __device__ static Acc value(Acc, Acc s) {
    return s;
  }
  template <typename Acc>
  __device__ static Acc slope(Acc, Acc s) {
    return mul(s, sub(Acc(1), s));
  }
};
struct SiluAndSlope {
  template <typename Acc>
  __device__ static Acc inner(Acc g) {
    return Sigmoid::of(g);
  }
  template <typename Acc>
  __device__ static Acc value(Acc g, Acc s) {
    return mul(g, s);
  }
  template <typename Acc>
  __device__ static Acc slope(Acc g, Acc s) {
    return mul(s, fma_rn(g, sub(Acc(1), s), Acc(1)));
  }
};
struct IdentityAndSlope {
  template <typename Acc>
  __device__ static Acc inner(Acc g) {
    return g;
  }
  template <typename Acc>
  __device__ static Acc value(Acc g, Acc) {
    return g;
  }
  template <typename Acc>
  __device__ static Acc slope(Acc, Acc) {
    return 1;
  }
};

// A row of x beside dy, one of which is multiplied by the activation of a gate: x where the gate
// comes FIRST.
template <class S, class X, class DY, class G, class Activation, bool FIRST>
class GatedPairs {
  using Packet = Pack<typename G::E, S::VEC>;

 public:
  struct Arrays {
    typename Pairs<S, X, DY>::Arrays pairs;
    Strided<const typename G::E> gate;
  };
  // Of a packet, the gate, what its activation is made of, and what that multiplied.
  struct Beside {
    Values<S> gate;
    Values<S> inner;
    Values<S> multiplied;
  };

  __device__ GatedPairs(const Arrays& arrays, const Place<S>& place)
      : pairs_(arrays.pairs, place), row_(arrays.gate.row(place)), gate_(row_, place), place_(place) {
#pragma unroll
    for (int first = 0; first < S::PACKETS; first += S::TOGETHER) {
      Packet packet[S::TOGETHER];
      gate_.read(first, S::PACKETS, packet);
#pragma unroll
      for (int i = 0; i < S::TOGETHER; ++i) {
        if (first + i < S::PACKETS) packets_[first + i] = packet[i];
      }
    }
  }

  __device__ void in_register(int turn, Values<S>& x, Values<S>& dy, Beside& beside) const {
    typename Pairs<S, X, DY>::Beside nothing;
    pairs_.in_register(turn, x, dy, nothing);
    multiply(packets_[turn], x, dy, beside);
  }
  __device__ void past_registers(int turn, Values<S>& x, Values<S>& dy, Beside& beside) const {
    typename Pairs<S, X, DY>::Beside nothing;
    pairs_.past_registers(turn, x, dy, nothing);
    multiply(gate_.again(turn), x, dy, beside);
  }
  __device__ void tail(int turn, Values<S>& x, Values<S>& dy, Beside& beside) const {
    typename Pairs<S, X, DY>::Beside nothing;
    pairs_.tail(turn, x, dy, nothing);
    multiply(load_column<S>(row_, place_.tail_column(turn)), x, dy, beside);
  }

 private:
  __device__ static void multiply(const Packet& packet, Values<S>& x, Values<S>& dy,
                                  Beside& beside) {
    Values<S>& value = FIRST ? x : dy;
    unpack(packet, beside.gate);
#pragma unroll
    for (int i = 0; i < S::VEC; ++i) {
      const typename S::Acc g = beside.gate[i], inner = Activation::inner(g);
      beside.inner[i] = inner;
      beside.multiplied[i] = value[i];
      value[i] = mul(value[i], Activation::value(g, inner));
    }
  }

  Pairs<S, X, DY> pairs_;
  const typename G::E* row_;
  Reader<S, G> gate_;
  const Place<S>& place_;
  Packet packets_[S::PACKETS];
};

// The gradient of the gate, of a row whose packets are handed on in order.
template <class S, class Bias, class DGate, class Activation, bool FIRST>
class GateGradient {
  using E = typename DGate::E;

 public:
  struct Arrays {
    Strided<E> dgate;
    typename Bias::Arrays beta;
  };
  using Made = Pack<E, S::VEC>;
  using Terms = NoTerms;

  __device__ GateGradient(const Arrays& arrays, const Place<S>& place)
      : row_(arrays.dgate.row(place)), dgate_(row_, place), bias_(arrays.beta, place) {}

  // Makes dgate of a packet, and dx of `value`, the gradient of what was normalised.
  template <class Beside, class Weight>
  __device__ void packet(int turn, const Beside& beside, const Values<S>& normal,
                         const Weight& weight, Values<S>& value, Made& made, Terms&) const {
    Values<S> t;
    if constexpr (!FIRST) {
      copy(normal, t);
      weight.packet(turn, t);
      bias_.packet(turn, t);
    }
    finish(beside, t, value, made);
  }

  template <class Beside, class Weight>
  __device__ void column(int column, const Beside& beside, const Values<S>& normal,
                         const Weight& weight, Values<S>& value, Terms&) const {
    Values<S> t;
    if constexpr (!FIRST) {
      copy(normal, t);
      weight.column(column, t);
      bias_.column(column, t);
    }
    Made made;
    finish(beside, t, value, made);
    store_column(row_, column, made);
  }

  template <int COUNT>
  __device__ void write(int first, int end, const Made (&made)[COUNT]) {
    dgate_.write(first, end, made);
  }
  __device__ void finish() { dgate_.finish(); }

 private:
  template <class Beside>
  __device__ static void finish(const Beside& beside, const Values<S>& t, Values<S>& value,
                                Made& made) {
    Values<S> dgate;
#pragma unroll
    for (int i = 0; i < S::VEC; ++i) {
      const typename S::Acc g = beside.gate[i], inner = beside.inner[i];
      const typename S::Acc product = mul(beside.multiplied[i], FIRST ? value[i] : t[i]);
      dgate[i] = mul(product, Activation::slope(g, inner));
      if (FIRST) value[i] = mul(value[i], Activation::value(g, inner));
    }
    made = round_to<E>(dgate);
  }

  E* row_;
  Writer<S, DGate> dgate_;
  Bias bias_;
};
