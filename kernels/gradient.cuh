// The backward pass of every norm, and its block's share of dgamma and dbeta.
//
// Formula      n = the normalised values of a row and g = gamma + gamma_offset, over its COLS
//              columns: dx = rstd * (g * dy - n * mean(g * dy * n)), plus dresidual where there is
//              one; where the statistic is CENTERED, mean(g * dy) is subtracted from g * dy first.
//              Over rows, dgamma = sum of dy * n, and dbeta = sum of dy.
//
// Mapping      A row's LANES and a block's ROWS are as in norm.cuh. Block b of the grid
//              takes the groups of ROWS rows b, b + gridDim.x, b + 2 gridDim.x, ... and adds up,
//              column by column in that order, what they give to dgamma and dbeta. A lane owns the
//              columns it owns in every row, so that it adds without asking the others:
//
//   block 0   rows 0 ..        rows G * ROWS ..       ...   -> partial[0]   column_sums.cuh adds
//   block 1   rows ROWS ..     rows (G + 1) * ROWS .. ...   -> partial[1]   these up in a fixed
//   ...                                                                     order
//
// Traffic      x, dy, dx, and dresidual, once; gamma and the statistics of a row; and for each
//              parameter 2 * blocks * COLS * sizeof(Acc) for the blocks' sums, written here and
//              read by column_sums. Rows too long for registers and shared memory read x and dy
//              once more, and their sums stay in L2.
//
// Numerics     All products and sums are float32 (float64 for float64), one rounding to dx's type
//              at the end. dx of a row is the same in any batch. The order in which dgamma is added
//              up follows from the number of rows and of blocks; there are no atomics. mean and
//              rstd are taken as given: x - mean is exact or nearly so, where the mean is far from
//              zero.
//
// Preconditions  (cunorm/_check, cunorm/_launch) Columns have unit stride. dx and the sums
//              overlap nothing. An array's ACCESS holds for every row. rows.count >= 1, and no
//              block is without rows.

#pragma once

#include "column_sums.cuh"
#include "epilogue.cuh"
#include "statistic.cuh"

template <typename Acc, int COUNT>
__device__ inline void copy(const Acc (&from)[COUNT], Acc (&to)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) to[i] = from[i];
}

// g = 1.
template <class S>
struct Unscaled {
  struct Arrays {};
  __device__ Unscaled(const Arrays&, const Place<S>&) {}
  __device__ void packet(int, Values<S>&) const {}
  __device__ void column(int, Values<S>&) const {}
};

// There is no dresidual.
template <class S>
struct NoResidual {
  struct Arrays {};
  __device__ NoResidual(const Arrays&, const Place<S>&) {}
  __device__ void take(int, Values<S>&) {}
  __device__ void column(int, Values<S>&) const {}
  __device__ static typename S::Acc combine(typename S::Acc inner, typename S::Acc rstd,
                                            typename S::Acc) {
    return mul(inner, rstd);
  }
};

// A row beside x and dy, whose packets are taken in order. Of a row in registers it is asked for with
// x and dy, and is in flight while the row is summed.
template <class S, class A>
class RowBeside {
  using E = typename A::E;
  using Packet = Pack<E, S::VEC>;

 public:
  __device__ RowBeside(const Strided<const E>& rows, const Place<S>& place)
      : row_(rows.row(place)), reader_(row_, place) {
    if (EARLY) reader_.read(0, S::PACKETS, packet_);
  }

  __device__ void take(int turn, Values<S>& value) {
    if (!EARLY) reader_.read(turn, S::TURNS, packet_);
    unpack(packet_[EARLY ? turn : 0], value);
  }

  __device__ void column(int column, Values<S>& value) const {
    unpack(load_column<S>(row_, column), value);
  }

 private:
  static constexpr bool EARLY = S::IN_REGISTERS && S::HAS_ROOM;

  const E* row_;
  Reader<S, A> reader_;
  Packet packet_[EARLY ? S::PACKETS : 1];
};

// dresidual of a row.
template <class S, class DResidual>
struct ResidualGradient : RowBeside<S, DResidual> {
  struct Arrays {
    Strided<const typename S::T> dresidual;
  };

  __device__ ResidualGradient(const Arrays& arrays, const Place<S>& place)
      : RowBeside<S, DResidual>(arrays.dresidual, place) {}

  __device__ static typename S::Acc combine(typename S::Acc inner, typename S::Acc rstd,
                                            typename S::Acc beside) {
    return fma_rn(inner, rstd, beside);
  }
};

// There is no gate.
template <class S>
struct NoGate {
  struct Arrays {};
  struct Made {};
  using Terms = NoTerms;
  __device__ NoGate(const Arrays&, const Place<S>&) {}
  template <class... Unused>
  __device__ void packet(Unused&&...) const {}
  template <class... Unused>
  __device__ void column(Unused&&...) const {}
  template <int COUNT>
  __device__ void write(int, int, const Made (&)[COUNT]) {}
  __device__ void finish() {}
};

