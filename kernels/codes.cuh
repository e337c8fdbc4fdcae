// How a lane's packets of codes leave, of 2, 4 or 8 bytes each.
//
//   ALIGNED    every row of codes starts on 8 bytes, or on 4 where a packet has no more: one access
//   STAGGERED  rows start anywhere: aligned chunks of a packet's size; whole warps, 4 or 8 bytes
//   ELEMENTS   what is left: byte by byte
//
// Chunks of a packet's size start on a sector. One is the end of a packet and the beginning of the
// next, as in shift.cuh; but codes are stored only, and a funnel shift takes its bits from a
// register, so that all shifts have one code. The last lanes store their chunks a turn late, so that
// a warp's chunks of a turn start on a sector, too:
//
//   a share      |                 packets 0 to 31                 |  32  |  33  | ...
//   sectors   |  :  . 0 .   |             |  ...  |             |  :  .   .   |  ...
//   stored     by bytes     |      in turn 0, by lanes 0 to 31 - d         | in turn 1, by the late
//              ^ `past` bytes of the sector, d chunks and some, are not the share's
//
// What a share has of its first and of its last sector, where not all, is stored by a byte a lane: so
// each sector is asked for once, and the one that two shares meet in once by each.

#pragma once

#include "reduce.cuh"
#include "stream.cuh"

template <int BYTES>
struct PackOfCodes {
  static constexpr int WORDS = (BYTES + 3) / 4;
  unsigned word[WORDS];
};

// `to` is a multiple of BYTES.
template <int BYTES>
__device__ inline void store_codes(unsigned char* to, const PackOfCodes<BYTES>& codes) {
  if constexpr (BYTES == 8) {
    *reinterpret_cast<uint2*>(to) = make_uint2(codes.word[0], codes.word[1]);
  } else if constexpr (BYTES == 4) {
    *reinterpret_cast<unsigned*>(to) = codes.word[0];
  } else {
    *reinterpret_cast<unsigned short*>(to) = codes.word[0];
  }
}

template <class S, Access ACCESS, int BYTES>
class CodesWriter {
 public:
  __device__ CodesWriter(unsigned char* row, const Place<S>&) : row_(row) {}

  // A lane's packet of a turn, which has that number in the row. Lanes without one need not call.
  __device__ void write(int, int packet, const PackOfCodes<BYTES>& codes) {
    unsigned char* const to = row_ + static_cast<size_t>(packet) * BYTES;
    if constexpr (ACCESS == ALIGNED) {
      store_codes<BYTES>(to, codes);
    } else {
#pragma unroll
      for (int i = 0; i < BYTES; ++i) to[i] = codes.word[i / 4] >> i % 4 * 8;
    }
  }

  __device__ void column(int column, unsigned code) { row_[column] = code; }

  __device__ void finish() {}

 private:
  unsigned char* row_;
};

// All 32 lanes call together, in every turn, in order.
template <class S, int BYTES>
class CodesWriter<S, STAGGERED, BYTES> {
  using Chunk = PackOfCodes<BYTES>;
  static constexpr int SECTOR = 32, CHUNKS = SECTOR / BYTES;
  static_assert(BYTES == 4 || BYTES == 8, "a chunk is of whole words");

 public:
  __device__ CodesWriter(unsigned char* row, const Place<S>& place)
      : place_(place), row_(row), lane_(place.lane_of_warp()) {
    unsigned char* const share = row + static_cast<size_t>(place.first_of_share()) * BYTES;
    past_ = static_cast<unsigned>(reinterpret_cast<size_t>(share)) % SECTOR;
    end_ = past_ + place.share_packets() * BYTES;
    sectors_ = share - past_;
    is_late_ = lane_ + past_ / BYTES >= 32;
    first_ = lane_ + past_ / BYTES - (is_late_ ? 32 : 0);
  }

  __device__ void write(int turn, int, const Chunk& packet) {
    const Chunk chunk = joined(packet);
    const int number = first_ + turn * 32;
    const bool is_begun = turn > 0 || past_ == 0 || first_ >= CHUNKS;
    if (is_begun && (turn * 32 + 32 <= LEAST || number < static_cast<int>(end_ / SECTOR * CHUNKS))) {
      Chunk stored;
#pragma unroll
      for (int w = 0; w < Chunk::WORDS; ++w) {
        stored.word[w] = is_late_ ? chunk_before_.word[w] : chunk.word[w];
      }
      store_codes<BYTES>(sectors_ + number * BYTES, stored);
    }
    if (turn == 0 && past_ > 0) {
      const unsigned code = code_of(packet, 0, past_);
      if (lane_ >= past_ && lane_ < end_) sectors_[lane_] = code;
    }
    chunk_before_ = chunk;
    // The last packets stay with their lanes.
    if (place_.has_packet(turn)) packet_before_ = packet;
  }

  __device__ void column(int column, unsigned code) { row_[column] = code; }

  __device__ void finish() {
    if (past_ > 0 && end_ < SECTOR) return;  // all is stored
    const unsigned rest = end_ % SECTOR;
    const unsigned code = code_of(packet_before_, (end_ - past_) / BYTES, rest);
    if (lane_ < rest) sectors_[end_ - rest + lane_] = code;
  }

 private:
  // Packets of the warp's share, at least.
  static constexpr int LEAST = S::WHOLE - (S::SHARES - 1) * S::SHARE;

  // The end of the packet before this lane's, and the beginning of this lane's.
  __device__ Chunk joined(const Chunk& packet) const {
    constexpr int WORDS = Chunk::WORDS;
    unsigned word[2 * WORDS];
#pragma unroll
    for (int w = 0; w < WORDS; ++w) {
      const unsigned given = lane_ == 31 ? packet_before_.word[w] : packet.word[w];
      word[w] = __shfl_sync(FULL_WARP, given, lane_ + 31);
      word[WORDS + w] = packet.word[w];
    }
    // From the last word of the packet before on, or from one word earlier.
    unsigned from[WORDS + 1];
#pragma unroll
    for (int w = 0; w <= WORDS; ++w) {
      from[w] = word[WORDS - 1 + w];
      if (WORDS > 1 && past_ % BYTES >= 4) from[w] = word[WORDS - 2 + w];
    }
    Chunk chunk;
#pragma unroll
    for (int w = 0; w < WORDS; ++w) {
      chunk.word[w] = __funnelshift_l(from[w], from[w + 1], past_ * 8);
    }
    return chunk;
  }

  // The code that lies as many bytes after the beginning of a packet as this lane comes after `lane`,
  // or before.
  __device__ unsigned code_of(const Chunk& packet, unsigned number, unsigned lane) const {
    const int byte = static_cast<int>(lane_ - lane);
    unsigned word = __shfl_sync(FULL_WARP, packet.word[0], number + (byte >> (BYTES == 8 ? 3 : 2)));
    if constexpr (BYTES == 8) {
      const unsigned second = __shfl_sync(FULL_WARP, packet.word[1], number + (byte >> 3));
      if (byte & 4) word = second;
    }
    return word >> (byte & 3) * 8;
  }

  const Place<S>& place_;
  unsigned char* row_;
  unsigned lane_;
  unsigned past_;           // of the share's first sector, the bytes before the share
  unsigned end_;            // and all up to the share's end
  unsigned char* sectors_;  // where that sector begins
  bool is_late_;
  int first_;  // the chunk that this lane stores in turn 0; from there on in steps of 32
  Chunk packet_before_ = {};
  Chunk chunk_before_ = {};
};
