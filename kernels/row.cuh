// A row: where it lies in memory, and which of its columns a lane owns.
//
// The SPAN lanes of a warp (or of a sub-warp) own SPAN * TURNS neighbouring packets of VEC columns,
// their share; the next warp's share follows. In a share the lanes take turns:
//
//   packet   0 | 1 | 2 | ... | SPAN-1 | SPAN | SPAN+1 | ...   | SPAN * TURNS |  ...
//   lane     0 | 1 | 2 | ... | SPAN-1 |   0  |    1   | ...   | the next warp's share
//   turn     0 | 0 | 0 | ... |    0   |   1  |    1   | ...
//
// The mapping follows from COLS and the element size alone. Alignment, strides and the number of
// rows change how bytes arrive, never who adds what in which order.
//
// The plan (cunorm/_plan.py) compiles each file for one row: X_TYPE, ROW_TYPE, COLS, LANES (threads
// of a block that share a row), CLUSTER (blocks that do), PACKETS and SHARED (packets that a lane
// keeps), ROWS (rows a block). HAS_RESIDUAL adds two arrays:
// residual is read, and h = round(x + residual) is written to residual_out and normalised as
// rounded. The launch (cunorm/_launch.py) adds X_ACCESS, Y_ACCESS, ... and LEVELS, ROW_INDEX.

#pragma once

#include "reduce.cuh"
#include "shift.cuh"
#include "vec.cuh"

using X = X_TYPE;    // x and y
using T = ROW_TYPE;  // what is normalised: x, or h = round(x + residual) in residual's type
using Acc = Numeric<T>::Acc;

constexpr int VEC = 16 / sizeof(T);
constexpr int WHOLE = COLS / VEC;  // packets with all their columns
constexpr int TAIL = COLS % VEC;   // columns in the last, partial packet
constexpr int ALL = WHOLE + (TAIL > 0);

// A lane keeps its first PACKETS packets in registers and the next SHARED in shared memory. What is
// left of a row that is longer still is read from global memory each time.
constexpr int ROW_LANES = LANES * CLUSTER;
constexpr int TURNS = (ALL + ROW_LANES - 1) / ROW_LANES;  // packets of the busiest lane
constexpr int SPAN = LANES < 32 ? LANES : 32;
constexpr int SHARE = SPAN * TURNS;
constexpr bool IN_REGISTERS = TURNS == PACKETS;
static_assert(TURNS >= PACKETS + SHARED, "the plan counts packets as the kernel does");
// Past the registers eight packets are added up at a time, so that a sum of 2^24 columns keeps its
// digits.
constexpr int CHUNK = 8;
constexpr int CHUNKS = 1 + (TURNS - PACKETS + CHUNK - 1) / CHUNK;

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

// How an array's packets are reached, for all rows of a launch: one element at a time, as packets
// on 16-byte boundaries (packs of 8 bytes on 8-byte ones), or as shifted chunks (shift.cuh).
enum Access { ELEMENTS, ALIGNED, SHIFTED };

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
  int lane;  // of ROW_LANES
  long long row;
  bool exists;
  Coordinates at;

  // The lane's packet of turn 0.
  __device__ int first_packet() const { return lane / SPAN * SHARE + lane % SPAN; }

  // How many columns of packet `turn` exist. Constant wherever the whole turn exists.
  __device__ int columns(int turn) const {
    if (ROWS > 1 && !exists) return 0;
    if ((ROW_LANES / SPAN - 1) * SHARE + (turn + 1) * SPAN <= WHOLE) return VEC;
    const int packet = first_packet() + turn * SPAN;
    if (packet < WHOLE) return VEC;
    return TAIL > 0 && packet == WHOLE ? TAIL : 0;
  }

  // The bytes of an array of E that are this warp's share.
  template <typename E>
  __device__ int share_bytes() const {
    const int first = lane / SPAN * SHARE * VEC;
    return ROWS > 1 && !exists ? 0 : max(0, min(COLS - first, SHARE * VEC)) * sizeof(E);
  }
};

__device__ inline Place place(const Rows& rows) {
  const int rank = blockIdx.x % CLUSTER;
  const long long row = static_cast<long long>(blockIdx.x / CLUSTER) * ROWS + threadIdx.y;
  const int lane = rank * LANES + threadIdx.x;
  return {lane, row, row < rows.count, coordinates(row, rows)};
}

// A lane's pointers start at its first packet, and its packets are a constant stride apart.
constexpr int TURN_COLS = SPAN * VEC;

// Where the row begins in the arrays that make it.
struct Sources {
  const X* x;
  const T* residual;  // null without a residual, as is the next
  T* residual_out;
};

