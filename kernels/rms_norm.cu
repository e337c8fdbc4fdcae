// RMSNorm.
//
// Formula      y = x * rstd * (gamma + gamma_offset),  rstd = 1 / sqrt(mean(x^2) + eps), over the
//              last COLS columns of each row. CAST_BEFORE rounds x * rstd to X before gamma
//              multiplies, as Qwen2, Llama and T5 define it; otherwise there is one rounding, at
//              the end. add_rms_norm normalises h = round(x + residual) in place of x, and writes
//              it to residual_out.
//
// Mapping      LANES threads own a row (row.cuh says which columns), ROWS rows a block. Up to 32
//              lanes share a warp with other rows and meet in shuffles; more are a block of their
//              own and meet at one barrier; the longest rows are a cluster of CLUSTER blocks, and
//              meet at that one's barrier too.
//
// Traffic      rows * COLS * 2 * sizeof(X) + COLS * sizeof(W), plus 4 bytes a row where rstd is
//              wanted. add_rms_norm: rows * COLS * 2 * sizeof(T) more, for residual and h. Rows too
//              long for registers read x, or h, once more.
//
// Numerics     Squares, their sum and rstd are float32 (float64 for float64). A row whose squares
//              overflow, or fall below the normal numbers, is summed again, scaled by a power of
//              two, so that y is right wherever rstd is a normal number: up to a root mean square of
//              8e37 in float32 and bfloat16. The squares of float16 stay in range.
//
// Instructions  PTX, of a warp, for each 32 packets of x, without mov and cvta; float16 with a
//              float16 gamma: 43 for the data itself (8 conversions and 8 squares, 8 conversions
//              and 8 products with rstd, 4 roundings, 4 products with gamma, 3 accesses), the others
//              for addresses, the sum and rstd, once a row: 59 in all at N=128, 56 at 1024, 60 at
//              4096, 62 at 8192, 61 at 32768; 35 in float32 at 4096. 89 at N=769, where 768 take 53:
//              10 move words in and out, between lanes and within them, 5 tell the eight shifts
//              apart, twice a row, 11 are for the seams and 5 for the last column, once a row, the
//              others for addresses and conditions.
//
// Preconditions  (_check.py, _launch.py) Columns have unit stride. y is x, and residual_out is
//              residual, or overlaps nothing; gamma overlaps nothing that is written. *_ACCESS
//              hold for every row. rows.count >= 1, eps >= 0 and finite.

#include "row.cuh"

using W = GAMMA_TYPE;

// Gamma is loaded before the sum is known where 16 registers hold it: its latency hides in x's.
constexpr bool GAMMA_EARLY = HAS_GAMMA && IN_REGISTERS && PACKETS * Pack<W, VEC>::WORDS <= 16;

constexpr bool WIDE_PARAMETERS = sizeof(W) > sizeof(T);
constexpr bool CROWDED = GAMMA_ACCESS != ALIGNED;

// Two passes convert 16-bit packets twice. Up to 3 packets there are registers to keep them
// converted; from 4 on gamma has those.
using Row = RowOfLane<(PACKETS <= 3) && IN_REGISTERS && !HAS_RESIDUAL>;

struct RmsNorm {
  Rows rows;
  Acc eps;
  Acc gamma_offset;
};

// mean(x^2) + eps, of scale * x where SCALED.
template <int SITE, bool SCALED>
__device__ inline Acc mean_square_of(const Row& x, const Place& place, Acc eps, Acc scale) {
  Acc squares[1];
  sum_columns<SITE>(x, place, squares, [&](Acc v, Acc(&sum)[1]) {
    const Acc scaled = SCALED ? mul(v, scale) : v;
    sum[0] = fma_rn(scaled, scaled, sum[0]);
  });
  return fma_rn(squares[0], Acc(1.0 / COLS), SCALED ? mul(mul(eps, scale), scale) : eps);
}

