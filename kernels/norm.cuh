// The kernel of every norm: a Row comes from a Source, is reduced to a Statistic, passes an
// Epilogue and goes to a Sink. An op is a choice of all but the Row, which cunorm/_plan writes down
// as a translation unit of some twenty lines.
//
// Mapping      LANES threads own a row (place.cuh says which columns), ROWS rows a block. Fewer
//              than 32 lanes share a warp with other rows, and meet in shuffles as 32 do; more are
//              a block of their own and meet at one barrier a sum; the longest rows are a cluster
//              of CLUSTER blocks, and meet at that one's barrier too.
//
// Traffic      Every array of rows once; parameters once a row, from cache; 4 bytes a row for each
//              statistic that is wanted. Rows too long for registers and shared memory are read
//              again for each sum and for y.
//
// Numerics     Sums, statistics and products are float32 (float64 for float64 data), sums in the
//              order of one tree (tree.cuh); one rounding to y's type at the end, but for stages
//              that round.
//
// Preconditions  (cunorm/_check, cunorm/_launch) Columns have unit stride. y is x, and h is
//              residual, or overlaps nothing; parameters overlap nothing that is written. An
//              array's ACCESS holds for every row. rows.count >= 1, eps >= 0 and finite.

#pragma once

#include "epilogue.cuh"
#include "gate.cuh"
#include "row.cuh"
#include "sink.cuh"
#include "source.cuh"
#include "statistic.cuh"

// Under programmatic dependent launch a kernel starts while the one before it ends: what that one
// wrote is there after the wait, and the kernel after this one may start once its rows are fetched.
// Under any other launch, as cunorm's are, neither does anything; but the assembler moves no load
// over either. So what is asked for with x stands between them: elsewhere the assembler asks for it
// once x is there. Before sm_90 an event that nobody counts does the same, for kernels of few rows.
__device__ inline void wait_for_kernel_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

template <class S>
__device__ inline void let_kernel_after_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#else
  if (S::FEW) asm volatile("pmevent 0;" ::: "memory");
#endif
}

// Writes a row to a sink, normalised and as an epilogue makes it.
template <class S, class Row, class Statistic, class Epilogue, class Sink>
__device__ inline void write_normalised(const Row& row, const Statistic& statistic,
                                        const Epilogue& epilogue, Sink& sink) {
  row.write(
      sink,
      [&](int turn, Values<S>& value) {
        statistic.normalise(value);
        return epilogue.packet(turn, value);
      },
      [&](int column, Values<S>& value) {
        statistic.normalise(value);
        return epilogue.column(column, value);
      });
}

template <class Source, class Statistic, class Epilogue, class Sink>
__device__ inline void normalise(const typename Source::Arrays& from,
                                 const typename Epilogue::Arrays& parameters,
                                 const typename Sink::Arrays& to,
                                 const typename Statistic::Arrays& statistics, const Rows& rows,
                                 typename Statistic::Acc eps) {
  using S = typename Source::S;
  const Place<S> here = Place<S>::of(rows);
  if (here.is_idle_warp) return;
  wait_for_kernel_before();

  Source source(from, here);
  const Row<Source, Statistic::PASSES> row(source, here);  // reads x
  const Epilogue epilogue(parameters, here);  // they are in flight while the row is summed
  let_kernel_after_start<S>();
  const Statistic statistic = Statistic::of(row, eps);

  Sink sink(to, here);
  write_normalised<S>(row, statistic, epilogue, sink);
  if (here.is_first_lane()) statistic.save(statistics, here.row);
  cluster_barrier<S::CLUSTER>();  // other blocks may still read this one's sums
}
