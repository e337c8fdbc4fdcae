// What a block's rows give to dgamma and dbeta: a sum for each column that a lane owns.
//
// Sums lie beside the packets of x and dy that they belong to (row_bwd.cuh), in registers or in
// shared memory. Those of what is left of a longer row are kept in `partial` itself.

#pragma once

#include "row_bwd.cuh"

// What is summed over rows: dgamma, and dbeta.
constexpr int PARAMETERS = SUMS ? (CENTERED ? 2 : 1) : 0;
constexpr int KINDS = PARAMETERS > 0 ? PARAMETERS : 1;  // C++ has no arrays of nothing

// From one row of `partial` to the next: packets of sums start on 16 bytes where `partial` does.
constexpr long long PITCH = (COLS + 3) / 4 * 4;
constexpr bool PARTIAL_ALIGNED = PARTIAL_ACCESS == ALIGNED;

using Sums = Pack<Acc, VEC>;
constexpr int QUADS = Sums::BYTES / 16;

// What a lane's columns have given to dgamma and dbeta so far.
class ColumnSums {
 public:
  // The sums of the lane's columns begin as zeros wherever they are kept.
  __device__ ColumnSums(Acc* partial, const Place& place)
      : partial_(partial + blockIdx.x * PITCH), place_(place) {
    const Acc zeros[VEC] = {};
#pragma unroll 1
    for (int turn = PACKETS; turn < TURNS; ++turn) {
      for (int kind = 0; kind < PARAMETERS; ++kind) put(kind, turn, zeros);
    }
  }

  // Adds a packet, or the first COUNT of its columns, to sums of both kinds.
  template <int COUNT>
  __device__ static void add_to(Acc (&sums)[KINDS][COUNT], const Acc (&dy)[VEC],
                                const Acc (&normal)[VEC]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (PARAMETERS > 0) sums[0][i] = fma_rn(dy[i], normal[i], sums[0][i]);
      if (PARAMETERS > 1) sums[KINDS - 1][i] = add(sums[KINDS - 1][i], dy[i]);
    }
  }

  __device__ void add_kept(int turn, const Acc (&dy)[VEC], const Acc (&normal)[VEC]) {
    add_to(kept_[turn], dy, normal);
  }

  __device__ void add_past_registers(int turn, const Acc (&dy)[VEC], const Acc (&normal)[VEC]) {
    if (PARAMETERS == 0) return;
    Acc sums[KINDS][VEC];
#pragma unroll
    for (int kind = 0; kind < PARAMETERS; ++kind) get(kind, turn, sums[kind]);
    add_to(sums, dy, normal);
#pragma unroll
    for (int kind = 0; kind < PARAMETERS; ++kind) put(kind, turn, sums[kind]);
  }

  __device__ void add_tail(int turn, const Acc (&dy)[VEC], const Acc (&normal)[VEC]) {
    add_to(tail_[turn], dy, normal);
  }

  // Writes the block's row of `partial`. All threads of the block call together.
  __device__ void finish() {
#pragma unroll
    for (int kind = 0; kind < PARAMETERS; ++kind) {
      Acc* const out = partial_ + kind * gridDim.x * PITCH;
      if constexpr (ROWS == 1) {
        write(kind, out);
#pragma unroll 1
        for (int turn = PACKETS; turn < PACKETS + SHARED; ++turn) {
          Acc sums[VEC];
          get(kind, turn, sums);
          if (place_.has_packet(turn))
            store<PARTIAL_ALIGNED>(column(out, turn), round_to<Acc>(sums), VEC);
        }
      } else {
        // Rows that share a block: added up column by column, in the order of threadIdx.y.
        __shared__ uint4 memory[ROWS][PITCH * sizeof(Acc) / 16];
        Acc(*const sums)[PITCH] = reinterpret_cast<Acc(*)[PITCH]>(memory);
        if (kind > 0) __syncthreads();
        write(kind, sums[threadIdx.y]);
        __syncthreads();
        for (int c = threadIdx.y * LANES + threadIdx.x; c < COLS; c += LANES * ROWS) {
          Acc sum = sums[0][c];
          for (int row = 1; row < ROWS; ++row) sum = add(sum, sums[row][c]);
          out[c] = sum;
        }
      }
    }
  }

 private:
  // Sums of a packet past the registers.
  __device__ void get(int kind, int turn, Acc (&sums)[VEC]) const {
    Sums pack = {};
    if (turn < PACKETS + SHARED) {
      uint4 quads[QUADS];
#pragma unroll
      for (int q = 0; q < QUADS; ++q) quads[q] = *parking(2 + kind * QUADS + q, turn);
      memcpy(&pack, quads, sizeof(pack));
    } else if (place_.has_packet(turn)) {
      pack = load<PARTIAL_ALIGNED, VEC>(column(partial_ + kind * gridDim.x * PITCH, turn), VEC);
    }
    unpack(pack, sums);
  }

  __device__ void put(int kind, int turn, const Acc (&sums)[VEC]) {
    const Sums pack = round_to<Acc>(sums);
    if (turn < PACKETS + SHARED) {
      uint4 quads[QUADS];
      memcpy(quads, &pack, sizeof(pack));
#pragma unroll
      for (int q = 0; q < QUADS; ++q) *parking(2 + kind * QUADS + q, turn) = quads[q];
    } else if (place_.has_packet(turn)) {
      store<PARTIAL_ALIGNED>(column(partial_ + kind * gridDim.x * PITCH, turn), pack, VEC);
    }
  }

  // Writes what registers hold to the lane's columns of `row`.
  __device__ void write(int kind, Acc* row) const {
#pragma unroll
    for (int turn = 0; turn < PACKETS; ++turn) {
      if (owns(turn))
        store<PARTIAL_ALIGNED>(column(row, turn), round_to<Acc>(kept_[turn][kind]), VEC);
    }
#pragma unroll
    for (int turn = 0; turn < TAIL_TURNS; ++turn) {
      const int tail = turn * ROW_LANES + place_.lane;
      if (tail < TAIL) row[WHOLE * VEC + tail] = tail_[turn][kind][0];
    }
  }

  // As Place::has_packet, of any row: one past the last has sums too, of nothing.
  __device__ bool owns(int turn) const { return place_.first_packet() + turn * SPAN < WHOLE; }

  __device__ Acc* column(Acc* row, int turn) const {
    return packet_at(row, place_.first_packet()) + turn * TURN_COLS;
  }

  Acc* partial_;
  const Place place_;
  Acc kept_[PACKETS][KINDS][VEC] = {};
  Acc tail_[TAIL_TURNS + 1][KINDS][1] = {};
};
