// A row: where it lies in memory, and which of its columns a lane owns.
//
// Lane l owns packets l, l + LANES, l + 2 LANES, ... of VEC columns each:
//
//   columns   0 ... VEC-1 | VEC ... 2 VEC-1 | ...        | LANES VEC ...  | ...
//   lane           0      |        1        | ... LANES-1|       0        |  1 ...
//
// The mapping follows from COLS and the element size alone. Alignment, strides and the number of
// rows change how bytes arrive, never who adds what in which order.
//
// The plan (cunorm/_plan.py) compiles each file for one row: X_TYPE, ROW_TYPE, COLS, LANES, PACKETS
// (packets a lane keeps in registers; 0 where the row is too long and is read again), ROWS (rows a
// block). HAS_RESIDUAL adds two arrays: residual is read, and h = round(x + residual) is written to
// residual_out and normalised as rounded. The launch (cunorm/_launch.py) adds X_ALIGNED, Y_ALIGNED,
// ... and LEVELS, ROW_INDEX.

#pragma once

#include "reduce.cuh"
#include "vec.cuh"

using X = X_TYPE;    // x and y
using T = ROW_TYPE;  // what is normalised: x, or h = round(x + residual) in residual's type
using Acc = Numeric<T>::Acc;

constexpr int VEC = 16 / sizeof(T);
constexpr int WHOLE = COLS / VEC;  // packets with all their columns
constexpr int TAIL = COLS % VEC;   // columns in the last, partial packet
constexpr int ALL = WHOLE + (TAIL > 0);

constexpr bool RESIDENT = PACKETS > 0;
constexpr int TURNS = (ALL + LANES - 1) / LANES;  // packets of the busiest lane
static_assert(!RESIDENT || TURNS == PACKETS, "the plan counts packets as the kernel does");
// Rows that are read again add up eight packets at a time, so that a sum of 2^24 columns keeps its
// digits.
constexpr int CHUNK = RESIDENT ? PACKETS : 8;
constexpr int CHUNKS = (TURNS + CHUNK - 1) / CHUNK;

// `count` rows in up to three strided levels, extent[0] by extent[1] in the inner two. Strides are
// in elements, outermost first, of which the last LEVELS are used.
struct Rows {
  long long count;
  long long extent[2];
  long long x[3];
  long long y[3];
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

__device__ inline long long offset(const Coordinates& c, const long long (&stride)[3]) {
  long long elements = 0;
#pragma unroll
  for (int level = 3 - LEVELS; level < 3; ++level) elements += c.at[level] * stride[level];
  return elements;
}

// A thread's row, and its place in it. A block's rows past the last have no columns: their lanes
// stay for the shuffles, and neither read nor write.
struct Place {
  int lane;
  long long row;
  bool exists;
  Coordinates at;

  // How many columns of packet `turn` exist. Constant wherever the whole turn exists.
  __device__ int columns(int turn) const {
    if (ROWS > 1 && !exists) return 0;
    if ((turn + 1) * LANES <= WHOLE) return VEC;
    const int packet = turn * LANES + lane;
    if (packet < WHOLE) return VEC;
    return TAIL > 0 && packet == WHOLE ? TAIL : 0;
  }
};

__device__ inline Place place(const Rows& rows) {
  const long long row = static_cast<long long>(blockIdx.x) * ROWS + threadIdx.y;
  return {static_cast<int>(threadIdx.x), row, row < rows.count, coordinates(row, rows)};
}

// A lane's pointers start at its first packet, and its packets are a constant stride apart.
constexpr int TURN_COLS = LANES * VEC;

// Where one lane's first packet lies in the arrays that make the row.
struct Sources {
  const X* x;
  const T* residual;  // null without a residual, as is the next
  T* residual_out;
};

#if HAS_RESIDUAL
__device__ inline Sources sources(T* residual_out, const X* x, const T* residual,
                                  const Place& place, const Rows& rows) {
  const int first = place.lane * VEC;
  return {x + offset(place.at, rows.x) + first, residual + offset(place.at, rows.residual) + first,
          residual_out + offset(place.at, rows.residual_out) + first};
}
#else
__device__ inline Sources sources(const X* x, const Place& place, const Rows& rows) {
  return {x + offset(place.at, rows.x) + place.lane * VEC, nullptr, nullptr};
}
#endif

// The row as one lane sees it: kept in registers, or read again each time.
class RowOfLane {
 public:
  __device__ RowOfLane(const Sources& sources, const Place& place)
      : sources_(sources), place_(place) {
    if constexpr (HAS_RESIDUAL) {
#pragma unroll RESIDENT ? TURNS : 1
      for (int first = 0; first < TURNS; first += ADDED_AT_ONCE) add_residual(first);
    } else if constexpr (RESIDENT) {
#pragma unroll
      for (int turn = 0; turn < PACKETS; ++turn) kept_[turn] = read(turn);
    }
  }