#if HAS_RESIDUAL
__device__ inline Sources sources(T* residual_out, const X* x, const T* residual,
                                  const Place& place, const Rows& rows) {
  return {x + offset(place.at, rows.x), residual + offset(place.at, rows.residual),
          residual_out + offset(place.at, rows.residual_out)};
}
#else
__device__ inline Sources sources(const X* x, const Place& place, const Rows& rows) {
  return {x + offset(place.at, rows.x), nullptr, nullptr};
}
#endif

// Reads a lane's packets in order, however they lie. Each array that is read or written by a launch
// has a SITE of its own.
template <typename E, int ACCESS, int SITE>
class Reader {
 public:
  __device__ Reader(const E* row, const Place& place)
      : place_(place), mine_(row + place.first_packet() * VEC) {}

  // Packets first, first + 1, ... below end, as many as `packet` holds.
  template <int COUNT>
  __device__ void read(int first, int end, Pack<E, VEC> (&packet)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (first + i < end) packet[i] = again(first + i);
    }
  }

  // One packet, out of order.
  __device__ Pack<E, VEC> again(int turn) const {
    return load<ACCESS == ALIGNED, false, VEC>(mine_ + turn * TURN_COLS, place_.columns(turn));
  }

 private:
  const Place& place_;
  const E* mine_;
};

template <typename E, int SITE>
class Reader<E, SHIFTED, SITE> {
 public:
  __device__ Reader(const E* row, const Place& place)
      : place_(place),
        mine_(row + place.first_packet() * VEC),
        share_(mine_ - place.lane % SPAN * VEC, place.share_bytes<E>()) {
    share_.read_edges();
    chunk_ = share_.chunk(0);
  }

  template <int COUNT>
  __device__ void read(int first, int end, Pack<E, VEC> (&packet)[COUNT]) {
    uint4 chunk[COUNT + 1] = {chunk_};
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (first + i < end) chunk_ = chunk[i + 1] = share_.chunk(first + i + 1);
    }
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (first + i < end) packet[i] = share_.template packet<VEC>(chunk[i], chunk[i + 1]);
    }
  }

  __device__ Pack<E, VEC> again(int turn) const {
    return load<false, false, VEC>(mine_ + turn * TURN_COLS, place_.columns(turn));
  }

 private:
  const Place& place_;
  const E* mine_;
  Shifted<E, SITE, LANES * ROWS / 32> share_;
  uint4 chunk_;
};

// Writes a lane's packets in order, however they lie. Lanes without columns must call too.
template <typename E, int ACCESS, int SITE>
class Writer {
 public:
  __device__ Writer(E* row, const Place& place)
      : place_(place), mine_(row + place.first_packet() * VEC) {}

  __device__ void write(int turn, const Pack<E, VEC>& packet) {
    const int columns = place_.columns(turn);
    if (columns == VEC) {
      store<ACCESS == ALIGNED>(mine_ + turn * TURN_COLS, packet, VEC);
    } else if (TAIL > 0 && columns == TAIL) {
      store<false>(mine_ + turn * TURN_COLS, packet, TAIL);
    }
  }

  __device__ void finish() {}

 private:
  const Place& place_;
  E* mine_;
};

template <typename E, int SITE>
class Writer<E, SHIFTED, SITE> {
 public:
  __device__ Writer(E* row, const Place& place)
      : share_(row + place.lane / SPAN * SHARE * VEC, place.share_bytes<E>()) {}

  __device__ void write(int turn, const Pack<E, VEC>& packet) {
    share_.put(turn, bits<uint4>(packet));
  }

  __device__ void finish() {
    share_.put(TURNS, uint4{});
    share_.write_edges();
  }

 private:
  Shifted<E, SITE, LANES * ROWS / 32> share_;
};

// Packets in shared memory, [packet][lane]. Each is its lane's own, and needs no barrier.
extern __shared__ uint4 parked[];

enum Site { OF_X, OF_Y, OF_RESIDUAL, OF_RESIDUAL_OUT };

// The row as one lane sees it.
class RowOfLane {
 public:
  __device__ RowOfLane(const Sources& sources, const Place& place)
      : place_(place),
        x_(sources.x, place)
#if HAS_RESIDUAL
        ,
        residual_(sources.residual, place),
        residual_out_(sources.residual_out, place),
        h_(sources.residual_out, place)
#endif
  {
#pragma unroll
    for (int first = 0; first < PACKETS; first += AT_ONCE) {
      fetch(first, PACKETS, [&](int turn, const Pack<T, VEC>& pack) { kept_[turn] = pack; });
    }
    // A residual is added once, also where the sum is read again later.
    constexpr int FETCHED = HAS_RESIDUAL ? TURNS : PACKETS + SHARED;
#pragma unroll 1
    for (int first = PACKETS; first < FETCHED; first += AT_ONCE) {
      fetch(first, FETCHED, [&](int turn, const Pack<T, VEC>& pack) {
        if (turn < PACKETS + SHARED) *parking(turn) = bits<uint4>(pack);
      });
    }
#if HAS_RESIDUAL
    residual_out_.finish();
#endif
  }

