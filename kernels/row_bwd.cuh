// A row of the backward pass, x beside dy, as one lane holds it.
//
// A lane keeps its first PACKETS packets of x and dy in registers, the next SHARED in shared memory.
// What is left of a longer row is read twice.

#pragma once

#define BACKWARD 1

#include "access.cuh"

constexpr bool ROWS_SHIFTED = X_ACCESS != ALIGNED || DY_ACCESS != ALIGNED || DX_ACCESS != ALIGNED;
#if HAS_DRESIDUAL
constexpr bool ROWS_DIFFER =
    X_ACCESS != DY_ACCESS || X_ACCESS != DX_ACCESS || X_ACCESS != DRESIDUAL_ACCESS;
#else
constexpr bool ROWS_DIFFER = X_ACCESS != DY_ACCESS || X_ACCESS != DX_ACCESS;
#endif

// Dynamic shared memory: SHARED packets of x, as many of dy, then sums, each [packet][lane]. All
// are their lane's own, and need no barrier.
extern __shared__ uint4 parked[];

__device__ inline uint4* parking(int array, int turn) {
  return parked + (array * SHARED + turn - PACKETS) * LANES + threadIdx.x;
}

// x and dy of a row, as one lane holds them.
class Pairs {
 public:
  __device__ Pairs(const X* x, const X* dy, const Place& place) : x_(x, place), dy_(dy, place) {
#pragma unroll
    for (int first = 0; first < PACKETS; first += KEPT_AT_ONCE) {
      Pack<X, VEC> packet[2][KEPT_AT_ONCE];
      x_.read(first, PACKETS, packet[0]);
      dy_.read(first, PACKETS, packet[1]);
#pragma unroll
      for (int i = 0; i < KEPT_AT_ONCE; ++i) {
        if (first + i >= PACKETS) break;
        x_kept_[first + i] = packet[0][i];
        dy_kept_[first + i] = packet[1][i];
      }
    }
    constexpr int PARKED = PACKETS + SHARED;
#pragma unroll 1
    for (int first = PACKETS; first < PARKED; first += PARKED_AT_ONCE) {
      Pack<X, VEC> packet[2][PARKED_AT_ONCE];
      x_.read(first, PARKED, packet[0]);
      dy_.read(first, PARKED, packet[1]);
#pragma unroll
      for (int i = 0; i < PARKED_AT_ONCE; ++i) {
        if (first + i >= PARKED) break;
        *parking(0, first + i) = bits<uint4>(packet[0][i]);
        *parking(1, first + i) = bits<uint4>(packet[1][i]);
      }
    }
#pragma unroll
    for (int turn = 0; turn < TAIL_TURNS; ++turn) {
      if (!place.has_tail(turn)) continue;
      x_tail_[turn] = load_column(x, place.tail_column(turn));
      dy_tail_[turn] = load_column(dy, place.tail_column(turn));
    }
  }

  // One of the first PACKETS packets; `turn` must be a constant once loops are unrolled.
  __device__ void in_register(int turn, Acc (&x)[VEC], Acc (&dy)[VEC]) const {
    unpack(x_kept_[turn], x);
    unpack(dy_kept_[turn], dy);
  }

  // One of the packets after those.
  __device__ void past_registers(int turn, Acc (&x)[VEC], Acc (&dy)[VEC]) const {
    if (turn < PACKETS + SHARED) {
      unpack(bits<Pack<X, VEC>>(*parking(0, turn)), x);
      unpack(bits<Pack<X, VEC>>(*parking(1, turn)), dy);
    } else {
      unpack(x_.again(turn), x);
      unpack(dy_.again(turn), dy);
    }
  }

  // A column of the tail, in the first element.
  __device__ void tail(int turn, Acc (&x)[VEC], Acc (&dy)[VEC]) const {
    unpack(x_tail_[turn], x);
    unpack(dy_tail_[turn], dy);
  }

 private:
  // Packets of each array that a lane asks for before it keeps, or parks, the first. With twice as
  // many, rows that are partly in shared memory spilled up to 68 bytes: shifted ones but RMSNorm's of
  // 16 bits, and LayerNorm's of float64. So did shifted wide ones with gamma one element at a time.
  static constexpr bool WIDE = sizeof(X) >= 4;
  static constexpr bool FEWER =
      SHARED > 0 ? (ROWS_SHIFTED && (WIDE || CENTERED)) || (CENTERED && sizeof(X) == 8)
                 : ROWS_SHIFTED && WIDE && GAMMA_ACCESS != ALIGNED;
  static constexpr int KEPT_AT_ONCE = FEWER ? 2 : PACKETS;
  static constexpr int PARKED_AT_ONCE = FEWER ? 1 : 2;

  Reader<X, X_ACCESS, OF_X> x_;
  Reader<X, DY_ACCESS, OF_DY> dy_;
  Pack<X, VEC> x_kept_[PACKETS];
  Pack<X, VEC> dy_kept_[PACKETS];
  Pack<X, VEC> x_tail_[TAIL_TURNS + 1];
  Pack<X, VEC> dy_tail_[TAIL_TURNS + 1];
};
