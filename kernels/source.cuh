// Sources: what the row that is normalised is made of. A source hands out packets in order, once.

#pragma once

#include "stream.cuh"

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

// The row is h = round(x + residual), which is written on the way.
template <class S_, class X, class Residual, class H>
class Added {
  using T = typename S_::T;

 public:
  using S = S_;
  struct Arrays {
    Strided<const typename X::E> x;
    Strided<const T> residual;
    Strided<T> h;
  };
  static constexpr int TAKEN = S::TURNS;  // a residual is added once, also where h is read again

  __device__ Added(const Arrays& arrays, const Place<S>& place)
      : x_row_(arrays.x.row(place)),
        residual_row_(arrays.residual.row(place)),
        h_row_(arrays.h.row(place)),
        x_(x_row_, place),
        residual_(residual_row_, place),
        h_(h_row_, place),
        again_(h_row_, place) {}

  template <int COUNT>
  __device__ void take(int first, int end, Pack<T, S::VEC> (&h)[COUNT]) {
    Pack<typename X::E, S::VEC> x[COUNT];
    x_.read(first, end, x);
    residual_.read(first, end, h);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (first + i < end) h[i] = sum(x[i], h[i]);
    }
    h_.write(first, end, h);
  }

  __device__ Pack<T, S::VEC> again(int turn) const { return again_.again(turn); }

  __device__ Pack<T, S::VEC> column(int column) {
    const Pack<T, S::VEC> h =
        sum(load_column<S>(x_row_, column), load_column<S>(residual_row_, column));
    store_column(h_row_, column, h);
    return h;
  }

  __device__ void finish() { h_.finish(); }

 private:
  __device__ static Pack<T, S::VEC> sum(const Pack<typename X::E, S::VEC>& x,
                                        const Pack<T, S::VEC>& residual) {
    Values<S> a, b;
    unpack(x, a);
    unpack(residual, b);
#pragma unroll
    for (int i = 0; i < S::VEC; ++i) a[i] = add(a[i], b[i]);
    return round_to<T>(a);
  }

  const typename X::E* x_row_;
  const T* residual_row_;
  T* h_row_;
  Reader<S, X> x_;
  Reader<S, Residual> residual_;
  Writer<S, H> h_;
  Reader<S, Array<T, H::ACCESS == ALIGNED ? ALIGNED : ELEMENTS>> again_;
};
