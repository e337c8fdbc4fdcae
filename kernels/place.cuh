// Where a row lies in memory, and which of its columns a lane owns.
//
// The SPAN lanes of a warp (or of a sub-warp) own SPAN * TURNS neighbouring packets of VEC columns,
// their share; the next warp's share follows. In a share the lanes take turns:
//
//   packet   0 | 1 | 2 | ... | SPAN-1 | SPAN | SPAN+1 | ...   | SPAN * TURNS |  ...
//   lane     0 | 1 | 2 | ... | SPAN-1 |   0  |    1   | ...   | the next warp's share
//   turn     0 | 0 | 0 | ... |    0   |   1  |    1   | ...
//
// Columns past the last whole packet, fewer than VEC, are the row's tail: one a lane, from lane 0.
//
// The mapping follows from COLS and the element size alone. Alignment, strides and the number of
// rows change how bytes arrive, never who adds what in which order.
//
// The plan (cunorm/_plan.py) compiles each file for one row: X_TYPE, ROW_TYPE, COLS, LANES (threads
// of a block that share a row), CLUSTER (blocks that do), PACKETS and SHARED (packets that a lane
// keeps), ROWS (rows a block). HAS_RESIDUAL adds two arrays: residual is read, and
// h = round(x + residual) is written to residual_out and normalised as rounded. BACKWARD has dy, dx
// and perhaps dresidual instead. The launch (cunorm/_launch.py) adds X_ACCESS, Y_ACCESS, ... and
// LEVELS, ROW_INDEX.

#pragma once

#include "vec.cuh"

using X = X_TYPE;    // x and y
using T = ROW_TYPE;  // what is normalised: x, or h = round(x + residual) in residual's type
using Acc = Numeric<T>::Acc;

constexpr int VEC = 16 / sizeof(T);
constexpr int WHOLE = COLS / VEC;  // packets
constexpr int TAIL = COLS % VEC;   // columns after them

constexpr int ROW_LANES = LANES * CLUSTER;
constexpr int SPAN = LANES < 32 ? LANES : 32;
constexpr int SHARES = ROW_LANES / SPAN;

// A lane keeps its first PACKETS packets in registers and the next SHARED in shared memory. What is
// left of a row that is longer still is read from global memory each time.
constexpr int TURNS = WHOLE <= ROW_LANES ? 1 : (WHOLE + ROW_LANES - 1) / ROW_LANES;
constexpr int SHARE = SPAN * TURNS;
constexpr int TAIL_TURNS = (TAIL + ROW_LANES - 1) / ROW_LANES;  // up to 2, where 4 lanes share 7
constexpr bool IN_REGISTERS = TURNS == PACKETS;
static_assert(TURNS >= PACKETS + SHARED, "the plan counts packets as the kernel does");

// A lane's packets are a constant stride apart.
constexpr int TURN_COLS = SPAN * VEC;

#if CLUSTER > 1
#define KERNEL extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1)
#else
#define KERNEL extern "C" __global__ void
#endif

// Blocks that a multiprocessor should hold, for __launch_bounds__. Where the plan gives a lane more
// than four packets, their registers come first.
template <int THREADS>
constexpr int MIN_BLOCKS = PACKETS > 4 || THREADS < LANES* ROWS ? 1 : THREADS / (LANES * ROWS);

// `count` rows in up to three strided levels, extent[0] by extent[1] in the inner two. Strides are
// in bytes, outermost first, of which the last LEVELS are used.
struct Rows {
  long long count;
  long long extent[2];
  long long x[3];
#if BACKWARD
  long long dy[3];
  long long dx[3];
#if HAS_DRESIDUAL
  long long dresidual[3];
#endif
#else
  long long y[3];
#endif
#if HAS_RESIDUAL
  long long residual[3];
  long long residual_out[3];
#endif
};

struct Coordinates {
  long long at[3];
};

__device__ inline Coordinates coordinates(long long row, const Rows& rows) {
  Coordinates c = {};
  if constexpr (LEVELS == 1) {
    c.at[2] = row;
  } else {
    using Index = ROW_INDEX;  // 32 bits where the number of rows allows: division is dear
    Index rest = static_cast<Index>(row);
    const Index inner = static_cast<Index>(rows.extent[1]);
    c.at[2] = rest % inner;
    rest /= inner;
    if constexpr (LEVELS == 2) {
      c.at[1] = rest;
    } else {
      const Index middle = static_cast<Index>(rows.extent[0]);
      c.at[1] = rest % middle;
      c.at[0] = rest / middle;
    }
  }
  return c;
}

// The row at `c` of an array whose first is `first`.
template <typename E>
__device__ inline E* row_at(E* first, const Coordinates& c, const long long (&stride)[3]) {
  long long bytes = 0;
#pragma unroll
  for (int level = 3 - LEVELS; level < 3; ++level) bytes += c.at[level] * stride[level];
  return (E*)((char*)first + bytes);
}

// Where a packet begins in a row, or in a parameter beside it. Arrays of one element size share the
// product.
template <typename E>
__device__ inline E* packet_at(E* row, unsigned packet) {
  return (E*)((char*)row + static_cast<size_t>(packet) * (VEC * sizeof(E)));
}

// A thread's row, and its place in it. A block's rows past the last have no columns: where they
// share a warp with others, their lanes stay for the shuffles, and neither read nor write.
struct Place {
  unsigned lane;  // of ROW_LANES; unsigned divides by a power of two in one shift
  long long row;
  bool exists;
  Coordinates at;

  // The warp of a row past the last has nothing to do.
  __device__ bool is_idle_warp() const { return LANES == 32 && !exists; }

  __device__ unsigned lane_of_warp() const { return SHARES == 1 ? lane : lane % SPAN; }

  // The first packet of the share.
  __device__ unsigned first_of_share() const { return SHARES == 1 ? 0 : lane / SPAN * SHARE; }

  // The lane's packet of turn 0.
  __device__ unsigned first_packet() const { return first_of_share() + lane_of_warp(); }

  // Whether the lane has a packet in `turn`. Constant wherever every lane has.
  __device__ bool has_packet(int turn) const {
    if (LANES < 32 && !exists) return false;
    return (SHARES - 1) * SHARE + (turn + 1) * SPAN <= WHOLE ||
           first_packet() + turn * SPAN < WHOLE;
  }

  // How many packets the warp's share has.
  __device__ int share_packets() const {
    constexpr bool ALL_FULL = SHARES * SHARE == WHOLE;
    return SHARES == 1 || ALL_FULL ? WHOLE / SHARES
                                   : max(0, min(WHOLE - static_cast<int>(first_of_share()), SHARE));
  }

  __device__ bool has_tail(int turn) const {
    return (LANES >= 32 || exists) && turn * ROW_LANES + lane < TAIL;
  }

  __device__ int tail_column(int turn) const { return WHOLE * VEC + turn * ROW_LANES + lane; }
};

// The thread's place in the group'th ROWS rows.
__device__ inline Place place(const Rows& rows, long long group) {
  const unsigned rank = blockIdx.x % CLUSTER;
  const long long row = group * ROWS + threadIdx.y;
  const unsigned lane = rank * LANES + threadIdx.x;
  return {lane, row, ROWS == 1 || row < rows.count, coordinates(row, rows)};
}

__device__ inline Place place(const Rows& rows) { return place(rows, blockIdx.x / CLUSTER); }
