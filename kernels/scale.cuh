// Scales: what the codes of a row, or of a group of its columns, are multiplied by, and where they
// lie in memory.

#pragma once

#include "format.cuh"
#include "place.cuh"

// What a scale may be: `floor` and `ceiling` of the largest |y|, `minimum` of the scale itself; and
// what is `given`, a scale for all rows or what e4m3 scales are multiplied by.
struct Bounds {
  float floor;
  float minimum;
  float ceiling;
  float given;
};

// Each has what is stored, and `quotient` is y / s, rounded once: NaN, without a sign, of NaN and of
// two infinities. Of s = 0 it is +0, and NaN where y is not finite.

// A number. The quotient is that of the reciprocal, corrected by what is left of y (Markstein, IBM
// Journal of Research and Development 34, 1990). `before`, a power of two, keeps that in range, and
// so does a bound where y MAY_EXCEED what s was made for.
template <class Format, bool MAY_EXCEED>
class Float32Scale {
 public:
  using Stored = float;

  __device__ static Float32Scale of(float largest, const Bounds& bounds) {
    const float s = max_ieee(divide_ieee(largest, Format::LARGEST), bounds.minimum);
    return Float32Scale(s);
  }
  __device__ explicit Float32Scale(float s) : stored(s) {
    const unsigned bits = __float_as_uint(s);  // a subnormal number is 0 to comparisons
    before_ = s < 0x1p-50f ? 0x1p100f : s > 0x1p50f ? 0x1p-100f : 1;
    float divisor = mul_ieee(s, before_);
    if (bits == 0 || bits >= 0x7f800000u) before_ = 0, divisor = 1;
    minus_divisor_ = -divisor;
    reciprocal_ = divide_ieee(1, divisor);
    most_ = 2 * Format::LARGEST * divisor;
    signs_ = bits == 0 ? 0 : 1u << 31;
  }

  __device__ float quotient(float y) const {
    float scaled = mul_ieee(y, before_);
    if constexpr (MAY_EXCEED) {  // NaN stays
      scaled = scaled > most_ ? most_ : scaled < -most_ ? -most_ : scaled;
    }
    const float near = mul(scaled, reciprocal_);
    const float quotient = fma_rn(fma_rn(near, minus_divisor_, scaled), reciprocal_, near);
    // A sum of zeros is +0, whatever sign y has.
    return __uint_as_float(__float_as_uint(quotient) | (__float_as_uint(scaled) & signs_));
  }

  Stored stored;

 private:
  float before_;
  float minus_divisor_;
  float reciprocal_;
  float most_;
  unsigned signs_;
};

// The power of two that is not less, by the byte of its exponent. 255 is NaN, and infinity's.
template <class Format, bool>
class E8m0Scale {
 public:
  using Stored = unsigned char;

  __device__ static E8m0Scale of(float largest, const Bounds&) {
    const unsigned ratio = __float_as_uint(divide_ieee(largest, Format::LARGEST));
    const unsigned exponent = (ratio >> 23) + ((ratio & 0x7fffffu) != 0);
    E8m0Scale made;
    made.stored = exponent;
    // LARGEST is 6 or more: no finite number needs a factor below 2^-126.
    made.factor_ = __uint_as_float(exponent == 255 ? 0x7fffffffu : (254 - exponent) << 23);
    return made;
  }

  __device__ float quotient(float y) const { return mul_ieee(y, factor_); }

  Stored stored;

 private:
  float factor_;
};

// A number of e4m3 beside one that all scales share.
template <class Format, bool>
class E4m3Scale {
 public:
  using Stored = unsigned char;

  __device__ static E4m3Scale of(float largest, const Bounds& bounds) {
    const float ratio = mul_ieee(divide_ieee(largest, Format::LARGEST), bounds.given);
    E4m3Scale made;
    made.stored = code_of_size<E4m3>(min_ieee(ratio, E4m3::LARGEST));
    made.factor_ = made.stored == 0 ? 0 : divide_ieee(bounds.given, number_of<E4m3>(made.stored));
    made.kept_ = made.stored == 0 ? ~(1u << 31) : ~0u;
    return made;
  }

  __device__ float quotient(float y) const {
    return mul_ieee(__uint_as_float(__float_as_uint(y) & kept_), factor_);
  }

  Stored stored;

 private:
  float factor_;
  unsigned kept_;
};

// How the scales of `rows` rows of GROUPS groups lie: ROWS in C order; COLUMNS one column after the
// other, each of them filled up to four rows; PACKED the same of words, which have four groups of a
// row each; SWIZZLED in tiles of 128 rows and four groups. What fills them up is zero.
enum ScaleLayout { ROWS, COLUMNS, PACKED, SWIZZLED };

// Where a scale lies among those of tiles, of which a group's number is the last.
template <int GROUPS>
__device__ inline long long swizzled(long long row, int group) {
  constexpr int WORDS = (GROUPS + 3) / 4;
  return (row / 128 * WORDS + group / 4) * 512 + row % 32 * 16 + row % 128 / 32 * 4 + group % 4;
}

template <class S, typename E, ScaleLayout LAYOUT, int GROUPS>
class Scales {
 public:
  __device__ Scales(void* first, long long rows, const Place<S>& place)
      : first_(static_cast<E*>(first)), rows_(rows), place_(place) {}

  __device__ void store(int group, E scale) const { first_[at(place_.row, group)] = scale; }

  // Zero past the groups of this row, and past the last row.
  __device__ void fill_up() const {
    if (LAYOUT == ROWS || !place_.exists) return;
    for (int group = GROUPS + place_.lane; group < FILLED; group += S::ROW_LANES) store(group, 0);
    if (place_.row != rows_ - 1) return;
    constexpr int UNIT = LAYOUT == COLUMNS ? 1 : 4, UNITS = FILLED / UNIT;
    const int units = static_cast<int>(filled_rows() - rows_) * UNITS;
    for (int i = place_.lane; i < units; i += S::ROW_LANES) {
      E* const unit = first_ + at(rows_ + i / UNITS, i % UNITS * UNIT);
      if constexpr (LAYOUT == COLUMNS) {
        *unit = 0;
      } else {
        *reinterpret_cast<unsigned*>(unit) = 0;
      }
    }
  }

 private:
  static constexpr int FILLED =
      LAYOUT == ROWS || LAYOUT == COLUMNS ? GROUPS : (GROUPS + 3) / 4 * 4;

  __device__ long long filled_rows() const {
    constexpr int TILE = LAYOUT == SWIZZLED ? 128 : 4;
    return (rows_ + TILE - 1) / TILE * TILE;
  }

  __device__ long long at(long long row, int group) const {
    if constexpr (LAYOUT == ROWS) return row * GROUPS + group;
    if constexpr (LAYOUT == COLUMNS) return group * filled_rows() + row;
    if constexpr (LAYOUT == PACKED) return (group / 4 * filled_rows() + row) * 4 + group % 4;
    return swizzled<GROUPS>(row, group);
  }

  E* first_;
  long long rows_;
  const Place<S>& place_;
};
