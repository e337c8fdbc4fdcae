// The row that is normalised, as one lane holds it: made from its sources once, summed and visited
// as often as it takes.

#pragma once

#include "access.cuh"
#include "reduce.cuh"

// A lane adds up its first four packets, and then eight at a time, so that a sum of 2^24 columns
// keeps its digits. Where a packet is kept does not matter to that: with a residual, which leaves
// fewer registers, the sums have the same bits.
constexpr int FIRST_CHUNK = 4;
constexpr int CHUNK = 8;

// The turn with which the next chunk begins.
__device__ constexpr int chunk_end(int turn) {
  return turn < FIRST_CHUNK ? FIRST_CHUNK : turn + CHUNK - (turn - FIRST_CHUNK) % CHUNK;
}

#if HAS_RESIDUAL
constexpr bool ROWS_ALIGNED = X_ACCESS == ALIGNED && Y_ACCESS == ALIGNED &&
                              RESIDUAL_ACCESS == ALIGNED && RESIDUAL_OUT_ACCESS == ALIGNED;
#else
constexpr bool ROWS_ALIGNED = X_ACCESS == ALIGNED && Y_ACCESS == ALIGNED;
#endif

// Threads over which a multiprocessor's registers are spread: 64 each for 1024, half of what most
// hold, 80 for 768, 128 for 512, for those that a kernel calls CROWDED. What is not aligned needs
// more than 64: there shifted rows spilled up to 250 bytes, and in 80 with a residual 36, with wide
// parameters 20. Four packets of bfloat16 spilled up to 250 in 64, and 8 in LayerNorm's 80: their
// conversions take registers of their own, most on sm_75, which has no instruction for them: with a
// residual up to 16 in 80. float16 rows past the registers spilled up to 12 in 64 where they have a
// tail. Even 512 threads have 32 KiB of x on their way (tests/test_registers.py says how much that
// must be). A block that shared memory leaves ALONE on its multiprocessor may have all registers.
constexpr bool BFLOAT16 = SAME<X, __nv_bfloat16> || SAME<T, __nv_bfloat16>;
constexpr bool LONG_TAIL = !IN_REGISTERS && TAIL > 0;
template <bool CROWDED, bool WIDE_PARAMETERS>
constexpr int RESIDENT_THREADS =
    ALONE                                                             ? LANES
    : CROWDED || (!ROWS_ALIGNED && (HAS_RESIDUAL || WIDE_PARAMETERS)) ? 512
    : !ROWS_ALIGNED || WIDE_PARAMETERS || sizeof(T) > 4               ? 768
    : sizeof(T) > 2 || PACKETS <= 3 || !(BFLOAT16 || LONG_TAIL)       ? 1024
    : BFLOAT16 && HAS_RESIDUAL && __CUDA_ARCH__ < 800                 ? 640
                                                                      : 768;

// Where the row begins in the arrays that make it.
struct Sources {
  const X* x;
  const T* residual;  // null without a residual, as is the next
  T* residual_out;
};

#if HAS_RESIDUAL
__device__ inline Sources sources(T* residual_out, const X* x, const T* residual,
                                  const Place& place, const Rows& rows) {
  return {row_at(x, place.at, rows.x), row_at(residual, place.at, rows.residual),
          row_at(residual_out, place.at, rows.residual_out)};
}
#else
__device__ inline Sources sources(const X* x, const Place& place, const Rows& rows) {
  return {row_at(x, place.at, rows.x), nullptr, nullptr};
}
#endif

// Under programmatic dependent launch a kernel starts while the one before it ends: what that one
// wrote is there after the wait, and the kernel after this one may start once its rows are fetched.
// In a plain launch neither does anything.
__device__ inline void wait_for_kernel_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ inline void let_kernel_after_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Lanes with little room: those that keep more packets than most, and those of a shifted row whose
// block is ALONE: four packets at once spilled up to 360 bytes there. Also those of rows past the
// registers that have a residual, and a last turn for some lanes only: up to 12 in 64 registers.
constexpr bool FULL = PACKETS > 4 || (ALONE && !ROWS_ALIGNED) ||
                      (HAS_RESIDUAL && !IN_REGISTERS && sizeof(T) <= 4 && WHOLE % SPAN != 0);

