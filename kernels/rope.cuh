// Rotary position embedding (RoPE) of heads, after their norm or before it.
//
//   a' = a * c - b * s        of each pair (a, b) of columns, by the angle of the pair
//   b' = b * c + a * s        and the position of the token
//
// Mapping      As of norm.cuh. A row is one head, or all heads of a token. A column needs its
//              partner's value: often the lane has that itself, in the same packet or in one of
//              another turn; otherwise rows pass through shared memory, once (`Kept`).
//
// Traffic      x once, y once; the cosines and sines of a token once a row, from cache.
//
// Numerics     What was normalised is rounded as the norm's y is. Each product and sum is rounded to
//              the type that the operators of arrays give it, `Product`; to Acc, it is not. Where
//              all are of one 16-bit type, two are computed at a time, in it.
//
// Preconditions  As of norm.cuh, and: registers keep a row. Heads have an even number of columns.
//              Positions are rows of the tables.

#pragma once

#include "norm.cuh"

// Heads of D columns. The first R of each are rotated in pairs: neighbours where INTERLEAVED, else
// columns R / 2 apart.
template <class S, int D_, int R_, bool INTERLEAVED_, typename Product_>
struct Heads {
  using Product = Product_;
  static constexpr int D = D_, R = R_, HALF = R_ / 2;
  static constexpr bool INTERLEAVED = INTERLEAVED_;
  // Whether each packet is of one head, and all of it rotated or none; so is its partner then.
  static constexpr bool IN_PACKETS =
      D % S::VEC == 0 && R % S::VEC == 0 && (INTERLEAVED || HALF % S::VEC == 0);

  __device__ static int column_of_head(int column) { return S::COLS == D ? column : column % D; }
  __device__ static bool is_first(int column) {
    return INTERLEAVED ? column % 2 == 0 : column < HALF;
  }
  // Which of the angles is that of a column of a head.
  __device__ static int angle(int column) {
    return INTERLEAVED ? column / 2 : is_first(column) ? column : column - HALF;
  }
  // From a column to its partner.
  __device__ static int to_partner(int column) {
    constexpr int DISTANCE = INTERLEAVED ? 1 : HALF;
    return is_first(column) ? DISTANCE : -DISTANCE;
  }
};

// Two 16-bit elements of one word: products and sums that round once, and are never contracted. To
// round them from float32, which holds the exact product and all that matters of the sum, would give
// the same numbers in three times as many instructions.
template <typename E>
struct PairMath;
template <>
struct PairMath<__half> {
  static __device__ unsigned mul(unsigned a, unsigned b) {
    return bits<unsigned>(__hmul2_rn(bits<__half2>(a), bits<__half2>(b)));
  }
  static __device__ unsigned add(unsigned a, unsigned b) {
    return bits<unsigned>(__hadd2_rn(bits<__half2>(a), bits<__half2>(b)));
  }
};
template <>
struct PairMath<__nv_bfloat16> {
  static __device__ unsigned mul(unsigned a, unsigned b) {
    return bits<unsigned>(__hmul2_rn(bits<__nv_bfloat162>(a), bits<__nv_bfloat162>(b)));
  }
  static __device__ unsigned add(unsigned a, unsigned b) {
    return bits<unsigned>(__hadd2_rn(bits<__nv_bfloat162>(a), bits<__nv_bfloat162>(b)));
  }
};

// Whether all are one 16-bit type.
template <typename From, typename Cos, typename Product, typename To>
constexpr bool IS_ONE_NARROW_TYPE = false;
template <typename E>
constexpr bool IS_ONE_NARROW_TYPE<E, E, E, E> = sizeof(E) == 2;

// A row of type E between its norm and its rotation: a sink, which says of each packet what its
// partners are once finish() was called. PITCH bytes of shared memory are a row's; where it is 0, a
// lane has its packets' partners itself.
template <class S, class H, typename E, int PITCH>
class Kept {
 public:
  using Element = E;
  using Packet = Pack<E, S::VEC>;
  static constexpr bool SHIFTS = false, BY_LANES = false;

