// LayerNorm.
//
// Formula      y = (x - mean) * rstd * gamma + beta,  rstd = 1 / sqrt(var + eps), over the last
//              COLS columns of each row; var is the biased variance about the mean.
//              add_layer_norm normalises h = round(x + residual) in place of x, and writes it to
//              residual_out.
//
// Mapping      As in rms_norm.cu: LANES threads own a row, ROWS rows a block. Two sums, so two
//              barriers where a row is a block.
//
// Traffic      rows * COLS * 2 * sizeof(X) + COLS * (sizeof(W) + sizeof(B)), plus 8 bytes a row
//              where mean and rstd are wanted. add_layer_norm: rows * COLS * 2 * sizeof(T) more,
//              for residual and h. Rows too long for registers read x, or h, twice more.
//
// Numerics     The corrected two-pass algorithm (Chan, Golub and LeVeque, The American Statistician
//              37, 1983): `center` is the mean as summed in float32, and d = x - center is exact or
//              nearly so. Then correction = mean(d) is what center missed, and
//              var = mean(d^2) - correction^2, where the subtrahend is a rounding error squared.
//              So rows like 1000 + noise keep the digits that x has. A row whose squares leave
//              the range is done again, scaled, as in rms_norm.cu. One rounding to X, at the end.
//
// Instructions  Counted as in rms_norm.cu, in float16 at N=4096: 112, of them 88 for the data (8
//              conversions, 8 additions, 24 about the mean, 16 to normalise, 16 conversions of gamma
//              and beta, 8 to apply them, 4 roundings, 4 accesses).
//
// Preconditions  (_check.py, _launch.py) As in rms_norm.cu; beta as gamma. mean_out and rstd_out are
//              both null or neither.

#include "row.cuh"

using W = GAMMA_TYPE;
using B = BETA_TYPE;

// Parameters are loaded before the sums are known where registers allow, as in rms_norm.cu.
constexpr bool EARLY = IN_REGISTERS && PACKETS * (Pack<W, VEC>::WORDS + Pack<B, VEC>::WORDS) <= 16;

constexpr bool WIDE_PARAMETERS = sizeof(W) > sizeof(T) || sizeof(B) > sizeof(T);
constexpr bool BY_ELEMENT = GAMMA_ACCESS != ALIGNED || BETA_ACCESS != ALIGNED;
constexpr bool CROWDED = BY_ELEMENT || (PACKETS > 3 && (BFLOAT16 || WIDE_PARAMETERS));

// Four packets of float16 spilled up to 24 bytes in the 64 registers that 1024 threads have; 896 have
// 72, or, where 512 share a row, 128. Shifted ones spilled up to 8 in 80, those of rows with a
// tail or a last turn for some lanes only up to 8 in 72, and with the assembler of sm_120 all up to
// 24. With a residual and parameters that come one element at a time they spilled 4 in 128.
constexpr int ALLOWED = RESIDENT_THREADS<CROWDED, WIDE_PARAMETERS>;
constexpr int OF_FOUR = BY_ELEMENT && HAS_RESIDUAL ? 384
                        : !ROWS_ALIGNED || TAIL > 0 || WHOLE % SPAN != 0 || __CUDA_ARCH__ >= 1200
                            ? 640
                            : 896;
constexpr int RESIDENT = sizeof(T) == 2 && PACKETS > 3 && ALLOWED > OF_FOUR ? OF_FOUR : ALLOWED;

// Three passes would convert 16-bit packets three times.
using Row = RowOfLane<IN_REGISTERS && !HAS_RESIDUAL>;

struct LayerNorm {
  Rows rows;
  Acc eps;
};

// The normalised value of x is (x - center - correction) * rstd.
struct Moments {
  Acc center;
  Acc correction;
  Acc rstd;
};

// Makes all moments but rstd, of scale * x where SCALED, and returns 1 / rstd^2. The two sites are
// those of its sums.
template <int SITE, bool SCALED>
__device__ inline Acc sum_moments(const Row& x, const Place& place, Acc eps, Acc scale,
                                  Moments& made) {
  constexpr Acc PER_COLUMN = Acc(1.0 / COLS);
  const auto scaled = [&](Acc v) { return SCALED ? mul(v, scale) : v; };

  Acc sum[1];
  sum_columns<SITE>(x, place, sum, [&](Acc v, Acc(&s)[1]) { s[0] = add(s[0], scaled(v)); });
  made.center = mul(sum[0], PER_COLUMN);

  Acc about[2];  // sums of d and of d^2
  sum_columns<SITE + 1>(x, place, about, [&](Acc v, Acc(&s)[2]) {
    const Acc d = sub(scaled(v), made.center);
    s[0] = add(s[0], d);
    s[1] = fma_rn(d, d, s[1]);
  });
  made.correction = mul(about[0], PER_COLUMN);
  const Acc square = mul(about[1], PER_COLUMN);
  const Acc subtrahend = mul(made.correction, made.correction);
  // A comparison that lets NaN through, which max would not.
  const Acc variance = subtrahend > square ? Acc(0) : sub(square, subtrahend);
  return add(variance, SCALED ? mul(mul(eps, scale), scale) : eps);
}

