// Norms whose sums come from elsewhere, of a row that is divided among devices, say: rows of x are a
// part of those that are normalised. And those sums, of such a part.

#pragma once

#include "norm.cuh"

// RMSNorm by the sum of x^2, over 1 / per_column columns.
template <class S>
struct GivenSquares {
  using Acc = typename S::Acc;
  using Arrays = typename MeanSquare<S>::Arrays;
  struct Sums {
    const Acc* squares;
    Acc per_column;
  };

  __device__ GivenSquares(const Sums& sums, const Place<S>& place, Acc eps) {
    made_.rstd = reciprocal_sqrt(fma_rn(sums.squares[place.row], sums.per_column, eps));
  }
  __device__ void normalise(Values<S>& value) const { made_.normalise(value); }
  __device__ void save(const Arrays& out, long long row) const { made_.save(out, row); }

 private:
  MeanSquare<S> made_;
};

// LayerNorm by the mean and the sum of (x - mean)^2.
template <class S>
struct GivenMoments {
  using Acc = typename S::Acc;
  using Arrays = typename Moments<S>::Arrays;
  struct Sums {
    const Acc* moments;  // two numbers a row
    Acc per_column;
  };

  __device__ GivenMoments(const Sums& sums, const Place<S>& place, Acc eps) {
    const Acc* const row = sums.moments + 2 * place.row;
    made_.center = row[0];
    made_.correction = 0;
    made_.rstd = reciprocal_sqrt(fma_rn(row[1], sums.per_column, eps));
  }
  __device__ void normalise(Values<S>& value) const { made_.normalise(value); }
  __device__ void save(const Arrays& out, long long row) const { made_.save(out, row); }

 private:
  Moments<S> made_;
};

template <class Source, class Given, class Epilogue, class Sink>
__device__ inline void normalise_by(const typename Source::Arrays& from,
                                    const typename Epilogue::Arrays& parameters,
                                    const typename Sink::Arrays& to,
                                    const typename Given::Arrays& statistics, const Rows& rows,
                                    typename Given::Acc eps, const typename Given::Sums& sums) {
  using S = typename Source::S;
  const Place<S> here = Place<S>::of(rows);
  if (here.is_idle_warp) return;
  wait_for_kernel_before();

  Source source(from, here);
  const Row<Source, 1> row(source, here);
  const Epilogue epilogue(parameters, here);
  const Given statistic(sums, here, eps);
  let_kernel_after_start<S>();

  Sink sink(to, here);
  write_normalised<S>(row, statistic, epilogue, sink);
  if (here.is_first_lane()) statistic.save(statistics, here.row);
}

// The sum of squares of each row, as MeanSquare adds them up.
template <class S>
struct Squares {
  static constexpr int PASSES = 1;
  template <class Row>
  __device__ static void write(const Row& row, bool is_first, typename S::Acc* out) {
    const auto squares = MeanSquare<S>::template squares<false>(row, 1);
    if (is_first) out[0] = squares;
  }
};

// The mean of each row, and the sum of (x - mean)^2.
template <class S>
struct MeanAndSquares {
  static constexpr int PASSES = 2;
  template <class Row>
  __device__ static void write(const Row& row, bool is_first, typename S::Acc* out) {
    Moments<S> made;
    const auto variance = made.template variance<false>(row, 1);
    if (!is_first) return;
    out[0] = add(made.center, made.correction);
    out[1] = mul(variance, typename S::Acc(S::COLS));
  }
};

template <class Source, class Sums>
__device__ inline void sum_rows(const typename Source::Arrays& from, typename Source::S::Acc* out,
                                const Rows& rows) {
  using S = typename Source::S;
  const Place<S> here = Place<S>::of(rows);
  if (here.is_idle_warp) return;
  wait_for_kernel_before();

  Source source(from, here);
  const Row<Source, Sums::PASSES> row(source, here);
  let_kernel_after_start<S>();
  Sums::write(row, here.is_first_lane(), out + here.row * Sums::PASSES);
  cluster_barrier<S::CLUSTER>();  // other blocks may still read this one's sums
}