  __device__ explicit Kept(const Place<S>& place)
      : place_(place), row_((E*)((char*)in_shared_memory + threadIdx.y * PITCH)) {}

  template <int COUNT>
  __device__ void packets(int first, int end, const Packet (&packet)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (first + i < end && place_.has_packet(first + i)) {
        store<true>(at(number(first + i)), packet[i], S::VEC);
      }
    }
  }
  __device__ void column(int column, const Packet& packet) { store_column(row_, column, packet); }

  __device__ void finish() {
    if constexpr (S::LANES > 32) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  }

  // Of a packet that the lane has.
  __device__ Packet own(int turn) const { return load<true, S::VEC>(at(number(turn)), S::VEC); }

  // The same of one whose partner is a packet, and where its first column is in its head.
  __device__ Packet partner(int turn, int column) const {
    const int packets = H::to_partner(column) / S::VEC;
    return load<true, S::VEC>(at(number(turn) + packets), S::VEC);
  }

  __device__ typename S::Acc value(int column) const {
    Values<S> value;
    unpack(load_column<S>(row_, column), value);
    return value[0];
  }

 private:
  __device__ unsigned number(int turn) const { return place_.first_packet() + turn * S::SPAN; }
  __device__ E* at(unsigned packet) const { return packet_at<S>(row_, packet); }

  const Place<S>& place_;
  E* row_;
};

template <class S, class H, typename E>
class Kept<S, H, E, 0> {
 public:
  using Element = E;
  using Packet = Pack<E, S::VEC>;
  static constexpr bool SHIFTS = false, BY_LANES = true;
  // Turns from a packet to its partner.
  static constexpr int TURNS = H::INTERLEAVED ? 0 : H::HALF / S::TURN_COLS;
  static_assert(H::IN_PACKETS && S::TAIL == 0, "partners are packets");
  static_assert(H::INTERLEAVED || (S::SHARES == 1 && H::D == S::COLS &&
                                   TURNS * S::TURN_COLS == H::HALF),
                "partners are of one lane");

  __device__ explicit Kept(const Place<S>&) {}

  template <int COUNT>
  __device__ void packets(int first, int end, const Packet (&packet)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (first + i < end) held_[first + i] = packet[i];
    }
  }
  __device__ void column(int, const Packet&) {}
  __device__ void finish() {}

  __device__ Packet own(int turn) const { return held_[turn]; }
  __device__ Packet partner(int turn, int) const {
    return held_[turn < TURNS ? turn + TURNS : turn - TURNS];
  }
  __device__ typename S::Acc value(int) const { return 0; }  // rows are packets, and nobody asks

 private:
  Packet held_[S::PACKETS];
};

// Which row of the tables is a row's: that of its position, or, of tables with a row for each token,
// that of its token.
template <class S>
struct ByToken {
  struct Arrays {};
  __device__ ByToken(const Arrays&, const Place<S>& place) : place_(place) {}
  template <typename E>
  __device__ const E* row(const Strided<const E>& table) const {
    return table.row(place_);
  }

 private:
  const Place<S>& place_;
};

template <class S, class P>
struct ByPosition {
  struct Arrays {
    typename P::Rows positions;
  };
  // A row past the last has no position.
  __device__ ByPosition(const Arrays& arrays, const Place<S>& place)
      : position_(place.exists ? static_cast<long long>(*arrays.positions.row(place)) : 0) {}
  template <typename E>
  __device__ const E* row(const Strided<const E>& table) const {
    return (const E*)((const char*)table.first + position_ * table.stride.level[2]);
  }

 private:
  long long position_;
};

// The cosines and sines of a row. The sine of a pair's first column is negated: it is what the
// partner of that is multiplied with before both are added.
template <class S, class H, class Cos, class Sin, class By>
class Angles {
 public:
  struct Arrays {
    typename Cos::Rows cos;
    typename Sin::Rows sin;
    typename By::Arrays by;
  };

  // Of those of a packet.
  static constexpr int COUNT = H::INTERLEAVED ? S::VEC / 2 : S::VEC;
  using C = typename Cos::E;

