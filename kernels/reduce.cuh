// Sums over the lanes of a row. Every lane gets the same bits, and the order of the additions
// depends on their number alone.
//
//   sub-warp or warp    a butterfly of shuffles: lane l adds lane l ^ 16, l ^ 8, ... l ^ 1
//   several warps       a butterfly in each, one value a warp through shared memory, and every
//                       warp adds those up in the order of the warps
//   several blocks      the same in each, one value a block through the shared memory of the
//                       cluster, and every thread adds those up in the order of the blocks
//
// All threads of the block must call together: lanes of a warp that serve other rows take part in
// the same shuffles.

#pragma once

#include "vec.cuh"

constexpr unsigned FULL_WARP = 0xffffffffu;

template <int WIDTH, typename Acc>
__device__ inline Acc butterfly_sum(Acc value) {
#pragma unroll
  for (int distance = WIDTH / 2; distance > 0; distance /= 2) {
    value = add(value, __shfl_xor_sync(FULL_WARP, value, distance));
  }
  return value;
}

// COUNT sums at the cost of one barrier. Each SITE owns its shared memory, so that a second sum
// needs no barrier before it; a site may be used once in a launch, or over and over where it has
// two BUFFERS that are used in turns: the barrier of the one ends the use of the other.
template <int THREADS, int SITE, int BUFFERS = 1, int COUNT, typename Acc>
__device__ inline void row_sums(Acc (&value)[COUNT], int buffer = 0) {
  constexpr int WIDTH = THREADS < 32 ? THREADS : 32;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) value[i] = butterfly_sum<WIDTH>(value[i]);
  if constexpr (THREADS > 32) {
    constexpr int WARPS = THREADS / 32;
    __shared__ Acc partials[BUFFERS][COUNT][WARPS];
    Acc(&partial)[COUNT][WARPS] = partials[buffer];
    if (threadIdx.x % 32 == 0) {
#pragma unroll
      for (int i = 0; i < COUNT; ++i) partial[i][threadIdx.x / 32] = value[i];
    }
    __syncthreads();
    // Up to 8 warps it is shorter to add in turn than to shuffle again.
    if constexpr (WARPS <= 8) {
#pragma unroll
      for (int i = 0; i < COUNT; ++i) {
        value[i] = partial[i][0];
#pragma unroll
        for (int w = 1; w < WARPS; ++w) value[i] = add(value[i], partial[i][w]);
      }
    } else {
      const int w = threadIdx.x % 32;
#pragma unroll
      for (int i = 0; i < COUNT; ++i) {
        value[i] = butterfly_sum<32>(w < WARPS ? partial[i][w] : Acc(0));
      }
    }
  }
}

#if CLUSTER > 1
// Waits until all threads of the cluster are here, and sees what they wrote to shared memory.
__device__ inline void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Where another block of the cluster has what this one has at `here`, in shared memory.
template <typename Acc>
__device__ inline const Acc* in_block(const Acc* here, int rank) {
  const Acc* there;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(here), "r"(rank) : "memory");
  return there;
}

// Sums over the blocks of a cluster. A block must not leave before all have read its sums: the
// kernel ends with a cluster_barrier().
template <int SITE, int COUNT, typename Acc>
__device__ inline void cluster_sums(Acc (&value)[COUNT]) {
  __shared__ Acc of_block[COUNT];
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) of_block[i] = value[i];
  }
  cluster_barrier();
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    value[i] = *in_block(&of_block[i], 0);
#pragma unroll
    for (int rank = 1; rank < CLUSTER; ++rank) {
      value[i] = add(value[i], *in_block(&of_block[i], rank));
    }
  }
}
#else
__device__ inline void cluster_barrier() {}

template <int SITE, int COUNT, typename Acc>
__device__ inline void cluster_sums(Acc (&)[COUNT]) {}
#endif