__device__ inline Moments moments_of(const Row& x, const Place& place, Acc eps) {
  Moments m;
  const Acc mean_square = sum_moments<0, false>(x, place, eps, 1, m);
  if constexpr (!Numeric<T>::NEEDS_RESCUE) {
    m.rstd = reciprocal_sqrt(mean_square);
    return m;
  }
  m.rstd = reciprocal_sqrt_of_normal(mean_square);
  // As in rms_norm.cu.
  const bool lost = out_of_range<T>(mean_square);
  if (LANES < 32 ? __any_sync(FULL_WARP, lost) : lost) {
    const Acc scale = rescue<T>(mean_square);
    Moments s;
    s.rstd = reciprocal_sqrt(sum_moments<2, true>(x, place, eps, scale, s));
    // Of a tiny mean in two parts the smaller one would be lost.
    const Acc mean = add(s.center, s.correction);
    const Acc rest = add(sub(s.center, mean), s.correction);
    if (lost) m = {mul(mean, 1 / scale), mul(rest, 1 / scale), mul(s.rstd, scale)};
  }
  return m;
}

// y of one packet, before it is stored.
__device__ inline Pack<X, VEC> affine(Acc (&value)[VEC], const Moments& m,
                                      const Pack<W, VEC>& gamma, const Pack<B, VEC>& beta) {
  const Acc shift = mul(-m.correction, m.rstd);
#pragma unroll
  for (int i = 0; i < VEC; ++i) value[i] = fma_rn(sub(value[i], m.center), m.rstd, shift);
  Acc factor[VEC];
  Acc bias[VEC];
  unpack(gamma, factor);
  unpack(beta, bias);
#pragma unroll
  for (int i = 0; i < VEC; ++i) {
    if constexpr (HAS_GAMMA && HAS_BETA) {
      value[i] = fma_rn(value[i], factor[i], bias[i]);
    } else if constexpr (HAS_GAMMA) {
      value[i] = mul(value[i], factor[i]);
    } else if constexpr (HAS_BETA) {
      value[i] = add(value[i], bias[i]);
    }
  }
  return round_to<X>(value);
}

// One row: sums, scale and shift, store.
__device__ inline void normalise(X* y, Acc* mean_out, Acc* rstd_out, const Sources& sources,
                                 const W* gamma, const B* beta, const Place& place,
                                 const LayerNorm& norm) {
  const Row row(sources, place);
  let_kernel_after_start();
  // Where there is little room, they spilled up to 24 bytes when they were loaded early.
  if constexpr (FULL && HAS_GAMMA) gamma = in_order(gamma);
  if constexpr (FULL && HAS_BETA) beta = in_order(beta);
  Pack<W, VEC> gamma_kept[PACKETS] = {};
  Pack<B, VEC> beta_kept[PACKETS] = {};
  if constexpr (EARLY) {
#pragma unroll
    for (int turn = 0; turn < PACKETS; ++turn) {
      if (HAS_GAMMA) gamma_kept[turn] = load_parameters<GAMMA_ACCESS>(gamma, place, turn);
      if (HAS_BETA) beta_kept[turn] = load_parameters<BETA_ACCESS>(beta, place, turn);
    }
  }

  const Moments m = moments_of(row, place, norm.eps);
  write_row(
      row_at(y, place.at, norm.rows.y), row, place,
      [&](int turn, Acc(&value)[VEC]) {
        Pack<W, VEC> g = {};
        Pack<B, VEC> b = {};
        if constexpr (EARLY) {
          g = gamma_kept[turn];
          b = beta_kept[turn];
        } else {
          if constexpr (HAS_GAMMA) g = load_parameters<GAMMA_ACCESS>(gamma, place, turn);
          if constexpr (HAS_BETA) b = load_parameters<BETA_ACCESS>(beta, place, turn);
        }
        return affine(value, m, g, b);
      },
      [&](int column, Acc(&value)[VEC]) {
        Pack<W, VEC> g = {};
        Pack<B, VEC> b = {};
        if constexpr (HAS_GAMMA) g = load_column(gamma, column);
        if constexpr (HAS_BETA) b = load_column(beta, column);
        return affine(value, m, g, b);
      });
  if (rstd_out != nullptr && place.lane == 0 && place.exists) {
    mean_out[place.row] = add(m.center, m.correction);
    rstd_out[place.row] = m.rstd;
  }
  cluster_barrier();  // other blocks may still read this one's sums
}

#if HAS_RESIDUAL
KERNEL __launch_bounds__(LANES* ROWS, MIN_BLOCKS<RESIDENT>)
    add_layer_norm(X* y, T* residual_out, Acc* mean_out, Acc* rstd_out, const X* x,
                   const T* residual, const W* __restrict__ gamma, const B* __restrict__ beta,
                   const LayerNorm norm) {
  const Place here = place(norm.rows);
  if (here.is_idle_warp()) return;
  wait_for_kernel_before();
  normalise(y, mean_out, rstd_out, sources(residual_out, x, residual, here, norm.rows), gamma, beta,
            here, norm);
}
#else
KERNEL __launch_bounds__(LANES* ROWS, MIN_BLOCKS<RESIDENT>)
    layer_norm_fwd(X* y, Acc* mean_out, Acc* rstd_out, const X* x, const W* __restrict__ gamma,
                   const B* __restrict__ beta, const LayerNorm norm) {
  const Place here = place(norm.rows);
  if (here.is_idle_warp()) return;
  wait_for_kernel_before();
  normalise(y, mean_out, rstd_out, sources(x, here, norm.rows), gamma, beta, here, norm);
}
#endif