  __device__ Angles(const Arrays& arrays, const Place<S>& place) {
    const By by(arrays.by, place);
    cos_ = by.row(arrays.cos);
    sin_ = by.row(arrays.sin);
  }

  // Of a packet, of which `first` is the first one's number.
  __device__ void packet(int first, bool is_first, Values<S>& cos, Values<S>& sin) const {
    typename S::Acc c[COUNT], s[COUNT];
    if constexpr (COUNT == 1) {
      c[0] = one(cos_ + first);
      s[0] = one(sin_ + first);
    } else {
      unpack(load<Cos::ACCESS == ALIGNED, COUNT>(cos_ + first, COUNT), c);
      unpack(load<Sin::ACCESS == ALIGNED, COUNT>(sin_ + first, COUNT), s);
    }
#pragma unroll
    for (int i = 0; i < S::VEC; ++i) {
      const int at = H::INTERLEAVED ? i / 2 : i;
      cos[i] = c[at];
      sin[i] = (H::INTERLEAVED ? i % 2 == 0 : is_first) ? -s[at] : s[at];
    }
  }

  // The same of 16-bit elements, as they are.
  __device__ void packet(int first, bool is_first, Pack<C, S::VEC>& cos,
                         Pack<C, S::VEC>& sin) const {
    const Pack<C, COUNT> c = load<Cos::ACCESS == ALIGNED, COUNT>(cos_ + first, COUNT);
    const Pack<C, COUNT> s = load<Sin::ACCESS == ALIGNED, COUNT>(sin_ + first, COUNT);
#pragma unroll
    for (int w = 0; w < cos.WORDS; ++w) {
      const unsigned twice = w % 2 == 0 ? 0x1010 : 0x3232;  // an element in both halves
      cos.word[w] = H::INTERLEAVED ? __byte_perm(c.word[w / 2], 0, twice) : c.word[w];
      sin.word[w] = H::INTERLEAVED ? __byte_perm(s.word[w / 2], 0, twice) : s.word[w];
      sin.word[w] ^= H::INTERLEAVED ? 0x8000u : is_first ? 0x80008000u : 0u;
    }
  }

  __device__ typename S::Acc cosine(int column) const { return one(cos_ + H::angle(column)); }
  __device__ typename S::Acc sine(int column) const {
    const typename S::Acc sine = one(sin_ + H::angle(column));
    return H::is_first(column) ? -sine : sine;
  }

 private:
  template <typename E>
  __device__ static typename S::Acc one(const E* from) {
    Values<S> value;
    unpack(load<false, S::VEC>(from, 1), value);
    return value[0];
  }

  const typename Cos::E* cos_;
  const typename Sin::E* sin_;
};

// From a row that is kept to packets of it as they are once rotated.
template <class S, class H, class Angles>
class Rotation {
 public:
  __device__ Rotation(const typename Angles::Arrays& arrays, const Place<S>& place)
      : place_(place), angles_(arrays, place) {}

  template <typename To, class Kept>
  __device__ Pack<To, S::VEC> packet(const Kept& kept, int turn) const {
    if (!place_.has_packet(turn)) return {};
    using E = typename Kept::Element;
    typename Kept::Packet own = kept.own(turn);
    Values<S> value;
    const int first = (place_.first_packet() + turn * S::SPAN) * S::VEC;
    if constexpr (!H::IN_PACKETS) {
      unpack(own, value);
#pragma unroll
      for (int i = 0; i < S::VEC; ++i) value[i] = rotated(kept, first + i, value[i]);
      return round_to<To>(value);
    } else if constexpr (IS_ONE_NARROW_TYPE<E, typename Angles::C, typename H::Product, To>) {
      rotate_packet(kept, turn, H::column_of_head(first), own);
      return own;
    } else {
      unpack(own, value);
      rotate_packet(kept, turn, H::column_of_head(first), value);
      return round_to<To>(value);
    }
  }

  template <typename To, class Kept>
  __device__ Pack<To, S::VEC> column(const Kept& kept, int column) const {
    Values<S> value = {rotated(kept, column, kept.value(column))};
    return round_to<To>(value);
  }

 private:
  using Acc = typename S::Acc;

