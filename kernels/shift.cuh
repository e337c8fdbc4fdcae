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

template <typename E, int SITE, int WARPS>
class Shifted {
 public:
  // `bytes` from `share` on; both are the same for all lanes of the warp.
  __device__ Shifted(const E* share, int bytes)
      : bytes_(bytes), lane_(threadIdx.x % 32), edges_(edge_chunks<SITE, WARPS>()) {
    const unsigned long long address = reinterpret_cast<unsigned long long>(share);
    shift_ = static_cast<int>(address) & 15;
    chunks_ = reinterpret_cast<uint4*>(address - shift_) + lane_;
  }

  // Brings the elements at both ends to shared memory, where chunk() finds them.
  __device__ void read_edges() {
    Unit* const slot = edge_unit();
    if (slot != nullptr) *slot = owns_unit() ? *unit_in_memory() : Unit(0);
    __syncwarp();
  }

  // Takes the elements at both ends from shared memory, where put() left them.
  __device__ void write_edges() {
    __syncwarp();
    const Unit* const slot = edge_unit();
    if (slot != nullptr && owns_unit()) *unit_in_memory() = *slot;
  }

  // This lane's chunk of `turn`; zeros where it lies outside the share.
  __device__ uint4 chunk(int turn) const {
    const int at = offset(turn);
    if (is_whole(at)) return chunks_[turn * 32];
    if (at > -16 && at < bytes_) return edges_[turn * 32 + lane_ > 0];
    return make_uint4(0, 0, 0, 0);
  }

  // The packet that begins in `chunk`, given the chunk of the next turn too.
  template <int COUNT>
  __device__ Pack<E, COUNT> packet(const uint4& chunk, const uint4& next) const {
    switch (shift_ / 4) {
      case 0:
        return bits<Pack<E, COUNT>>(join<0>(chunk, next));
      case 1:
        return bits<Pack<E, COUNT>>(join<1>(chunk, next));
      case 2:
        return bits<Pack<E, COUNT>>(join<2>(chunk, next));
      default:
        return bits<Pack<E, COUNT>>(join<3>(chunk, next));
    }
  }

  // Stores the chunk that ends in `packet`. Turns come in order, and one more, with any packet.
  __device__ void put(int turn, const uint4& packet) {
    uint4 chunk;
    switch (shift_ / 4) {
      case 0:
        chunk = part<0>(packet);
        break;
      case 1:
        chunk = part<1>(packet);
        break;
      case 2:
        chunk = part<2>(packet);
        break;
      default:
        chunk = part<3>(packet);
    }
    before_ = packet;
    const int at = offset(turn);
    if (is_whole(at)) {
      chunks_[turn * 32] = chunk;
    } else if (at > -16 && at < bytes_) {
      edges_[turn * 32 + lane_ > 0] = chunk;
    }
  }

 private:
  // What one lane moves of the chunks at the ends: an element, or half of one of 8 bytes.
  using Unit = typename Bits<(sizeof(E) < 4 ? sizeof(E) : 4)>::Type;
  static constexpr int UNITS = 16 / sizeof(Unit);

  // Where this lane's chunk of `turn` lies from the beginning of the share, in bytes.
  __device__ int offset(int turn) const { return (turn * 32 + lane_) * 16 - shift_; }

  __device__ bool is_whole(int at) const { return at >= 0 && at + 16 <= bytes_; }

  // Lanes 0 to 15 serve the first chunk, the others the last, where it is another.
  __device__ int edge_offset() const {
    const int last = (bytes_ + shift_ - 1) / 16;
    return (lane_ < 16 ? 0 : last) * 16 - shift_;
  }

  __device__ Unit* edge_unit() const {
    const int unit = lane_ % 16;
    return unit < UNITS ? reinterpret_cast<Unit*>(edges_ + lane_ / 16) + unit : nullptr;
  }

  __device__ bool owns_unit() const {
    const int at = edge_offset();
    const int unit = at + lane_ % 16 * static_cast<int>(sizeof(Unit));
    return !is_whole(at) && (lane_ < 16 || at + shift_ > 0) && unit >= 0 && unit < bytes_;
  }

  __device__ Unit* unit_in_memory() const {
    char* const share = reinterpret_cast<char*>(chunks_ - lane_) + shift_;
    return reinterpret_cast<Unit*>(share + edge_offset()) + lane_ % 16;
  }

  // Elements of 16 bits may start in the middle of a word: by how many bits.
  __device__ int half() const { return sizeof(E) == 2 ? (shift_ & 2) * 8 : 0; }

  // Words WORD to WORD + 4 of this chunk and the one after it.
  template <int WORD>
  __device__ uint4 join(const uint4& chunk, const uint4& next) const {
    unsigned word[8] = {chunk.x, chunk.y, chunk.z, chunk.w};
    const unsigned following[4] = {next.x, next.y, next.z, next.w};
    constexpr int NEEDED = WORD + (sizeof(E) == 2);
#pragma unroll
    for (int w = 0; w < NEEDED; ++w) {
      word[4 + w] = __shfl_sync(FULL_WARP, lane_ == 0 ? following[w] : word[w], lane_ + 1);
    }
    unsigned joined[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      joined[w] = sizeof(E) == 2 ? __funnelshift_r(word[WORD + w], word[WORD + w + 1], half())
                                 : word[WORD + w];
    }
    return make_uint4(joined[0], joined[1], joined[2], joined[3]);
  }

  // The last WORD words, and a half, of the packet before this one, and the beginning of this one.
  template <int WORD>
  __device__ uint4 part(const uint4& packet) const {
    // word[4] on is this packet, word[0] to word[3] the one before it.
    unsigned word[8] = {0, 0, 0, 0, packet.x, packet.y, packet.z, packet.w};
    const unsigned before[4] = {before_.x, before_.y, before_.z, before_.w};
    constexpr int NEEDED = WORD + (sizeof(E) == 2);
#pragma unroll
    for (int w = 4 - NEEDED; w < 4; ++w) {
      word[w] = __shfl_sync(FULL_WARP, lane_ == 31 ? before[w] : word[4 + w], lane_ - 1);
    }
    unsigned chunk[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      chunk[w] = sizeof(E) == 2 ? __funnelshift_l(word[3 - WORD + w], word[4 - WORD + w], half())
                                : word[4 - WORD + w];
    }
    return make_uint4(chunk[0], chunk[1], chunk[2], chunk[3]);
  }

  uint4* chunks_;
  int bytes_;
  int shift_;
  int lane_;
  uint4* edges_;
  uint4 before_ = {};
};
