"""Which rows a split has, and how they are cut into shards and blocks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .encoding import DrawnGroup, encode
from .streams import RowStreams
from .task import Task

# Part of every row's key: raise it whenever a change alters any row of any task.
GENERATOR_VERSION = "1.0.0"

_ROWS_PER_SHARD = 16_384
_SHARDS = 16
_TOKENS_PER_BLOCK = 1 << 21

Shard = tuple[int, int]


@dataclass(frozen=True)
class Split:
    """A finite list of rows, each a pure function of its number and the fields below (`rows` apart).

    Attributes:
        task: the task.
        name: "train", "validation" or "test"; part of the rows' key.
        seed: part of the rows' key.
        rows: number of rows.
        lengths: the shortest and the longest requested length, both included.
        rows_per_length: so many rows in succession share a length.
        ordered: True: the lengths come in order. False: each is drawn evenly from the range.
    """

    task: Task
    name: str
    seed: int
    rows: int
    lengths: tuple[int, int]
    rows_per_length: int
    ordered: bool = False

    @property
    def _key(self) -> str:
        return f"{self.task.name}/{GENERATOR_VERSION}/{self.seed}/{self.name}"

    @property
    def longest_row(self) -> int:
        """Return the most tokens and outputs that a row can have."""
        return self.task.input_length(self.lengths[1]) + self.task.output_length(self.lengths[1])

    def lengths_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the requested lengths of the given rows, (rows,) int64."""
        group = numbers // self.rows_per_length
        shortest, longest = self.lengths
        if self.ordered:
            return shortest + group
        drawn = RowStreams.keyed(f"{self._key}/lengths", group).integers(longest - shortest + 1, 1)
        return shortest + drawn[:, 0]

    def shards(self) -> list[Shard]:
        """Return every shard's first row number and the one after its last; rows do not depend on this cut.

        Rows that share a length stay together where there are enough of them for all shards, and large splits
        have a multiple of 16 shards, so that ranks and workers get as many each.
        """
        count = min(self.rows, _SHARDS * max(1, -(-self.rows // (_SHARDS * _ROWS_PER_SHARD))))
        unit = self.rows_per_length if self.rows >= count * self.rows_per_length else 1
        cuts = [self.rows // unit * cut // count * unit for cut in range(count)] + [self.rows]
        return list(itertools.pairwise(cuts))

    def tables(self, shard: Shard) -> Iterator[pa.Table]:
        """Yield the rows of a shard in order, in tables of bounded size."""
        step = max(1, _TOKENS_PER_BLOCK // self.longest_row)
        for start in range(*shard, step):
            numbers = np.arange(start, min(start + step, shard[1]))
            lengths = self.lengths_of(numbers)
            yield encode(self.task, lengths, self._draw(numbers, lengths))

    def _draw(self, numbers: NDArray[np.int64], lengths: NDArray[np.int64]) -> Iterator[DrawnGroup]:
        for length in np.unique(lengths).tolist():
            rows = np.flatnonzero(lengths == length)
            streams = RowStreams.keyed(f"{self._key}/{length}", numbers[rows])
            yield rows, *self.task.draw(streams, length)