  // A packet whose first column is one of a head's, as values or as it is.
  template <class Kept, typename Packet>
  __device__ void rotate_packet(const Kept& kept, int turn, int column, Packet& value) const {
    if (H::R < H::D && column >= H::R) return;
    Packet partner, cos, sin;
    if constexpr (H::INTERLEAVED) {
      swap_neighbours(value, partner);
      angles_.packet(H::angle(column), true, cos, sin);
    } else if constexpr (Kept::BY_LANES) {
      // The compiler sees that both of a pair have the same angles, and loads them once.
      const bool is_first = turn < Kept::TURNS;
      take(kept.partner(turn, column), partner);
      const int packet = place_.first_packet() + (is_first ? turn : turn - Kept::TURNS) * S::SPAN;
      angles_.packet(packet * S::VEC, is_first, cos, sin);
    } else {
      take(kept.partner(turn, column), partner);
      angles_.packet(H::angle(column), H::is_first(column), cos, sin);
    }
    rotate(value, partner, cos, sin);
  }

  template <typename E>
  __device__ static void take(const Pack<E, S::VEC>& from, Values<S>& to) {
    unpack(from, to);
  }
  template <typename E>
  __device__ static void take(const Pack<E, S::VEC>& from, Pack<E, S::VEC>& to) {
    to = from;
  }

  __device__ static void swap_neighbours(const Values<S>& from, Values<S>& to) {
#pragma unroll
    for (int i = 0; i < S::VEC; ++i) to[i] = from[i ^ 1];
  }
  template <typename E>
  __device__ static void swap_neighbours(const Pack<E, S::VEC>& from, Pack<E, S::VEC>& to) {
#pragma unroll
    for (int w = 0; w < from.WORDS; ++w) to.word[w] = __byte_perm(from.word[w], 0, 0x1032);
  }

  template <class Kept>
  __device__ Acc rotated(const Kept& kept, int column, Acc own) const {
    const int of_head = H::column_of_head(column);
    if (of_head >= H::R) return own;
    Acc value[2] = {own}, partner[2] = {kept.value(column + H::to_partner(of_head))};
    const Acc cos[2] = {angles_.cosine(of_head)}, sin[2] = {angles_.sine(of_head)};
    rotate(value, partner, cos, sin);
    return value[0];
  }

  template <int COUNT>
  __device__ static void rotate(Acc (&value)[COUNT], Acc (&partner)[COUNT],
                                const Acc (&cos)[COUNT], const Acc (&sin)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      value[i] = mul(value[i], cos[i]);
      partner[i] = mul(partner[i], sin[i]);
    }
    round_both(value, partner);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) value[i] = add(value[i], partner[i]);
    unpack(round_to<typename H::Product>(value), value);
  }

  template <typename E>
  __device__ static void rotate(Pack<E, S::VEC>& value, const Pack<E, S::VEC>& partner,
                                const Pack<E, S::VEC>& cos, const Pack<E, S::VEC>& sin) {
    using Math = PairMath<E>;
#pragma unroll
    for (int w = 0; w < value.WORDS; ++w) {
      value.word[w] = Math::add(Math::mul(value.word[w], cos.word[w]),
                                Math::mul(partner.word[w], sin.word[w]));
    }
  }

  template <int COUNT>
  __device__ static void round_both(Acc (&a)[COUNT], Acc (&b)[COUNT]) {
    unpack(round_to<typename H::Product>(a), a);
    unpack(round_to<typename H::Product>(b), b);
  }

  const Place<S>& place_;
  Angles angles_;
};

// A sink: rotated, to y.
template <class S, class H, class Kept, class Angles, class Y>
class RotatedTo {
 public:
  using Packet = typename Kept::Packet;
  struct Arrays {
    typename Stored<S, Y>::Arrays y;
    typename Angles::Arrays angles;
  };
  static constexpr bool SHIFTS = Kept::SHIFTS;

  __device__ RotatedTo(const Arrays& arrays, const Place<S>& place)
      : place_(place), kept_(place), rotation_(arrays.angles, place), y_(arrays.y, place) {}

