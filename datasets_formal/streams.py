"""Random numbers for many rows at once, each row with a stream of its own.

A row must come out the same whichever rows are generated beside it, on whichever shard, process or numpy
release. So every row owns one 64-bit state derived from its key, and word j of a row is a fixed mixing
function of (state, j): the SplitMix64 sequence of Steele, Lea and Flood (OOPSLA 2014), written here in plain
uint64 arithmetic. Numpy's own distributions are not used, since their output may change between releases.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MASK = 0xFFFFFFFFFFFFFFFF


class RowStreams:
    """Independent random streams, one a row, advanced together.

    Args:
        states: (rows,) uint64, the starting point of every row's stream.
    """

    def __init__(self, states: NDArray[np.uint64]) -> None:
        self._states = states

    @classmethod
    def keyed(cls, key: str, rows: NDArray[np.int64]) -> RowStreams:
        """Return the streams that belong to a key and the given row numbers, (rows,) int64."""
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        base = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
        return cls(_mix(base + _STEP * (rows.astype(np.uint64) + np.uint64(1))))

    @classmethod
    def seeded(cls, generator: np.random.Generator, rows: int) -> RowStreams:
        """Return `rows` streams whose states are drawn from a numpy generator."""
        return cls(generator.integers(0, 2**64, size=rows, dtype=np.uint64))

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self._states)

    def words(self, count: int, rows: NDArray[np.intp] | slice = slice(None)) -> NDArray[np.uint64]:
        """Return the next `count` words of the given rows, (rows, count) uint64; other rows stay put."""
        words = _mix(self._states[rows][:, None] + _STEP * np.arange(1, count + 1, dtype=np.uint64))
        self._states[rows] += _stride(count)
        return words

    def reserve(self, count: int) -> NDArray[np.uint64]:
        """Skip `count` words and return the first one's counters, (rows,) uint64, for `word` and `advance`."""
        counters = self._states + _STEP
        self._states += _stride(count)
        return counters

    def bits(self, count: int, rows: NDArray[np.intp] | slice = slice(None)) -> NDArray[np.uint8]:
        """Return fair bits, (rows, count) uint8."""
        words = self.words(-(-count // 64), rows).astype("<u8", copy=False)
        return np.unpackbits(words.view(np.uint8), axis=1, count=count, bitorder="little")

    def integers(self, high: int | NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """Return integers uniform on 0..high-1, (rows, count) int64; `high` may be a (rows, 1) array.

        `high` must be below 2**31: the bias of scaling 32 random bits is then at most high / 2**32 of a
        value's probability.
        """
        return scale(self._halves(count), high)

    def symbols(self, high: int, count: int) -> NDArray[np.int16]:
        """Return what `integers` would, (rows, count) int16, for `high` up to 2**15; several times as fast."""
        halves, number = self._halves(count), np.uint32(high)
        # The product with 32 random bits, shifted right by 32, without leaving 32 bits.
        carried = ((halves & np.uint32(0xFFFF)) * number) >> np.uint32(16)
        return (((halves >> np.uint32(16)) * number + carried) >> np.uint32(16)).astype(np.int16)

    def _halves(self, count: int) -> NDArray[np.uint32]:
        """Return the next words cut in two, (rows, count)."""
        return self.words(-(-count // 2)).astype("<u8", copy=False).view("<u4")[:, :count]


def word(counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the words that counters stand for, elementwise, uint64."""
    return _mix(counters)


def advance(counters: NDArray[np.uint64], count: int | NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return the counters of the words `count` places later, elementwise, uint64."""
    return counters + (_stride(count) if isinstance(count, int) else _STEP * count.view(np.uint64))


def scale(halves: NDArray[np.uint32] | NDArray[np.uint64], high: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """Map 32-bit random values to integers uniform on 0..high-1, elementwise, int64."""
    wide = halves.astype(np.uint64, copy=False) * np.asarray(high, np.uint64)
    return (wide >> np.uint64(32)).view(np.int64)


def _stride(count: int) -> np.uint64:
    return np.uint64(int(_STEP) * count & _MASK)


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    words = words ^ (words >> np.uint64(30))
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    words *= np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words
