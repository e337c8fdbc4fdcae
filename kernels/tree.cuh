// Sums over a row, by one tree of additions that COLS and the type of the row decide. Who adds is
// the plan's to choose, what is added to what is not: so no choice of lanes, of packets a lane, of
// places to keep them or of blocks changes a bit.
//
//   leaf     DEPTH packets 32 apart, and maybe a column of the tail before them: in order, by up to
//            eight packets, in which even and odd columns are two chains, each half as long; of a
//            leaf of one packet they are one, for a lane may have several leaves
//   chunk    32 leaves, of 32 * DEPTH neighbouring packets: l and l ^ 16, then l ^ 8, ... l ^ 1
//   row      its chunks: neighbours, then neighbouring pairs of chunks, then pairs of those, ...
//
// A warp owns whole chunks, and a lane a leaf of each. Where a row has up to 32 packets, DEPTH is 1
// and a lane owns leaves LANES apart. Warps leave their sums in shared memory, and meet at one
// barrier; then each of them adds up all of the block's. The blocks of a cluster own a power of two
// of chunks each, and add up each other's sums likewise. What a row does not have is +0.

#pragma once

#include "place.cuh"
#include "reduce.cuh"

// KINDS sums, 1 or 2, of what a lane adds to columns(). Each SITE owns its shared memory, so that a
// second sum needs no barrier before it. A site may be used again after a barrier, or over and over
// where it has two BUFFERS that are used in turns: the barrier of the one ends the use of the other.
template <class S, int KINDS, int SITE, int BUFFERS = 1>
class Tree {
  using Acc = typename S::Acc;

 public:
  __device__ explicit Tree(int buffer = 0) : buffer_(buffer) {}

  // The sums that the i'th column of a packet is added to.
  __device__ Acc (&columns(int i))[KINDS] { return columns_[i % CHAINS]; }

  // Sums over the row, the same in every lane. first(turn) adds what registers have of a turn,
  // whose number is a constant; later(turn) adds a packet kept elsewhere, UNROLL of them at once.
  template <int UNROLL, class First, class Later>
  __device__ void sum(Acc (&sum)[KINDS], First first, Later later) {
#pragma unroll
    for (int turn = 0; turn < S::FIRST_TURNS; ++turn) {
      first(turn);
      if (S::ends_batch(turn)) end_batch();
      if (S::ends_leaf(turn)) end_leaf(turn / S::DEPTH);
    }
#pragma unroll (S::HOLDS_LEAVES ? S::LEAVES : 1)
    for (int leaf = S::PACKETS / S::DEPTH; leaf < S::LEAVES; ++leaf) {
      if (S::IN_REGISTERS) break;
      const int end = (leaf + 1) * S::DEPTH;
      for (int turn = max(leaf * S::DEPTH, S::PACKETS); turn < end;) {
        const int stop = S::end_of_batch(turn, end);
#pragma unroll (UNROLL)
        for (; turn < stop; ++turn) later(turn);
        end_batch();
      }
      end_leaf(leaf);
    }
    total(sum);
  }

 private:
  static constexpr int CHAINS = S::DEPTH == 1 ? 1 : 2;
  // Leaves that are held, filled up to a power of two: then the warp is a subtree.
  static constexpr int HELD = S::HOLDS_LEAVES ? power_of_two(S::LEAVES) : 1;
  static constexpr bool IS_SUBTREE = S::HOLDS_LEAVES && HELD == S::LEAVES;
  static constexpr int OF_WARP = IS_SUBTREE ? 1 : S::LEAVES;
  static constexpr int OF_BLOCK = S::WARPS * OF_WARP;
  static constexpr unsigned LANES_OF_KIND = 32 / KINDS;  // once sums are scattered over a warp

  // After up to eight packets of a leaf.
  __device__ void end_batch() {
#pragma unroll
    for (int kind = 0; kind < KINDS; ++kind) {
      Acc& even = columns_[0][kind];
      Acc& odd = columns_[CHAINS - 1][kind];
      const Acc batch = CHAINS == 1 ? even : add(even, odd);
      leaf_[kind] = S::DEPTH > S::BATCH ? add(leaf_[kind], batch) : batch;
      even = odd = 0;
    }
  }

  // After the lane's part of a chunk. Where leaves are held, their numbers are constants.
  __device__ void end_leaf(int leaf) {
    if constexpr (S::HOLDS_LEAVES) {
#pragma unroll
      for (int kind = 0; kind < KINDS; ++kind) held_[kind * HELD + leaf] = leaf_[kind];
    } else {
      scattered_sums<32, KINDS>(leaf_);
      if (threadIdx.x % LANES_OF_KIND == 0) leave(leaf, leaf_[0]);
    }
#pragma unroll
    for (int kind = 0; kind < KINDS; ++kind) leaf_[kind] = 0;
  }