  __device__ void values(int turn, Acc (&value)[VEC]) const {
    if constexpr (RESIDENT) {
      unpack(kept_[turn], value);
    } else {
      unpack(read(turn), value);
    }
  }

  // Between two passes over a long row: without it the compiler keeps what it converted, which is
  // twice the registers of the row, and 1024 threads with 8 packets each have none to spare.
  __device__ void convert_anew() {
    if constexpr (PACKETS > 4 && sizeof(T) == 2) {
#pragma unroll
      for (int turn = 0; turn < PACKETS; ++turn) {
#pragma unroll
        for (int w = 0; w < kept_[turn].WORDS; ++w) asm volatile("" : "+r"(kept_[turn].word[w]));
      }
    }
  }

 private:
  // Packets of x and residual that a lane asks for before it needs the first.
  static constexpr int ADDED_AT_ONCE = 4;

#if HAS_RESIDUAL
  __device__ void add_residual(int first) {
    Pack<X, VEC> x[ADDED_AT_ONCE];
    Pack<T, VEC> residual[ADDED_AT_ONCE];
#pragma unroll
    for (int i = 0; i < ADDED_AT_ONCE; ++i) {
      if (first + i >= TURNS) continue;
      const int columns = place_.columns(first + i);
      x[i] = load<X_ALIGNED, false, VEC>(sources_.x + (first + i) * TURN_COLS, columns);
      residual[i] =
          load<RESIDUAL_ALIGNED, false, VEC>(sources_.residual + (first + i) * TURN_COLS, columns);
    }
#pragma unroll
    for (int i = 0; i < ADDED_AT_ONCE; ++i) {
      if (first + i >= TURNS) continue;
      Acc a[VEC];
      Acc b[VEC];
      unpack(x[i], a);
      unpack(residual[i], b);
#pragma unroll
      for (int j = 0; j < VEC; ++j) a[j] = add(a[j], b[j]);
      const Pack<T, VEC> h = round_to<T>(a);
      store<RESIDUAL_OUT_ALIGNED>(sources_.residual_out + (first + i) * TURN_COLS, h,
                                  place_.columns(first + i));
      if constexpr (RESIDENT) kept_[first + i] = h;
    }
  }

  __device__ Pack<T, VEC> read(int turn) const {
    return load<RESIDUAL_OUT_ALIGNED, false, VEC>(sources_.residual_out + turn * TURN_COLS,
                                                  place_.columns(turn));
  }
#else
  __device__ void add_residual(int) {}

  __device__ Pack<T, VEC> read(int turn) const {
    return load<X_ALIGNED, false, VEC>(sources_.x + turn * TURN_COLS, place_.columns(turn));
  }
#endif

  Sources sources_;
  const Place& place_;
  Pack<T, VEC> kept_[RESIDENT ? PACKETS : 1];
};

// Calls f(turn, columns) for each packet of the lane, `columns` of it present (a constant VEC but
// in the last turn).
template <typename F>
__device__ inline void for_each_packet(int first_turn, int turns, const Place& place, F f) {
#pragma unroll
  for (int t = 0; t < CHUNK; ++t) {
    const int turn = first_turn + t;
    if (!RESIDENT && t >= turns) continue;
    const int columns = place.columns(turn);
    if (columns == VEC) {
      f(turn, VEC);
    } else if (TAIL > 0 && columns == TAIL) {
      f(turn, TAIL);
    }
  }
}

// Gamma or beta beside packet `turn` of a lane; `mine` is beside its first. Nothing that a launch
// writes overlaps them.
template <bool ALIGNED, typename W>
__device__ inline Pack<W, VEC> load_parameters(const W* mine, int turn, int columns) {
  return load<ALIGNED, true, VEC>(mine + turn * TURN_COLS, columns);
}

// Sums over the row of COUNT terms a column: term(value, sums) adds those of one column. A lane
// adds its columns in ascending order, even and odd ones apart.
template <int SITE, int COUNT, typename Term>
__device__ inline void sum_columns(const RowOfLane& x, const Place& place, Acc (&total)[COUNT],
                                   Term term) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) total[i] = 0;
#pragma unroll 1
  for (int chunk = 0; chunk < CHUNKS; ++chunk) {
    Acc sums[2][COUNT] = {};
    for_each_packet(chunk * CHUNK, TURNS - chunk * CHUNK, place, [&](int turn, int columns) {
      Acc value[VEC];
      x.values(turn, value);
#pragma unroll
      for (int i = 0; i < VEC; ++i) {
        if (i < columns) term(value[i], sums[i % 2]);
      }
    });
#pragma unroll
    for (int i = 0; i < COUNT; ++i) total[i] = add(total[i], add(sums[0][i], sums[1][i]));
  }
  row_sums<LANES, SITE>(total);
}
