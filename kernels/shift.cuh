// A warp's share of a row that does not start on 16 bytes, moved in aligned 16-byte chunks.
//
//   bytes of the row       |<------------------ the share ------------------>|
//   its packets            |  packet 0  |  packet 1  |  packet 2  |  ...     |
//   chunks in memory    |  chunk 0   |  chunk 1   |  chunk 2   |  ...     |
//                       |<>| `shift` bytes of chunk 0 lie before the share
//
// Lane l holds chunk l of each turn of 32. Packet p is the end of chunk p and the beginning of the
// chunk after it, which the next lane holds (or lane 0, of the next turn): a shuffle brings it.
// Storing is the same the other way around. The chunks at both ends of the share are not all its
// own: their bytes pass through shared memory, and the lanes move them to or from global memory one
// element each, in one access. So nothing outside the share is touched, and every other byte moves
// once, in a 16-byte access.
//
// All 32 lanes must call together, and take part in every turn, whether they have columns or not.

#pragma once

#include "reduce.cuh"
#include "vec.cuh"

// The chunks at the two ends of each warp's share, for each array that is shifted.
template <int SITE, int WARPS>
__device__ inline uint4* edge_chunks() {
  __shared__ uint4 edges[WARPS][2];
  return edges[(threadIdx.y * blockDim.x + threadIdx.x) / 32];
}

// Every share has WHOLE_PACKETS packets or more.
template <typename E, int SITE, int WARPS, int WHOLE_PACKETS>
class Shifted {
 public:
  // The share begins at `share` and has `packets` packets; both are the same for all of the warp.
  __device__ Shifted(const E* share, int packets)
      : share_(reinterpret_cast<char*>(const_cast<E*>(share))),
        bytes_(packets * 16),
        shift_(static_cast<int>(reinterpret_cast<unsigned long long>(share)) & 15),
        lane_(threadIdx.x % 32),
        edges_(edge_chunks<SITE, WARPS>()) {
    mine_ = share_ + lane_ * 16 - shift_;
  }

  // Brings the elements at both ends to shared memory, where chunk() finds them.
  __device__ void read_edges() {
    Unit* const slot = edge_unit();
    if (slot != nullptr) *slot = owns_unit() ? *unit_in_memory() : Unit(0);
    __syncwarp();
  }

  // Takes the elements at both ends from shared memory, where put() left them. In a share of
  // `last_turn` full turns the last chunk is only the end of lane 31's last packet.
  __device__ void write_edges(int last_turn) {
    if (lane_ == 31 && bytes_ == last_turn * 512) {
      const int words = shift_ / 4;
      edges_[1] = words == 0   ? end_words<0>(before_)
                  : words == 1 ? end_words<1>(before_)
                  : words == 2 ? end_words<2>(before_)
                               : end_words<3>(before_);
    }
    __syncwarp();
    const Unit* const slot = edge_unit();
    if (slot != nullptr && owns_unit()) *unit_in_memory() = *slot;
  }

  // This lane's chunk of `turn`; zeros where it lies outside the share.
  __device__ uint4 chunk(int turn) const {
    if (is_whole(turn)) return *reinterpret_cast<const uint4*>(mine_ + turn * 512);
    if (is_edge(turn)) return edges_[turn * 32 + lane_ > 0];
    return make_uint4(0, 0, 0, 0);
  }

  // The packets that begin in the first `count` of `chunk`.
  template <int COUNT>
  __device__ void join(int count, const uint4 (&chunk)[COUNT + 1], uint4 (&packet)[COUNT]) const {
    switch (shift_ / 4) {
      case 0:
        return join_words<0>(count, chunk, packet);
      case 1:
        return join_words<1>(count, chunk, packet);
      case 2:
        return join_words<2>(count, chunk, packet);
      default:
        return join_words<3>(count, chunk, packet);
    }
  }

  // Stores the chunks of turns first, first + 1, ... that end in the first `count` of `packet`.
  // Turns come in order.
  template <int COUNT>
  __device__ void put(int first, int count, const uint4 (&packet)[COUNT]) {
    switch (shift_ / 4) {
      case 0:
        return put_words<0>(first, count, packet);
      case 1:
        return put_words<1>(first, count, packet);
      case 2:
        return put_words<2>(first, count, packet);
      default:
        return put_words<3>(first, count, packet);
    }
  }

 private:
  // What one lane moves of the chunks at the ends: an element, or half of one of 8 bytes.
  using Unit = typename Bits<(sizeof(E) < 4 ? sizeof(E) : 4)>::Type;
  static constexpr int UNITS = 16 / sizeof(Unit);

  // Where this lane's chunk of `turn` lies from the beginning of the share, in bytes.
  __device__ int offset(int turn) const { return (turn * 32 + lane_) * 16 - shift_; }