  // Adds up what lanes, warps and blocks have.
  __device__ void total(Acc (&sum)[KINDS]) {
    if constexpr (S::WARPS == 1) {
      static_assert(S::CLUSTER == 1, "blocks of a cluster have several warps");
      const Acc of_kind = sum_of_warp();
#pragma unroll
      for (int kind = 0; kind < KINDS; ++kind) {
        constexpr int WIDTH = S::LANES / KINDS;
        sum[kind] =
            KINDS == 1 ? of_kind : __shfl_sync(FULL_WARP, of_kind, kind * WIDTH, S::LANES);
      }
    } else {
      if constexpr (S::HOLDS_LEAVES) leave_held();
      __syncthreads();
#pragma unroll
      for (int kind = 0; kind < KINDS; ++kind) sum[kind] = sum_of_block(kind);
      if constexpr (S::CLUSTER > 1) total_of_blocks(sum);
    }
  }

  // The sum of a warp or less. Of several kinds, lanes have that of number lane / (LANES / KINDS).
  __device__ Acc sum_of_warp() {
    if constexpr (S::LANES < 32) {
#pragma unroll
      for (int distance = HELD / 2; distance > 0; distance /= 2) {
#pragma unroll
        for (int i = 0; i < KINDS * HELD; ++i) {
          if (i % HELD < distance) held_[i] = add(held_[i], held_[i + distance]);
        }
      }
      if constexpr (KINDS > 1) held_[1] = held_[HELD];
      scattered_sums<S::LANES, KINDS>(held_);
      return held_[0];
    } else {
      constexpr int SUMS = KINDS * HELD;
      scattered_sums<32, SUMS>(held_);
      return sum_of_neighbours<HELD, 32 / SUMS>(held_[0]);
    }
  }

  // Leaves sums in shared memory: the warp's, or those of its chunks.
  __device__ void leave_held() {
    if constexpr (IS_SUBTREE) {
      const Acc sum = sum_of_warp();
      if (threadIdx.x % LANES_OF_KIND == 0) sums()[threadIdx.x / LANES_OF_KIND] = sum;
    } else {
      constexpr unsigned LANES_OF_SUM = LANES_OF_KIND / HELD;
      scattered_sums<32, KINDS * HELD>(held_);
      const unsigned leaf = threadIdx.x / LANES_OF_SUM % HELD;
      if (leaf < S::LEAVES && threadIdx.x % LANES_OF_SUM == 0) leave(leaf, held_[0]);
    }
  }

  // Leaves the sum of a chunk, of the kind that the lane has.
  __device__ void leave(unsigned leaf, Acc sum) {
    const unsigned chunk = threadIdx.x / 32 * S::LEAVES + leaf;
    sums()[chunk * KINDS + threadIdx.x % 32 / LANES_OF_KIND] = sum;
  }

  // [subtree][kind]
  __device__ Acc* sums() const {
    constexpr int BYTES = OF_BLOCK * KINDS * sizeof(Acc);
    __shared__ __align__(BYTES % 16 == 0 ? 16 : sizeof(Acc)) Acc buffers[BUFFERS][OF_BLOCK * KINDS];
    return buffers[buffer_];
  }

  // The sum of what a block's warps have left. To add takes less time than to shuffle, but more
  // than eight take more instructions.
  __device__ Acc sum_of_block(int kind) const {
    if constexpr (OF_BLOCK <= (S::FEW ? 32 : 8)) {
      Acc all[OF_BLOCK];
#pragma unroll
      for (int i = 0; i < OF_BLOCK; ++i) all[i] = sums()[i * KINDS + kind];
      return sum_of_neighbours(all);
    } else {
      constexpr int FILLED = power_of_two(OF_BLOCK);
      constexpr int OF_LANE = (FILLED + 31) / 32, LANES = FILLED / OF_LANE;
      const int first = threadIdx.x % LANES * OF_LANE;
      Acc mine[OF_LANE];
#pragma unroll
      for (int i = 0; i < OF_LANE; ++i) {
        mine[i] = first + i < OF_BLOCK ? sums()[(first + i) * KINDS + kind] : 0;
      }
      return sum_of_neighbours<LANES, 1>(sum_of_neighbours(mine));
    }
  }

  // A block must not leave before all have read its sums: the kernel ends with a cluster_barrier().
  __device__ void total_of_blocks(Acc (&sum)[KINDS]) const {
    static_assert(power_of_two(OF_BLOCK) == OF_BLOCK, "blocks of a cluster own whole subtrees");
    __shared__ Acc of_block[KINDS];
    if (threadIdx.x == 0) {
#pragma unroll
      for (int kind = 0; kind < KINDS; ++kind) of_block[kind] = sum[kind];
    }
    cluster_barrier<S::CLUSTER>();
#pragma unroll
    for (int kind = 0; kind < KINDS; ++kind) {
      Acc block[S::CLUSTER];
#pragma unroll
      for (int rank = 0; rank < S::CLUSTER; ++rank) {
        block[rank] = *in_block(&of_block[kind], rank);
      }
      sum[kind] = sum_of_neighbours(block);
    }
  }

  int buffer_;
  Acc columns_[CHAINS][KINDS] = {};
  Acc leaf_[KINDS] = {};
  Acc held_[KINDS * HELD] = {};
};