  // One of the first PACKETS packets; `turn` must be a constant once loops are unrolled.
  __device__ const Pack<T, VEC>& in_register(int turn) const { return kept_[turn]; }

  // One of the packets after those.
  __device__ Pack<T, VEC> past_registers(int turn) const {
    if (turn < PACKETS + SHARED) return bits<Pack<T, VEC>>(*parking(turn));
#if HAS_RESIDUAL
    return h_.again(turn);
#else
    return x_.again(turn);
#endif
  }

  // Between two passes: without it the compiler keeps the 16-bit packets that it converted, which
  // takes twice their registers.
  __device__ void convert_anew() {
    if constexpr (sizeof(T) == 2) {
#pragma unroll
      for (int turn = 0; turn < PACKETS; ++turn) {
#pragma unroll
        for (int w = 0; w < kept_[turn].WORDS; ++w) asm volatile("" : "+r"(kept_[turn].word[w]));
      }
    }
  }

 private:
  // Packets that a lane asks for before it needs the first.
  static constexpr int AT_ONCE = 4;

  __device__ uint4* parking(int turn) const {
    return parked + (turn - PACKETS) * LANES + threadIdx.x;
  }

#if HAS_RESIDUAL
  // Makes h of packets first, first + 1, ... below end, stores it, and hands each to keep().
  template <typename Keep>
  __device__ void fetch(int first, int end, Keep keep) {
    Pack<X, VEC> x[AT_ONCE];
    Pack<T, VEC> residual[AT_ONCE];
    x_.read(first, end, x);
    residual_.read(first, end, residual);
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) {
      if (first + i >= end) continue;
      Acc a[VEC];
      Acc b[VEC];
      unpack(x[i], a);
      unpack(residual[i], b);
#pragma unroll
      for (int j = 0; j < VEC; ++j) a[j] = add(a[j], b[j]);
      const Pack<T, VEC> h = round_to<T>(a);
      residual_out_.write(first + i, h);
      keep(first + i, h);
    }
  }
#else
  // Reads packets first, first + 1, ... below end, and hands each to keep().
  template <typename Keep>
  __device__ void fetch(int first, int end, Keep keep) {
    Pack<T, VEC> x[AT_ONCE];
    x_.read(first, end, x);
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) {
      if (first + i < end) keep(first + i, x[i]);
    }
  }
#endif

  const Place& place_;
  Reader<X, X_ACCESS, OF_X> x_;
#if HAS_RESIDUAL
  Reader<T, RESIDUAL_ACCESS, OF_RESIDUAL> residual_;
  Writer<T, RESIDUAL_OUT_ACCESS, OF_RESIDUAL_OUT> residual_out_;
  Reader<T, RESIDUAL_OUT_ACCESS == ALIGNED ? ALIGNED : ELEMENTS, OF_RESIDUAL_OUT> h_;
#endif
  Pack<T, VEC> kept_[PACKETS];
};

// Calls f(turn, value) for every packet of a lane's chunk, and for those that it would have if the
// row were longer. Chunk 0 is what the registers hold.
template <typename F>
__device__ inline void for_each_turn(int chunk, const RowOfLane& row, F f) {
  const auto visit = [&](int turn, const Pack<T, VEC>& packet) {
    Acc value[VEC];
    unpack(packet, value);
    f(turn, value);
  };
  if (chunk == 0) {
#pragma unroll
    for (int turn = 0; turn < PACKETS; ++turn) visit(turn, row.in_register(turn));
  } else {
    const int first = PACKETS + (chunk - 1) * CHUNK;
    const int end = min(first + CHUNK, TURNS);
#pragma unroll 2
    for (int turn = first; turn < end; ++turn) visit(turn, row.past_registers(turn));
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
__device__ inline void sum_columns(const RowOfLane& row, const Place& place, Acc (&total)[COUNT],
                                   Term term) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) total[i] = 0;
  const auto add_chunk = [&](int chunk) {
    Acc sums[2][COUNT] = {};
    for_each_turn(chunk, row, [&](int turn, Acc(&value)[VEC]) {
      const int columns = place.columns(turn);
      if (columns == VEC) {
#pragma unroll
        for (int i = 0; i < VEC; ++i) term(value[i], sums[i % 2]);
      } else if (TAIL > 0 && columns == TAIL) {
#pragma unroll
        for (int i = 0; i < TAIL; ++i) term(value[i], sums[i % 2]);
      }
    });
#pragma unroll
    for (int i = 0; i < COUNT; ++i) total[i] = add(total[i], add(sums[0][i], sums[1][i]));
  };
  add_chunk(0);
#pragma unroll 1
  for (int chunk = 1; chunk < CHUNKS; ++chunk) add_chunk(chunk);
  row_sums<LANES, SITE>(total);
  cluster_sums<SITE>(total);
}
