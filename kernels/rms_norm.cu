// RMSNorm.
//
// Formula      y = x * rstd * (gamma + gamma_offset),  rstd = 1 / sqrt(mean(x^2) + eps), over the
//              last COLS columns of each row. CAST_BEFORE rounds x * rstd to T before gamma
//              multiplies, as Qwen2, Llama and T5 define it; otherwise there is one rounding, at
//              the end.
//
// Mapping      LANES threads own a row (row.cuh says which columns), ROWS rows a block. Up to 32
//              lanes share a warp with other rows and meet in shuffles; more are a block of their
//              own and meet at one barrier.
//
// Traffic      rows * COLS * 2 * sizeof(T) + COLS * sizeof(W), plus 4 bytes a row where rstd is
//              wanted. Rows too long for registers read x twice.
//
// Numerics     Squares, their sum and rstd are float32 (float64 for float64). A row whose squares
//              overflow is summed again, scaled by a power of two, so that y is right wherever rstd
//              is a normal number: up to a root mean square of 8e37 in float32 and bfloat16.
//              float16 cannot overflow.
//
// Preconditions  (_check.py, _launch.py) Columns have unit stride. y is x, or overlaps nothing;
//              gamma overlaps nothing that is written. *_ALIGNED hold for every row.
//              rows.count >= 1, eps >= 0 and finite.

#include "row.cuh"

using W = GAMMA_TYPE;

// Gamma is loaded before the sum is known where registers allow: its latency hides in that of x.
constexpr bool GAMMA_EARLY = HAS_GAMMA && RESIDENT && PACKETS <= 4;

struct RmsNorm {
  Rows rows;
  Acc eps;
  Acc gamma_offset;
};

__device__ inline Acc rstd_of(RowOfLane& x, int lane, Acc eps) {
  constexpr Acc PER_COLUMN = Acc(1.0 / COLS);
  Acc squares[1];
  sum_columns<0>(x, lane, squares, [](Acc v, Acc(&sum)[1]) { sum[0] = fma_rn(v, v, sum[0]); });
  Acc rstd = reciprocal_sqrt(fma_rn(squares[0], PER_COLUMN, eps));
  if constexpr (Numeric<T>::MAY_OVERFLOW) {
    // Rows of one warp decide together, since they share shuffles; each keeps its own answer.
    const bool overflow = !isfinite(squares[0]);
    if (LANES < 32 ? __any_sync(FULL_WARP, overflow) : overflow) {
      x.convert_anew();
      constexpr Acc SCALE = Numeric<T>::RESCUE;
      sum_columns<1>(x, lane, squares, [](Acc v, Acc(&sum)[1]) {
        const Acc scaled = mul(v, SCALE);
        sum[0] = fma_rn(scaled, scaled, sum[0]);
      });
      const Acc scaled_eps = mul(mul(eps, SCALE), SCALE);
      const Acc scaled_rstd = reciprocal_sqrt(fma_rn(squares[0], PER_COLUMN, scaled_eps));
      if (overflow) rstd = mul(scaled_rstd, SCALE);
    }
  }
  return rstd;
}

// y of one packet, before it is stored.
template <typename Gamma>
__device__ inline Pack<T, VEC> scale(Acc (&value)[VEC], Acc rstd, const Pack<Gamma, VEC>& gamma,
                                     Acc gamma_offset) {
#pragma unroll
  for (int i = 0; i < VEC; ++i) value[i] = mul(value[i], rstd);
  if constexpr (HAS_GAMMA) {
    if constexpr (CAST_BEFORE) {
      const Pack<T, VEC> normalised = round_to<T>(value);
      if constexpr (SAME<T, Gamma> && sizeof(Gamma) == 2 && !GAMMA_OFFSET) {
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
  return round_to<T>(value);
}

extern "C" __global__ void __launch_bounds__(LANES* ROWS)
    rms_norm_fwd(T* y, Acc* rstd_out, const T* x, const W* gamma, const RmsNorm norm) {
  const int lane = threadIdx.x;
  const long long wanted = static_cast<long long>(blockIdx.x) * ROWS + threadIdx.y;
  // A block's rows past the last compute the last one again and write nothing, so that no lane
  // leaves the shuffles.
  const long long row = ROWS > 1 ? min(wanted, norm.rows.count - 1) : wanted;
  const Coordinates c = coordinates(row, norm.rows);

  RowOfLane x_row(x + offset(c, norm.rows.x), lane);
  gamma += lane * VEC;
  Pack<W, VEC> early[GAMMA_EARLY ? PACKETS : 1];
  if constexpr (GAMMA_EARLY) {
#pragma unroll
    for (int turn = 0; turn < PACKETS; ++turn) {
      early[turn] = load_parameters<GAMMA_ALIGNED>(gamma, turn, present(turn, lane));
    }
  }

  const Acc rstd = rstd_of(x_row, lane, norm.eps);
  if (ROWS > 1 && row != wanted) return;
  if (rstd_out != nullptr && lane == 0) rstd_out[row] = rstd;

  x_row.convert_anew();
  y += offset(c, norm.rows.y) + lane * VEC;
#pragma unroll 1
  for (int chunk = 0; chunk < CHUNKS; ++chunk) {
    for_each_packet(chunk * CHUNK, TURNS - chunk * CHUNK, lane, [&](int turn, int columns) {
      Acc value[VEC];
      x_row.values(turn, value);
      Pack<W, VEC> g = {};
      if constexpr (GAMMA_EARLY) {
        g = early[turn];
      } else if constexpr (HAS_GAMMA) {
        g = load_parameters<GAMMA_ALIGNED>(gamma, turn, columns);
      }
      store<Y_ALIGNED>(y + turn * TURN_COLS, scale(value, rstd, g, norm.gamma_offset), columns);
    });
  }
}
