// Rotations of pairs of columns, by the angles of a token's position.

#pragma once

#include "heads.cuh"

// Two 16-bit elements of one word: products and sums that round once, and are never contracted. To
// round them from float32, which holds the exact product and all that matters of the sum, gives the
// same numbers and took twice as many instructions of a kernel.
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

// Which row of the tables is a row's: that of its position, or, of tables with a row for each
// token, that of its token.
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
      : position_(place.has_columns ? static_cast<long long>(*arrays.positions.row(place)) : 0) {}
  template <typename E>
  __device__ const E* row(const Strided<const E>& table) const {
    return (const E*)((const char*)table.first + position_ * table.stride.level[2]);
  }

 private:
  long long position_;
};

// The cosines and sines of a row. The sine of a pair's first column is negated: it is what the
// partner of that is multiplied with before both are added. Where pairs are turned BACK, as the
// transposed rotation does, it is that of the second one.
template <class S, class H, class Cos, class Sin, class By, bool BACK = false>
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
      sin[i] = (H::INTERLEAVED ? i % 2 == 0 : is_first) != BACK ? -s[at] : s[at];
    }
  }

  // The same of 16-bit elements, as they are: gradients are never computed in those.
  __device__ void packet(int first, bool is_first, Pack<C, S::VEC>& cos,
                         Pack<C, S::VEC>& sin) const {
    static_assert(!BACK, "gradients are Acc's");
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
    return H::is_first(column) != BACK ? -sine : sine;
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
