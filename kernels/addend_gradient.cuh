// The backward pass of a norm of h = residual + gate * x: beside the gradient of h, those of x and of
// the gate.
//
// Formula      What gradient.cuh makes is dh, which is the gradient of residual too. Of dh as it is
//              rounded, dx = gate * dh, and dgate = sum of dh * x over the rows of a segment, which
//              have one row of the gate (segment_sums.cuh).
//
// Traffic      As gradient.cuh, and x and dx once; the gate's row from cache.
//
// Numerics     The product is rounded once, to x's type, and those of dgate are not: they are added
//              up in float32 (float64 for float64), as dgamma's are.

#pragma once

#include "gradient.cuh"

// The gradient of what a gate scales, of a row whose packets are handed on in order.
template <class S, class X, class G, class DX>
class AddendGradient {
  using E = typename DX::E;
  using Gate = Pack<typename G::E, S::VEC>;

 public:
  struct Arrays {
    Strided<const typename X::E> x;
    typename G::Rows gate;
    Strided<E> dx;
  };
  using Made = Pack<E, S::VEC>;
  // What is multiplied for the sums of columns.
  struct Terms {
    Values<S> dh;
    Values<S> x;
  };

  __device__ AddendGradient(const Arrays& arrays, const Place<S>& place)
      : x_(arrays.x, place),
        gate_(arrays.gate, place),
        row_(arrays.dx.row(place)),
        dx_(row_, place) {}

  // Makes dx of a packet of `value`, the gradient of h.
  template <class Beside, class Weight>
  __device__ void packet(int turn, const Beside&, const Values<S>&, const Weight&,
                         const Values<S>& value, Made& made, Terms& terms) {
    Gate gate[1];
    gate_.read(turn, turn + 1, gate);
    x_.take(turn, terms.x);
    multiply(value, gate[0], made, terms);
  }

  template <class Beside, class Weight>
  __device__ void column(int column, const Beside&, const Values<S>&, const Weight&,
                         const Values<S>& value, Terms& terms) {
    Made made;
    x_.column(column, terms.x);
    multiply(value, gate_.column(column), made, terms);
    store_column(row_, column, made);
  }

  template <int COUNT>
  __device__ void write(int first, int end, const Made (&made)[COUNT]) {
    dx_.write(first, end, made);
  }
  __device__ void finish() { dx_.finish(); }

 private:
  __device__ static void multiply(const Values<S>& value, const Gate& gate, Made& made,
                                  Terms& terms) {
    Values<S> product;
    unpack(gate, product);
    unpack(round_to<typename S::T>(value), terms.dh);
#pragma unroll
    for (int i = 0; i < S::VEC; ++i) product[i] = mul(product[i], terms.dh[i]);
    made = round_to<E>(product);
  }

  RowBeside<S, X> x_;
  Operand<S, G> gate_;
  E* row_;
  Writer<S, DX> dx_;
};