// Packets that a lane asks for before it needs the first, and shifted ones of y that it makes before
// it stores the first; with a residual twice as many, for which rows past the registers have no room.
// The assemblers of sm_100 and later have room for fewer of shifted ones with a residual: two spilled
// up to 32 bytes.
constexpr int AT_ONCE = HAS_RESIDUAL && !IN_REGISTERS
                            ? (ROWS_ALIGNED || __CUDA_ARCH__ < 1000 ? 2 : 1)
                        : PACKETS > 4 && !ROWS_ALIGNED ? 2
                                                       : 4;

// Packets in shared memory, [packet][lane]. Each is its lane's own, and needs no barrier.
extern __shared__ uint4 parked[];

// CONVERTED keeps the packets in registers as Acc values: twice the registers of 16-bit elements,
// and no conversion after the first.
template <bool CONVERTED>
class RowOfLane {
 public:
  __device__ RowOfLane(const Sources& sources, const Place& place)
      : x_(sources.x, place)
#if HAS_RESIDUAL
        ,
        residual_(sources.residual, place),
        residual_out_(sources.residual_out, place),
        h_(sources.residual_out, place)
#endif
  {
#pragma unroll
    for (int first = 0; first < PACKETS; first += AT_ONCE) {
      fetch(first, PACKETS, [&](int turn, const Pack<T, VEC>& packet) {
        if constexpr (CONVERTED) {
          unpack(packet, values_[turn]);
        } else {
          packets_[turn] = packet;
        }
      });
    }
    // A residual is added once, also where the sum is read again later.
    constexpr int FETCHED = HAS_RESIDUAL ? TURNS : PACKETS + SHARED;
#pragma unroll 1
    for (int first = PACKETS; first < FETCHED; first += AT_ONCE) {
      fetch(first, FETCHED, [&](int turn, const Pack<T, VEC>& packet) {
        if (turn < PACKETS + SHARED) *parking(turn) = bits<uint4>(packet);
      });
    }
#pragma unroll
    for (int turn = 0; turn < TAIL_TURNS; ++turn) {
      if (place.has_tail(turn)) tail_[turn] = fetch_column(sources, place.tail_column(turn));
    }
#if HAS_RESIDUAL
    residual_out_.finish();
#endif
  }

  // One of the first PACKETS packets; `turn` must be a constant once loops are unrolled.
  __device__ void in_register(int turn, Acc (&value)[VEC]) const {
    if constexpr (CONVERTED) {
#pragma unroll
      for (int i = 0; i < VEC; ++i) value[i] = values_[turn][i];
    } else {
      unpack(packets_[turn], value);
    }
  }

  // One of the packets after those.
  __device__ void past_registers(int turn, Acc (&value)[VEC]) const {
    if (turn < PACKETS + SHARED) return unpack(bits<Pack<T, VEC>>(*parking(turn)), value);
#if HAS_RESIDUAL
    unpack(h_.again(turn), value);
#else
    unpack(x_.again(turn), value);
#endif
  }

  // A column of the tail.
  __device__ Acc tail(int turn) const { return tail_[turn]; }

 private:
  __device__ uint4* parking(int turn) const {
    return parked + (turn - PACKETS) * LANES + threadIdx.x;
  }

#if HAS_RESIDUAL
  __device__ static Pack<T, VEC> sum(const Pack<X, VEC>& x, const Pack<T, VEC>& residual) {
    Acc a[VEC];
    Acc b[VEC];
    unpack(x, a);
    unpack(residual, b);
#pragma unroll
    for (int i = 0; i < VEC; ++i) a[i] = add(a[i], b[i]);
    return round_to<T>(a);
  }

  // Makes h of packets first, first + 1, ... below end, stores it, and hands each to keep().
  template <typename Keep>
  __device__ void fetch(int first, int end, Keep keep) {
    Pack<X, VEC> x[AT_ONCE];
    Pack<T, VEC> h[AT_ONCE];
    x_.read(first, end, x);
    residual_.read(first, end, h);
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) {
      if (first + i < end) h[i] = sum(x[i], h[i]);
    }
    residual_out_.write(first, end, h);
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) {
      if (first + i < end) keep(first + i, h[i]);
    }
  }

  __device__ static Acc fetch_column(const Sources& from, int column) {
    const Pack<T, VEC> h = sum(load_column(from.x, column), load_column(from.residual, column));
    store_column(from.residual_out, column, h);
    Acc value[VEC];
    unpack(h, value);
    return value[0];
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

  __device__ static Acc fetch_column(const Sources& from, int column) {
    Acc value[VEC];
    unpack(load_column(from.x, column), value);
    return value[0];
  }
#endif

  Reader<X, X_ACCESS, OF_X> x_;
#if HAS_RESIDUAL
  Reader<T, RESIDUAL_ACCESS, OF_RESIDUAL> residual_;
  Writer<T, RESIDUAL_OUT_ACCESS, OF_RESIDUAL_OUT> residual_out_;
  Reader<T, RESIDUAL_OUT_ACCESS == ALIGNED ? ALIGNED : ELEMENTS, OF_RESIDUAL_OUT> h_;
#endif
  Pack<T, VEC> packets_[CONVERTED ? 1 : PACKETS];
  Acc values_[CONVERTED ? PACKETS : 1][VEC];
  Acc tail_[TAIL_TURNS + 1] = {};
};

