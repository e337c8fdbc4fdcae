"""The checks in C, each against its definition in NumPy."""

import numpy as np
import pytest

from cunorm.simgpu import _access

LANES, PLACES = 1000, 97  # so that lanes meet
PARTY, FLOOR = 0x7E0, 1 << 11


def stamps(rng, count, dtype, *, nobody=0.2):
    """Return stamps of some parties and times, some of them 0."""
    made = rng.integers(1, 1 << 14, count).astype(dtype)
    made[rng.random(count) < nobody] = 0
    return made


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16])
def test_places_are_indices_in_units_of_the_access(width):
    base, size = 1 << 40, 4096
    offsets = np.random.default_rng(0).integers(0, size // width, LANES) * width
    addresses, index = (base + offsets).astype(np.uint64), np.empty(LANES, np.int64)
    assert _access.place(index, addresses, None, 0, base, 0, size, width)
    np.testing.assert_array_equal(index, offsets // width)
    pieces = np.arange(LANES)
    assert _access.place(index, addresses[:1], pieces, 64, base, 0, size, width)
    np.testing.assert_array_equal(index, (offsets[0] + 64 * pieces) // width)


@pytest.mark.parametrize("offset", [-4, 8, 32 + 97, 4093, 4096, 1 << 62, -(1 << 62)])
def test_one_address_outside_or_misaligned_has_no_place(offset):
    base = 1 << 40
    addresses = np.full(LANES, base + 32, np.uint64)
    addresses[LANES // 2] = (base + offset) % (1 << 64)
    assert not _access.place(np.empty(LANES, np.int64), addresses, None, 0, base, 16, 4096, 4)


@pytest.mark.parametrize("size", [0, 3])
def test_nothing_lies_in_less_than_one_unit(size):
    address, index = np.zeros(1, np.uint64), np.empty(1, np.int64)
    assert not _access.place(index, address, None, 0, 0, 0, size, 4)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("seed", range(20))
def test_an_earlier_stamp_of_another_party_is_in_no_order(dtype, seed):
    rng = np.random.default_rng(seed)
    last = stamps(rng, PLACES, dtype, nobody=0.99 if seed % 2 else 0.2)
    index, now = rng.integers(0, PLACES, 8), stamps(rng, 8, dtype, nobody=0)
    earlier = last[index]
    suspect = ((earlier ^ now) & PARTY != 0) & (earlier > FLOOR)
    assert _access.ordered(last, index, now, PARTY, FLOOR) is not bool(suspect.any())


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_stamps_are_put_and_those_of_two_parties_at_one_place_are_told(dtype):
    rng = np.random.default_rng(0)
    last, now = stamps(rng, PLACES, dtype), stamps(rng, LANES, dtype, nobody=0)
    index = rng.integers(0, PLACES, LANES)
    expected = last.copy()
    expected[index] = now
    assert not _access.put(last, index, now, PARTY)
    np.testing.assert_array_equal(last, expected)
    assert _access.put(last, np.arange(PLACES), now[:PLACES], PARTY)
    np.testing.assert_array_equal(last, now[:PLACES])


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("nobody", [1.0, 0.2])
def test_the_stamp_of_another_party_is_kept_beside_the_last(dtype, nobody):
    rng = np.random.default_rng(0)
    last, now = stamps(rng, PLACES, dtype, nobody=nobody), stamps(rng, LANES, dtype, nobody=0)
    index, first, other = rng.integers(0, PLACES, LANES), last.copy(), np.zeros(PLACES, dtype)
    earlier = last[index]
    apart = ((earlier ^ now) & PARTY != 0) & (earlier != 0)
    expected = other.copy()
    expected[index[apart]] = earlier[apart]
    last[index] = now
    apart = (last[index] ^ now) & PARTY != 0
    expected[index[apart]] = now[apart]
    # Without a place for it nothing is lost: the same call goes on where it stopped.
    assert not _access.shift(first, None, index, now, PARTY)
    assert _access.shift(first, other, index, now, PARTY)
    np.testing.assert_array_equal(first, last)
    np.testing.assert_array_equal(other, expected)


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16])
def test_a_unit_is_written_once_all_its_bytes_are(width):
    written, index = np.zeros(16 * width, np.uint8), np.arange(3, 9)
    assert not _access.written(written, index, width)
    _access.mark(written, index, width)
    assert _access.written(written, index, width)
    assert written.sum() == 255 * index.size * width
    written[5 * width + width // 2] = 0
    assert not _access.written(written, index, width)


@pytest.mark.parametrize("at", [-1, PLACES])
def test_an_index_outside_of_its_array_is_refused(at):
    last, index, now = np.zeros(PLACES, np.int64), np.array([at]), np.array([1])
    for call in (
        lambda: _access.ordered(last, index, now, PARTY, FLOOR),
        lambda: _access.put(last, index, now, PARTY),
        lambda: _access.shift(last, last.copy(), index, now, PARTY),
        lambda: _access.written(last, index, 8),
        lambda: _access.mark(last, index, 8),
    ):
        with pytest.raises(IndexError):
            call()
    assert not last.any()