  template <int COUNT>
  __device__ void packets(int first, int end, const Packet (&packet)[COUNT]) {
    kept_.packets(first, end, packet);
  }
  __device__ void column(int column, const Packet& packet) { kept_.column(column, packet); }

  __device__ void finish() {
    kept_.finish();
    using E = typename Y::E;
    constexpr int STEP = Stored<S, Y>::SHIFTS ? S::TOGETHER : 1;
#pragma unroll
    for (int first = 0; first < S::PACKETS; first += STEP) {
      Pack<E, S::VEC> made[STEP];
#pragma unroll
      for (int i = 0; i < STEP; ++i) {
        if (first + i < S::PACKETS) made[i] = rotation_.template packet<E>(kept_, first + i);
      }
      y_.packets(first, S::PACKETS, made);
    }
#pragma unroll
    for (int turn = 0; turn < S::TAIL_TURNS; ++turn) {
      if (!place_.has_tail(turn)) continue;
      const int column = place_.tail_column(turn);
      y_.column(column, rotation_.template column<E>(kept_, column));
    }
    y_.finish();
  }

 private:
  const Place<S>& place_;
  Kept kept_;
  Rotation<S, H, Angles> rotation_;
  Stored<S, Y> y_;
};

// A source: the row is x, rotated.
template <class S_, class X, class H, class Kept, class Angles>
class Rotated {
  using T = typename S_::T;

 public:
  using S = S_;
  struct Arrays {
    Strided<const typename X::E> x;
    typename Angles::Arrays angles;
  };
  static constexpr int TAKEN = S::KEPT;

  __device__ Rotated(const Arrays& arrays, const Place<S>& place)
      : kept_(place), rotation_(arrays.angles, place) {
    const typename X::E* row = arrays.x.row(place);
    Reader<S, X> x(row, place);
    typename Kept::Packet packet[S::PACKETS];
    x.read(0, S::PACKETS, packet);
    kept_.packets(0, S::PACKETS, packet);
#pragma unroll
    for (int turn = 0; turn < S::TAIL_TURNS; ++turn) {
      if (!place.has_tail(turn)) continue;
      kept_.column(place.tail_column(turn), load_column<S>(row, place.tail_column(turn)));
    }
    kept_.finish();
  }

  template <int COUNT>
  __device__ void take(int first, int end, Pack<T, S::VEC> (&packet)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (first + i < end) packet[i] = rotation_.template packet<T>(kept_, first + i);
    }
  }

  __device__ Pack<T, S::VEC> again(int) const { return {}; }  // registers keep all of it

  __device__ Pack<T, S::VEC> column(int column) {
    return rotation_.template column<T>(kept_, column);
  }

  __device__ void finish() {}

 private:
  Kept kept_;
  Rotation<S, H, Angles> rotation_;
};

// A statistic of no norm: of rows whose norm is another kernel's.
template <class S>
struct Unnormed {
  using Acc = typename S::Acc;
  static constexpr int PASSES = 1;

  template <class Row>
  __device__ static Unnormed of(const Row&, Acc) {
    return {};
  }
  __device__ void normalise(Values<S>&) const {}
};

// As normalise() in norm.cuh, of the group'th ROWS rows, and without the statistics. The sink is
// there before the row is summed: it knows its angles then.
template <class Source, class Statistic, class Epilogue, class Sink>
__device__ inline void normalise_heads(const typename Source::Arrays& from,
                                       const typename Epilogue::Arrays& parameters,
                                       const typename Sink::Arrays& to, const Rows& rows,
                                       typename Statistic::Acc eps, long long group) {
  using S = typename Source::S;
  static_assert(S::IN_REGISTERS && S::CLUSTER == 1, "the plan keeps rows in registers");
  const Place<S> here = Place<S>::of(rows, group);
  if (here.is_idle_warp()) return;
  wait_for_kernel_before();

  Source source(from, here);
  const Row<Source, Statistic::PASSES> row(source, here);
  let_kernel_after_start();
  const Epilogue epilogue(parameters, here);
  Sink sink(to, here);
  const Statistic statistic = Statistic::of(row, eps);
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