// Sums over the row of COUNT terms a column: term(value, sums) adds those of one column. A lane
// adds its columns in ascending order, even and odd ones apart.
template <int SITE, typename Row, int COUNT, typename Term>
__device__ inline void sum_columns(const Row& row, const Place& place, Acc (&total)[COUNT],
                                   Term term) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) total[i] = 0;
  const auto add_packet = [&](int turn, const Acc(&value)[VEC], Acc(&sums)[2][COUNT]) {
    if (!place.has_packet(turn)) return;
#pragma unroll
    for (int i = 0; i < VEC; ++i) term(value[i], sums[i % 2]);
  };
  Acc sums[2][COUNT] = {};
  const auto end_chunk = [&]() {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      total[i] = add(total[i], add(sums[0][i], sums[1][i]));
      sums[0][i] = sums[1][i] = 0;
    }
  };

#pragma unroll
  for (int turn = 0; turn < PACKETS; ++turn) {
    if (turn > 0 && chunk_end(turn - 1) == turn) end_chunk();
    Acc value[VEC];
    row.in_register(turn, value);
    add_packet(turn, value, sums);
  }
#pragma unroll 1
  for (int turn = PACKETS; turn < TURNS;) {
    if (chunk_end(turn - 1) == turn) end_chunk();
    const int end = min(chunk_end(turn), TURNS);
#pragma unroll 2
    for (; turn < end; ++turn) {
      Acc value[VEC];
      row.past_registers(turn, value);
      add_packet(turn, value, sums);
    }
  }
#pragma unroll
  for (int turn = 0; turn < TAIL_TURNS; ++turn) {
    if (place.has_tail(turn)) term(row.tail(turn), sums[0]);
  }
  end_chunk();
  row_sums<LANES, SITE>(total);
  cluster_sums<SITE>(total);
}

// Writes the row: finish(turn, value) makes the packet of y beside a packet of the row, and
// finish_column(column, value) a column of the tail, in the first element.
template <typename Row, typename Finish, typename FinishColumn>
__device__ inline void write_row(X* y, const Row& row, const Place& place, Finish finish,
                                 FinishColumn finish_column) {
  // Where packets are shifted, several share the work; where a lane has little room, two at a time
  // have their parameters on the way.
  constexpr int SHIFTED_STEP = FULL ? 1 : PACKETS < AT_ONCE ? PACKETS : AT_ONCE;
  constexpr int ALIGNED_STEP = FULL ? 2 : 1;
  constexpr int STEP = Y_ACCESS == SHIFTED ? SHIFTED_STEP : ALIGNED_STEP;
  constexpr int PARKED_STEP = Y_ACCESS == SHIFTED ? 1 : ALIGNED_STEP;
  Writer<X, Y_ACCESS, OF_Y> out(y, place);
#pragma unroll
  for (int first = 0; first < PACKETS; first += STEP) {
    Pack<X, VEC> made[STEP];
#pragma unroll
    for (int i = 0; i < STEP; ++i) {
      if (first + i >= PACKETS) continue;
      Acc value[VEC];
      row.in_register(first + i, value);
      made[i] = finish(first + i, value);
    }
    out.write(first, PACKETS, made);
  }
#pragma unroll 2
  for (int first = PACKETS; first < TURNS; first += PARKED_STEP) {
    Pack<X, VEC> made[PARKED_STEP];
#pragma unroll
    for (int i = 0; i < PARKED_STEP; ++i) {
      if (first + i >= TURNS) continue;
      Acc value[VEC];
      row.past_registers(first + i, value);
      made[i] = finish(first + i, value);
    }
    out.write(first, TURNS, made);
  }
#pragma unroll
  for (int turn = 0; turn < TAIL_TURNS; ++turn) {
    if (!place.has_tail(turn)) continue;
    Acc value[VEC] = {row.tail(turn)};
    store_column(y, place.tail_column(turn), finish_column(place.tail_column(turn), value));
  }
  out.finish();
}
