// Statistics: what is summed over a row, and what a value becomes by it.
//
// Each has of(row, eps), the statistic of a row; normalise(value), which makes a packet's
// normalised values; save(out, row), for the backward pass. Sums are float32, float64 for float64.
// A row whose squares leave the range is summed again, scaled by a power of two, so that y is right
// wherever rstd is a normal number. The squares of float16 stay in range.

#pragma once

#include "row.cuh"

template <class S>
constexpr typename S::Acc PER_COLUMN = typename S::Acc(1.0 / S::COLS);

// Calls again(scale) for a row that is to be summed again. Rows of one warp do so together, since
// they share shuffles, each with the scale that it needs; again() is told whether its own is lost.
template <class S, class Again>
__device__ inline void rescue_if_lost(typename S::Acc mean_square, Again again) {
  const bool lost = out_of_range<typename S::T>(mean_square);
  if (S::LANES < 32 ? __any_sync(FULL_WARP, lost) : lost) {
    // The sums of before have been read, and their memory is used again.
    if constexpr (S::WARPS > 1) __syncthreads();
    cluster_barrier<S::CLUSTER>();
    again(rescue<typename S::T>(mean_square), lost);
  }
}

// RMSNorm: x * rstd, rstd = 1 / sqrt(mean(x^2) + eps).
template <class S>
struct MeanSquare {
  using Acc = typename S::Acc;
  struct Arrays {
    Acc* rstd;  // null where it is not wanted
  };

  Acc rstd;

  static constexpr int PASSES = 1;

  template <class Row>
  __device__ static MeanSquare of(const Row& row, Acc eps) {
    const Acc mean_square = sum<false>(row, eps, 1);
    if constexpr (!Numeric<typename S::T>::NEEDS_RESCUE) return {reciprocal_sqrt(mean_square)};
    MeanSquare made = {reciprocal_sqrt_of_normal(mean_square)};
    rescue_if_lost<S>(mean_square, [&](Acc scale, bool lost) {
      const Acc scaled = reciprocal_sqrt(sum<true>(row, eps, scale));
      if (lost) made.rstd = mul(scaled, scale);
    });
    return made;
  }

  __device__ void normalise(Values<S>& value) const {
#pragma unroll
    for (int i = 0; i < S::VEC; ++i) value[i] = mul(value[i], rstd);
  }

  __device__ void save(const Arrays& out, long long row) const {
    if (out.rstd != nullptr) out.rstd[row] = rstd;
  }

  // What was saved of a row, for its backward pass.
  struct Saved {
    struct Arrays {
      const Acc* rstd;
    };
    static constexpr bool CENTERED = false;

    __device__ Saved(const Arrays& arrays, const Place<S>& place)
        : rstd(place.exists ? arrays.rstd[place.row] : 0) {}
    __device__ void normalise(Values<S>& value) const {
#pragma unroll
      for (int i = 0; i < S::VEC; ++i) value[i] = mul(value[i], rstd);
    }

    Acc rstd;
  };

 private:
  // mean(x^2) + eps, of scale * x where SCALED.
  template <bool SCALED, class Row>
  __device__ static Acc sum(const Row& row, Acc eps, Acc scale) {
    return fma_rn(squares<SCALED>(row, scale), PER_COLUMN<S>,
                  SCALED ? mul(mul(eps, scale), scale) : eps);
  }

 public:
  // The sum of x^2, of scale * x where SCALED.
  template <bool SCALED, class Row>
  __device__ static Acc squares(const Row& row, Acc scale) {
    Acc squares[1];
    row.template sum<0>(squares, [&](Acc v, Acc(&sum)[1]) {
      const Acc scaled = SCALED ? mul(v, scale) : v;
      sum[0] = fma_rn(scaled, scaled, sum[0]);
    });
    return squares[0];
  }
};

// LayerNorm: (x - mean) * rstd, rstd = 1 / sqrt(var + eps), var being the biased variance.
//
// The corrected two-pass algorithm (Chan, Golub and LeVeque, The American Statistician 37, 1983):
// `center` is the mean as summed in float32, and d = x - center is exact or nearly so. Then
// correction = mean(d) is what center missed, and var = mean(d^2) - correction^2, where the
// subtrahend is a rounding error squared. So rows like 1000 + noise keep the digits that x has.
template <class S>
struct Moments {
  using Acc = typename S::Acc;
  struct Arrays {
    Acc* mean;  // both null where they are not wanted
    Acc* rstd;
  };

