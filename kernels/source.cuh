// Sources: what the row that is normalised is made of. A source hands out packets in order, once.

#pragma once

#include "operand.cuh"

// The row is x.
template <class S_, class X>
class Loaded {
  using E = typename X::E;

 public:
  using S = S_;
  struct Arrays {
    Strided<const E> x;
  };
  static constexpr int TAKEN = S::KEPT;  // packets that must be taken

  __device__ Loaded(const Arrays& arrays, const Place<S>& place)
      : row_(arrays.x.row(place)), x_(row_, place) {}

  // Packets first, first + 1, ... below end.
  template <int COUNT>
  __device__ void take(int first, int end, Pack<E, S::VEC> (&packet)[COUNT]) {
    x_.read(first, end, packet);
  }

  // A packet that was not kept.
  __device__ Pack<E, S::VEC> again(int turn) const { return x_.again(turn); }

  // A column of the tail, in the first element.
  __device__ Pack<E, S::VEC> column(int column) { return load_column<S>(row_, column); }

  __device__ void finish() {}

 private:
  const E* row_;
  Reader<S, X> x_;
};

// What is added to a residual: x, or x times a gate, rounded to the type of the product.
template <class S>
struct Ungated {
  struct Arrays {};
  __device__ Ungated(const Arrays&, const Place<S>&) {}
  template <int COUNT>
  __device__ void times(int, int, Values<S> (&)[COUNT]) {}
  __device__ void times_column(int, Values<S>&) {}
};

template <class S, class G, typename Product>
class TimesOperand {
 public:
  struct Arrays {
    typename G::Rows gate;
  };
  __device__ TimesOperand(const Arrays& arrays, const Place<S>& place)
      : gate_(arrays.gate, place) {}

  template <int COUNT>
  __device__ void times(int first, int end, Values<S> (&x)[COUNT]) {
    Pack<typename G::E, S::VEC> gate[COUNT];
    gate_.read(first, end, gate);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (first + i < end) multiply(x[i], gate[i]);
    }
  }
  __device__ void times_column(int column, Values<S>& x) { multiply(x, gate_.column(column)); }

 private:
  __device__ static void multiply(Values<S>& x, const Pack<typename G::E, S::VEC>& gate) {
    Values<S> factor;
    unpack(gate, factor);
#pragma unroll
    for (int i = 0; i < S::VEC; ++i) x[i] = mul(x[i], factor[i]);
    unpack(round_to<Product>(x), x);
  }

  Operand<S, G> gate_;
};

// The row is h = round(x + residual), which is written on the way.
template <class S_, class X, class Residual, class H, class Gate>
class Added {
  using T = typename S_::T;

 public:
  using S = S_;
  struct Arrays {
    Strided<const typename X::E> x;
    Strided<const T> residual;
    Strided<T> h;
    typename Gate::Arrays gate;
  };
  static constexpr int TAKEN = S::TURNS;  // a residual is added once, also where h is read again

  __device__ Added(const Arrays& arrays, const Place<S>& place)
      : place_(place),
        x_row_(arrays.x.row(place)),
        residual_row_(arrays.residual.row(place)),
        h_row_(arrays.h.row(place)),
        x_(x_row_, place),
        residual_(residual_row_, place),
        gate_(arrays.gate, place),
        h_(h_row_, place),
        again_(h_row_, place) {}

  template <int COUNT>
  __device__ void take(int first, int end, Pack<T, S::VEC> (&h)[COUNT]) {
    Pack<typename X::E, S::VEC> x[COUNT];
    x_.read(first, end, x);
    residual_.read(first, end, h);
    Values<S> value[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (first + i < end) unpack(x[i], value[i]);
    }
    gate_.times(first, end, value);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (first + i < end) h[i] = sum(value[i], h[i]);
    }
    h_.write(first, end, h);
  }

  __device__ Pack<T, S::VEC> again(int turn) const { return again_.again(turn); }

  __device__ Pack<T, S::VEC> column(int column) {
    Values<S> value;
    unpack(load_column<S>(x_row_, column), value);
    gate_.times_column(column, value);
    const Pack<T, S::VEC> h = sum(value, load_column<S>(residual_row_, column));
    if (place_.writes()) store_column(h_row_, column, h);
    return h;
  }

  __device__ void finish() { h_.finish(); }

 private:
  __device__ static Pack<T, S::VEC> sum(Values<S>& x, const Pack<T, S::VEC>& residual) {
    Values<S> b;
    unpack(residual, b);
#pragma unroll
    for (int i = 0; i < S::VEC; ++i) x[i] = add(x[i], b[i]);
    return round_to<T>(x);
  }

  const Place<S>& place_;
  const typename X::E* x_row_;
  const T* residual_row_;
  T* h_row_;
  Reader<S, X> x_;
  Reader<S, Residual> residual_;
  Gate gate_;
  Writer<S, H> h_;
  Reader<S, Array<T, H::ACCESS == ALIGNED ? ALIGNED : ELEMENTS>> again_;
};