__device__ inline Acc rstd_of(const Row& x, const Place& place, Acc eps) {
  const Acc mean_square = mean_square_of<0, false>(x, place, eps, 1);
  if constexpr (!Numeric<T>::NEEDS_RESCUE) return reciprocal_sqrt(mean_square);
  Acc rstd = reciprocal_sqrt_of_normal(mean_square);
  // Rows of one warp decide together, since they share shuffles; each keeps its own answer.
  const bool lost = out_of_range<T>(mean_square);
  if (LANES < 32 ? __any_sync(FULL_WARP, lost) : lost) {
    const Acc scale = rescue<T>(mean_square);
    const Acc scaled = reciprocal_sqrt(mean_square_of<1, true>(x, place, eps, scale));
    if (lost) rstd = mul(scaled, scale);
  }
  return rstd;
}

// y of one packet, before it is stored.
template <typename Gamma>
__device__ inline Pack<X, VEC> scale(Acc (&value)[VEC], Acc rstd, const Pack<Gamma, VEC>& gamma,
                                     Acc gamma_offset) {
#pragma unroll
  for (int i = 0; i < VEC; ++i) value[i] = mul(value[i], rstd);
  if constexpr (HAS_GAMMA) {
    if constexpr (CAST_BEFORE) {
      const Pack<X, VEC> normalised = round_to<X>(value);
      if constexpr (SAME<X, Gamma> && sizeof(Gamma) == 2 && !GAMMA_OFFSET) {
        return multiply_rounded(normalised, gamma);
      }
      unpack(normalised, value);
    }
    Acc factor[VEC];
    unpack(gamma, factor);
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
      if (GAMMA_OFFSET) factor[i] = add(factor[i], gamma_offset);
      value[i] = mul(value[i], factor[i]);
    }
  }
  return round_to<X>(value);
}

// One row: sum, scale, store.
__device__ inline void normalise(X* y, Acc* rstd_out, const Sources& sources, const W* gamma,
                                 const Place& place, const RmsNorm& norm) {
  const Row row(sources, place);
  let_kernel_after_start();
  // Where there is little room, it spilled up to 8 bytes when it was loaded early.
  if constexpr (FULL && HAS_GAMMA) gamma = in_order(gamma);
  Pack<W, VEC> early[PACKETS] = {};
  if constexpr (GAMMA_EARLY) {
#pragma unroll
    for (int turn = 0; turn < PACKETS; ++turn) {
      early[turn] = load_parameters<GAMMA_ACCESS>(gamma, place, turn);
    }
  }

  const Acc rstd = rstd_of(row, place, norm.eps);
  write_row(
      row_at(y, place.at, norm.rows.y), row, place,
      [&](int turn, Acc(&value)[VEC]) {
        Pack<W, VEC> g = {};
        if constexpr (GAMMA_EARLY) {
          g = early[turn];
        } else if constexpr (HAS_GAMMA) {
          g = load_parameters<GAMMA_ACCESS>(gamma, place, turn);
        }
        return scale(value, rstd, g, norm.gamma_offset);
      },
      [&](int column, Acc(&value)[VEC]) {
        Pack<W, VEC> g = {};
        if constexpr (HAS_GAMMA) g = load_column(gamma, column);
        return scale(value, rstd, g, norm.gamma_offset);
      });
  if (rstd_out != nullptr && place.lane == 0 && place.exists) rstd_out[place.row] = rstd;
  cluster_barrier();  // other blocks may still read this one's sums
}

#if HAS_RESIDUAL
KERNEL __launch_bounds__(LANES* ROWS, MIN_BLOCKS<RESIDENT_THREADS<CROWDED, WIDE_PARAMETERS>>)
    add_rms_norm(X* y, T* residual_out, Acc* rstd_out, const X* x, const T* residual,
                 const W* __restrict__ gamma, const RmsNorm norm) {
  const Place here = place(norm.rows);
  if (here.is_idle_warp()) return;
  wait_for_kernel_before();
  normalise(y, rstd_out, sources(residual_out, x, residual, here, norm.rows), gamma, here, norm);
}
#else
KERNEL __launch_bounds__(LANES* ROWS, MIN_BLOCKS<RESIDENT_THREADS<CROWDED, WIDE_PARAMETERS>>)
    rms_norm_fwd(X* y, Acc* rstd_out, const X* x, const W* __restrict__ gamma, const RmsNorm norm) {
  const Place here = place(norm.rows);
  if (here.is_idle_warp()) return;
  wait_for_kernel_before();
  normalise(y, rstd_out, sources(x, here, norm.rows), gamma, here, norm);
}
#endif