// One row of a group: its sums, dx, and what its columns give to dgamma and dbeta.
template <class S, class Saved, class Weight, class Source, class Other, class DX, class Gate>
class RowGradient {
  using Acc = typename S::Acc;
  using T = typename S::T;
  static constexpr bool CENTERED = Saved::CENTERED;
  static constexpr int KINDS = CENTERED ? 2 : 1;
  using RowSums = Tree<S, KINDS, 0, 2>;
  // Whether registers have room for n and g * dy until dx is made of them.
  static constexpr bool KEEPS = S::HAS_ROOM;

 public:
  __device__ RowGradient(const Source& pairs, const Weight& weight, const Saved& saved,
                         const Place<S>& place)
      : pairs_(pairs), weight_(weight), saved_(saved), place_(place) {}

  // Sums of g * dy * n, and of g * dy, over the row, divided by COLS.
  __device__ void sum(int buffer) {
    RowSums sums(buffer);
    Values<S> x, dy;
    typename Source::Beside unused;
    Acc total[KINDS];
    sums.template sum<1>(
        total,
        [&](int turn) {
          if (turn < S::TAIL_TURNS && place_.has_tail(turn)) {
            pairs_.tail(turn, x, dy, unused);
            weight_.column(place_.tail_column(turn), dy);
            saved_.normalise(x);
            add_columns(1, x, dy, sums);
          }
          if (turn >= S::PACKETS) return;
          pairs_.in_register(turn, x, dy, unused);
          weight_.packet(turn, dy);
          saved_.normalise(x);
          if constexpr (KEEPS) {
            copy(x, normal_[turn]);
            copy(dy, weighted_[turn]);
          }
          if (place_.has_packet(turn)) add_columns(S::VEC, x, dy, sums);
        },
        [&](int turn) {
          if (!place_.has_packet(turn)) return;
          pairs_.past_registers(turn, x, dy, unused);
          weight_.packet(turn, dy);
          saved_.normalise(x);
          add_columns(S::VEC, x, dy, sums);
        });
    // A sum of what is too small for its type may be -0 or +0, by who has nothing to add: not here.
    mean_of_products_ = fma_rn(total[0], PER_COLUMN<S>, Acc(0));
    mean_of_gradient_ = fma_rn(total[KINDS - 1], PER_COLUMN<S>, Acc(0));
  }

  // Turns come in order, and all lanes take part. What is shifted is shifted for several packets at
  // once.
  template <class Sums>
  __device__ void write(T* dx, Other& other, Gate& gate, Sums& columns) const {
    Writer<S, DX> out(dx, place_);
    Values<S> x, dy, weighted, beside, value;
    typename Source::Beside raw;
#pragma unroll
    for (int first = 0; first < S::PACKETS; first += S::TOGETHER) {
      Pack<T, S::VEC> made[S::TOGETHER];
      typename Gate::Made dgate[S::TOGETHER];
#pragma unroll
      for (int i = 0; i < S::TOGETHER; ++i) {
        const int turn = first + i;
        if (turn >= S::PACKETS) continue;
        pairs_.in_register(turn, x, dy, raw);
        if constexpr (KEEPS) {
          copy(normal_[turn], x);
          copy(weighted_[turn], weighted);
        } else {
#pragma unroll
          for (int i = 0; i < S::VEC; ++i) forget(x[i]), forget(dy[i]);
          saved_.normalise(x);
          copy(dy, weighted);
          weight_.packet(turn, weighted);
        }
        other.take(turn, beside);
        gradient(x, weighted, beside, value);
        typename Gate::Terms terms;
        gate.packet(turn, raw, x, weight_, value, dgate[i], terms);
        made[i] = round_to<T>(value);
        columns.add_in_register(turn, dy, x, terms);
      }
      out.write(first, S::PACKETS, made);
      gate.write(first, S::PACKETS, dgate);
    }
#pragma unroll 1
    for (int turn = S::PACKETS; turn < S::TURNS; ++turn) {
      other.take(turn, beside);
      pairs_.past_registers(turn, x, dy, raw);
      copy(dy, weighted);
      weight_.packet(turn, weighted);
      saved_.normalise(x);
      gradient(x, weighted, beside, value);
      typename Gate::Made dgate[1];
      typename Gate::Terms terms;
      gate.packet(turn, raw, x, weight_, value, dgate[0], terms);
      const Pack<T, S::VEC> made[1] = {round_to<T>(value)};
      out.write(turn, S::TURNS, made);
      gate.write(turn, S::TURNS, dgate);
      columns.add_past_registers(turn, dy, x, terms);
    }
#pragma unroll
    for (int turn = 0; turn < S::TAIL_TURNS; ++turn) {
      if (!place_.has_tail(turn)) continue;
      const int column = place_.tail_column(turn);
      pairs_.tail(turn, x, dy, raw);
      copy(dy, weighted);
      weight_.column(column, weighted);
      saved_.normalise(x);
      other.column(column, beside);
      gradient(x, weighted, beside, value);
      typename Gate::Terms terms;
      gate.column(column, raw, x, weight_, value, terms);
      store_column(dx, column, round_to<T>(value));
      columns.add_tail(turn, dy, x, terms);
    }
    out.finish();
    gate.finish();
  }

