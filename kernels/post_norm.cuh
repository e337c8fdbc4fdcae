// Two norms around the sum with a residual: h = residual + norm(x), and y = norm(h), with one read
// of x and residual and one write of h and y. What the first norm is made of is kept where x was.

#pragma once

#include "norm.cuh"

// A source: the row is h, what `Between` makes of x's normalised values; it is written on the way.
template <class First, class Statistic, class Between, class H>
class Normed {
  using T = typename First::T;

 public:
  using S = typename First::S;
  struct Arrays {
    Strided<T> h;
  };
  static constexpr int TAKEN = S::TURNS;  // a residual is added once, also where h is read again

  __device__ Normed(const Arrays& arrays, const First& x, const Statistic& statistic,
                    const Between& between, const Place<S>& place)
      : x_(x),
        statistic_(statistic),
        between_(between),
        place_(place),
        h_row_(arrays.h.row(place)),
        h_(h_row_, place),
        again_(h_row_, place) {}

  // Packets in registers have all of them for an end.
  template <int COUNT>
  __device__ void take(int first, int end, Pack<T, S::VEC> (&h)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (first + i >= end) continue;
      Values<S> value;
      if (end == S::PACKETS) {
        x_.in_register(first + i, value);
      } else {
        x_.past_registers(first + i, value);
      }
      statistic_.normalise(value);
      h[i] = between_.packet(first + i, value);
    }
    h_.write(first, end, h);
  }

  __device__ Pack<T, S::VEC> again(int turn) const { return again_.again(turn); }

  __device__ Pack<T, S::VEC> column(int column) {
    Pack<T, S::VEC> h;
    x_.tail([&](int own, Values<S>& value) {
      if (own != column) return;
      statistic_.normalise(value);
      h = between_.column(column, value);
    });
    if (place_.writes()) store_column(h_row_, column, h);
    return h;
  }

  __device__ void finish() { h_.finish(); }

 private:
  const First& x_;
  const Statistic& statistic_;
  const Between& between_;
  const Place<S>& place_;
  T* h_row_;
  Writer<S, H> h_;
  Reader<S, Array<T, H::ACCESS == ALIGNED ? ALIGNED : ELEMENTS>> again_;
};

template <class Source, class Statistic, class Between, class H, class Epilogue, class Sink>
__device__ inline void normalise_twice(
    const typename Source::Arrays& from, const typename Between::Arrays& between_parameters,
    const Strided<typename Source::S::T>& h, const typename Epilogue::Arrays& parameters,
    const typename Sink::Arrays& to, const typename Statistic::Arrays& of_x,
    const typename Statistic::Arrays& of_h, const Rows& rows, typename Statistic::Acc eps_of_x,
    typename Statistic::Acc eps_of_h) {
  using S = typename Source::S;
  using First = Row<Source, Statistic::PASSES>;
  using Sum = Normed<First, Statistic, Between, H>;
  const Place<S> here = Place<S>::of(rows);
  if (here.is_idle_warp) return;
  wait_for_kernel_before();

  Source source(from, here);
  const First x(source, here);
  const Between between(between_parameters, here);
  const Statistic first = Statistic::of(x, eps_of_x);

  Sum sum({h}, x, first, between, here);
  const Row<Sum, Statistic::PASSES, Statistic::PASSES> row(sum, here);
  const Epilogue epilogue(parameters, here);
  let_kernel_after_start<S>();
  const Statistic second = Statistic::of(row, eps_of_h);

  Sink sink(to, here);
  write_normalised<S>(row, second, epilogue, sink);
  if (here.is_first_lane()) {
    first.save(of_x, here.row);
    second.save(of_h, here.row);
  }
  cluster_barrier<S::CLUSTER>();  // other blocks may still read this one's sums
}