  Acc center;
  Acc correction;
  Acc rstd;

  static constexpr int PASSES = 2;

  template <class Row>
  __device__ static Moments of(const Row& row, Acc eps) {
    Moments made;
    const Acc mean_square = made.sum<false>(row, eps, 1);
    if constexpr (!Numeric<typename S::T>::NEEDS_RESCUE) {
      made.rstd = reciprocal_sqrt(mean_square);
      return made;
    }
    made.rstd = reciprocal_sqrt_of_normal(mean_square);
    rescue_if_lost<S>(mean_square, [&](Acc scale, bool lost) {
      Moments scaled;
      scaled.rstd = reciprocal_sqrt(scaled.sum<true>(row, eps, scale));
      // Of a tiny mean in two parts the smaller one would be lost.
      const Acc mean = add(scaled.center, scaled.correction);
      const Acc rest = add(sub(scaled.center, mean), scaled.correction);
      if (lost) made = {mul(mean, 1 / scale), mul(rest, 1 / scale), mul(scaled.rstd, scale)};
    });
    return made;
  }

  __device__ void normalise(Values<S>& value) const {
    const Acc shift = mul(-correction, rstd);
#pragma unroll
    for (int i = 0; i < S::VEC; ++i) value[i] = fma_rn(sub(value[i], center), rstd, shift);
  }

  __device__ void save(const Arrays& out, long long row) const {
    if (out.rstd == nullptr) return;
    out.mean[row] = add(center, correction);
    out.rstd[row] = rstd;
  }

  struct Saved {
    struct Arrays {
      const Acc* mean;
      const Acc* rstd;
    };
    static constexpr bool CENTERED = true;

    __device__ Saved(const Arrays& arrays, const Place<S>& place)
        : mean(place.exists ? arrays.mean[place.row] : 0),
          rstd(place.exists ? arrays.rstd[place.row] : 0) {}
    __device__ void normalise(Values<S>& value) const {
#pragma unroll
      for (int i = 0; i < S::VEC; ++i) value[i] = mul(sub(value[i], mean), rstd);
    }

    Acc mean;
    Acc rstd;
  };

 private:
  template <bool SCALED, class Row>
  __device__ Acc sum(const Row& row, Acc eps, Acc scale) {
    return add(variance<SCALED>(row, scale), SCALED ? mul(mul(eps, scale), scale) : eps);
  }

 public:
  // Makes center and correction, of scale * x where SCALED, and returns the biased variance.
  template <bool SCALED, class Row>
  __device__ Acc variance(const Row& row, Acc scale) {
    const auto scaled = [&](Acc v) { return SCALED ? mul(v, scale) : v; };

    Acc total[1];
    row.template sum<0>(total, [&](Acc v, Acc(&s)[1]) { s[0] = add(s[0], scaled(v)); });
    center = mul(total[0], PER_COLUMN<S>);

    Acc about[2];  // sums of d and of d^2
    row.template sum<1>(about, [&](Acc v, Acc(&s)[2]) {
      const Acc d = sub(scaled(v), center);
      s[0] = add(s[0], d);
      s[1] = fma_rn(d, d, s[1]);
    });
    correction = mul(about[0], PER_COLUMN<S>);
    const Acc square = mul(about[1], PER_COLUMN<S>);
    const Acc subtrahend = mul(correction, correction);
    // A comparison that lets NaN through, which max would not.
    return subtrahend > square ? Acc(0) : sub(square, subtrahend);
  }
};

// No norm: of rows that are written as they are, or whose norm is another kernel's.
template <class S>
struct Unnormalised {
  using Acc = typename S::Acc;
  struct Arrays {};
  static constexpr int PASSES = 1;

  template <class Row>
  __device__ static Unnormalised of(const Row&, Acc) {
    return {};
  }
  __device__ void normalise(Values<S>&) const {}
  __device__ void save(const Arrays&, long long) const {}
};