 private:
  __device__ static void add_columns(int count, const Values<S>& normal, const Values<S>& weighted,
                                     RowSums& sums) {
#pragma unroll
    for (int i = 0; i < S::VEC; ++i) {
      if (i >= count) continue;
      Acc(&to)[KINDS] = sums.columns(i);
      to[0] = fma_rn(weighted[i], normal[i], to[0]);
      if (CENTERED) to[KINDS - 1] = add(to[KINDS - 1], weighted[i]);
    }
  }

  // The gradient of what was normalised, of one packet.
  __device__ void gradient(const Values<S>& normal, const Values<S>& weighted,
                           const Values<S>& beside, Values<S>& value) const {
#pragma unroll
    for (int i = 0; i < S::VEC; ++i) {
      const Acc centred = CENTERED ? sub(weighted[i], mean_of_gradient_) : weighted[i];
      const Acc inner = fma_rn(-normal[i], mean_of_products_, centred);
      value[i] = Other::combine(inner, saved_.rstd, beside[i]);
    }
  }

  const Source& pairs_;
  const Weight& weight_;
  const Saved& saved_;
  const Place<S>& place_;
  Acc mean_of_products_;
  Acc mean_of_gradient_;
  Values<S> normal_[KEEPS ? S::PACKETS : 1];
  Values<S> weighted_[KEEPS ? S::PACKETS : 1];
};

// The groups of ROWS rows that a block takes: one of `blocks` that share the rows from first to end.
struct Groups {
  long long block;
  long long blocks;
  long long first;
  long long end;
};

// Of all rows.
__device__ inline Groups all_groups(const Rows& rows) {
  return {blockIdx.x, gridDim.x, 0, rows.count};
}

// Neighbouring rows that have one row of each operand: `rows` of them, which `blocks` blocks share.
struct Segments {
  long long rows;
  long long blocks;
};

__device__ inline long long segment_of_block(const Segments& segments) {
  return blockIdx.x / segments.blocks;
}

// Of the block's segment.
__device__ inline Groups groups_of_segment(const Segments& segments) {
  const long long segment = segment_of_block(segments);
  const long long first = segment * segments.rows;
  return {blockIdx.x - segment * segments.blocks, segments.blocks, first, first + segments.rows};
}

// The block's segment's row of an operand, whose rows are `pitch` bytes apart.
template <typename E>
__device__ inline const E* row_of_segment(const E* operand, long long pitch,
                                          const Segments& segments) {
  return bytes_after(operand, segment_of_block(segments) * pitch);
}

// A weight that is a product of two.
template <class S, class First, class Second>
class Both {
 public:
  struct Arrays {
    typename First::Arrays first;
    typename Second::Arrays second;
  };
  __device__ Both(const Arrays& arrays, const Place<S>& place)
      : first_(arrays.first, place), second_(arrays.second, place) {}
  __device__ void packet(int turn, Values<S>& value) const {
    first_.packet(turn, value);
    second_.packet(turn, value);
  }
  __device__ void column(int column, Values<S>& value) const {
    first_.column(column, value);
    second_.column(column, value);
  }

 private:
  First first_;
  Second second_;
};

// All rows of a block.
template <class S, class Source, class Statistic, class Weight, class Other, class DX, class Sums,
          class Gate>
__device__ inline void backward(const typename Source::Arrays& from,
                                const typename Weight::Arrays& parameters,
                                const typename Other::Arrays& beside,
                                const Strided<typename S::T>& dx, typename S::Acc* partial,
                                const typename Statistic::Saved::Arrays& statistics,
                                const Rows& rows, const Groups& own,
                                const typename Gate::Arrays& of_gate) {
  using Saved = typename Statistic::Saved;
  const long long groups = (own.end - own.first + S::ROWS - 1) / S::ROWS;
  const Place<S> first = Place<S>::at(rows, own.first + own.block * S::ROWS + threadIdx.y, own.end);
  const Weight weight(parameters, first);  // the same for all of the block's rows
  Sums columns(partial, first);
  int buffer = 0;
#pragma unroll 1
  for (long long group = own.block; group < groups; group += own.blocks) {
    const Place<S> here = Place<S>::at(rows, own.first + group * S::ROWS + threadIdx.y, own.end);
    if (here.is_idle_warp) break;
    __syncwarp();  // shared memory of the row before is read before this one's is written
    const Source pairs(from, here);
    Other other(beside, here);
    const Saved saved(statistics, here);
    Gate gate(of_gate, here);
    RowGradient<S, Saved, Weight, Source, Other, DX, Gate> row(pairs, weight, saved, here);
    row.sum(buffer);
    row.write(dx.row(here), other, gate, columns);
    buffer ^= 1;
  }
  columns.finish();
}
