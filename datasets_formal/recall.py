"""Associative recall: a task that needs memory for pairs rather than a state of fixed size."""

from __future__ import annotations

import numpy as np

from .streams import RowStreams
from .task import EMPTY_SYMBOL, IGNORED, Task, Tokens
from .word_problems import SYMBOLS

_VALUES = 10
_KEYS = 96


class AssociativeRecall(Task):
    """Recall the values of keys (multi-query associative recall).

    a3b7ba: the pairs a3 and b7, then the queries b and a; the tags are ____73. A row of length n begins with
    n // 4 pairs, at least 1 and at most 96, of different keys and evenly drawn digits; what follows are
    queries, drawn evenly among the keys. Below length 3 there is no pair and a query has the answer 0.
    """

    name = "associative_recall"
    level = "regular"
    kind = "tags"
    alphabet = SYMBOLS[: _VALUES + _KEYS]
    output_alphabet = SYMBOLS[:_VALUES]
    chance = 1 / 10
    source = "Arora et al., ICLR 2024, arXiv 2312.04927"

    def output_length(self, length: int) -> int:
        """Return one output for every token."""
        return length

    def draw(self, streams: RowStreams, length: int) -> tuple[Tokens, Tokens]:
        """Draw the keys as the head of a random order of all keys, then values and queries."""
        order = np.argsort(streams.words(_KEYS), axis=1, kind="stable")
        pairs = min(max(length // 4, 1), _KEYS) if length >= 3 else 0
        values = streams.integers(_VALUES, max(pairs, 1))
        values[:, pairs:] = 0
        queries = streams.integers(max(pairs, 1), length - 2 * pairs)
        keys = order[:, : max(pairs, 1)]

        inputs = np.empty((streams.rows, length), dtype=np.int16)
        inputs[:, : 2 * pairs : 2] = _VALUES + keys[:, :pairs]
        inputs[:, 1 : 2 * pairs : 2] = values[:, :pairs]
        inputs[:, 2 * pairs :] = _VALUES + np.take_along_axis(keys, queries, axis=1)
        outputs = np.full((streams.rows, length), IGNORED, dtype=np.int16)
        outputs[:, 2 * pairs :] = np.take_along_axis(values, queries, axis=1)
        return inputs, outputs

    def _solve(self, symbols: str) -> str:
        pairs: dict[str, str] = {}
        rest = symbols
        while len(rest) > 1 and rest[1] in self.output_alphabet:
            pairs[rest[0]] = rest[1]
            rest = rest[2:]
        return EMPTY_SYMBOL * (2 * len(pairs)) + "".join(pairs.get(key, "0") for key in rest)