  // Whether all of the chunk is the share's own. From the second turn on it does not begin before
  // the share, and constants tell how far it cannot end after it.
  __device__ bool is_whole(int turn) const {
    const bool begins = turn > 0 || offset(turn) >= 0;
    const bool ends = (turn + 1) * 32 <= WHOLE_PACKETS || offset(turn) + 16 <= bytes_;
    return begins && ends;
  }

  __device__ bool is_edge(int turn) const { return offset(turn) < bytes_; }

  // Lanes 0 to 15 serve the first chunk, the others the last, where it is another.
  __device__ int edge_offset() const {
    return lane_ < 16 ? -shift_ : ((bytes_ + shift_ - 1) & ~15) - shift_;
  }

  __device__ Unit* edge_unit() const {
    const int unit = lane_ % 16;
    return unit < UNITS ? reinterpret_cast<Unit*>(edges_ + lane_ / 16) + unit : nullptr;
  }

  // Shares are whole packets long, so that both ends are partial chunks or neither is.
  __device__ bool owns_unit() const {
    const int unit = edge_offset() + lane_ % 16 * static_cast<int>(sizeof(Unit));
    return shift_ > 0 && unit >= 0 && unit < bytes_;
  }

  __device__ Unit* unit_in_memory() const {
    return reinterpret_cast<Unit*>(share_ + edge_offset()) + lane_ % 16;
  }

  // Elements of 16 bits may start in the middle of a word: by how many bits.
  __device__ int half() const { return sizeof(E) == 2 ? (shift_ & 2) * 8 : 0; }

  // The last WORD words, and a half, of a packet, at the beginning of a chunk.
  template <int WORD>
  __device__ uint4 end_words(const uint4& packet) const {
    const unsigned word[8] = {packet.x, packet.y, packet.z, packet.w};
    unsigned end[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      end[w] = sizeof(E) == 2 ? __funnelshift_l(word[3 - WORD + w], word[4 - WORD + w], half())
                              : word[4 - WORD + w];
    }
    return make_uint4(end[0], end[1], end[2], end[3]);
  }

  // Packet i is words WORD to WORD + 4 of chunk i and the one after it, which lane + 1 holds.
  template <int WORD, int COUNT>
  __device__ void join_words(int count, const uint4 (&chunk)[COUNT + 1],
                             uint4 (&packet)[COUNT]) const {
    constexpr int NEEDED = WORD + (sizeof(E) == 2);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (i >= count) continue;
      unsigned word[8] = {chunk[i].x, chunk[i].y, chunk[i].z, chunk[i].w};
      const uint4& next = chunk[i + 1];
      const unsigned following[4] = {next.x, next.y, next.z, next.w};
#pragma unroll
      for (int w = 0; w < NEEDED; ++w) {
        word[4 + w] = __shfl_sync(FULL_WARP, lane_ == 0 ? following[w] : word[w], lane_ + 1);
      }
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        word[w] = sizeof(E) == 2 ? __funnelshift_r(word[WORD + w], word[WORD + w + 1], half())
                                 : word[WORD + w];
      }
      packet[i] = make_uint4(word[0], word[1], word[2], word[3]);
    }
  }

  // Chunk i is the last WORD words, and a half, of the packet before packet i, which lane - 1
  // holds, and the beginning of packet i.
  template <int WORD, int COUNT>
  __device__ void put_words(int first, int count, const uint4 (&packet)[COUNT]) {
    constexpr int NEEDED = WORD + (sizeof(E) == 2);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (i >= count) continue;
      unsigned word[8] = {0, 0, 0, 0, packet[i].x, packet[i].y, packet[i].z, packet[i].w};
      const unsigned before[4] = {before_.x, before_.y, before_.z, before_.w};
#pragma unroll
      for (int w = 4 - NEEDED; w < 4; ++w) {
        word[w] = __shfl_sync(FULL_WARP, lane_ == 31 ? before[w] : word[4 + w], lane_ - 1);
      }
      before_ = packet[i];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        word[w] = sizeof(E) == 2 ? __funnelshift_l(word[3 - WORD + w], word[4 - WORD + w], half())
                                 : word[4 - WORD + w];
      }
      const uint4 chunk = make_uint4(word[0], word[1], word[2], word[3]);
      const int turn = first + i;
      if (is_whole(turn)) {
        *reinterpret_cast<uint4*>(mine_ + turn * 512) = chunk;
      } else if (is_edge(turn)) {
        edges_[turn * 32 + lane_ > 0] = chunk;
      }
    }
  }

  char* share_;
  char* mine_;  // this lane's chunk of turn 0
  int bytes_;
  int shift_;
  int lane_;
  uint4* edges_;
  uint4 before_ = {};
};
