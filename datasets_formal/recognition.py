"""Languages to recognise: does the string belong (1) or not (0)?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .streams import RowStreams
from .task import Task, Tokens

_FLARE = "Butoi et al., ICLR 2025, arXiv 2411.07107"


class First(Task):
    """Tell whether the string begins with 1.

    100 does: 1.
    """

    name = "first"
    level = "regular"
    kind = "class"
    alphabet = "01"
    output_alphabet = "01"
    chance = 1 / 2
    source = _FLARE

    def draw(self, streams: RowStreams, length: int) -> tuple[Tokens, Tokens]:
        """Draw fair bits."""
        inputs = streams.bits(length).astype(np.int16)
        return inputs, inputs[:, :1]

    def _solve(self, symbols: str) -> str:
        return "1" if symbols.startswith("1") else "0"


class Majority(Task):
    """Tell whether the string has more 1s than 0s.

    110 does: 1. A tie is no majority: 10 has the answer 0.
    """

    name = "majority"
    level = "deterministic context-free"
    kind = "class"
    alphabet = "01"
    output_alphabet = "01"
    chance = 1 / 2
    source = _FLARE

    def draw(self, streams: RowStreams, length: int) -> tuple[Tokens, Tokens]:
        """Draw fair bits."""
        inputs = streams.bits(length).astype(np.int16)
        return inputs, (2 * inputs.sum(axis=1, keepdims=True) > length).astype(np.int16)

    def _solve(self, symbols: str) -> str:
        return "1" if symbols.count("1") > symbols.count("0") else "0"


class BoundedDyck(Task):
    """Tell whether round and square brackets match and nest at most three deep.

    ([]) does: 1; ([)] and (((()))) do not: 0. An odd length is filled up with `#`.
    """

    name = "dyck_2_3"
    level = "regular"
    kind = "class"
    alphabet = "()[]#"
    output_alphabet = "01"
    chance = 1 / 2
    source = _FLARE
    depth = 3

    def draw(self, streams: RowStreams, length: int) -> tuple[Tokens, Tokens]:
        """Draw members, and spoil half of them.

        A member is a fair walk between depth 0 and 3, forced where a step would leave that range or could not
        come back in time; the kinds of brackets are drawn evenly. Of every two rows, on average, one stays; of
        the others half get another symbol somewhere, and half have two symbols exchanged, which may leave
        them members: the answer is read off the outcome.
        """
        even = length - length % 2
        inputs = np.full((streams.rows, length), self.alphabet.index("#"), dtype=np.int16)
        if even:
            members = self._members(streams, even)
            fate, first, second, other = streams.integers(4, 1), *self._places(streams, even), streams.integers(3, 1)
            here, there = np.take_along_axis(members, first, 1), np.take_along_axis(members, second, 1)
            replaced = (here + 1 + other) % 4
            np.put_along_axis(members, first, np.choose(fate, [here, here, replaced, there]), 1)
            kept = np.take_along_axis(members, second, 1)
            np.put_along_axis(members, second, np.where(fate == 3, here, kept), 1)
            inputs[:, :even] = members
        return inputs, self._belongs(inputs[:, :even])[:, None].astype(np.int16)

    def _places(self, streams: RowStreams, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return two different places of every row, (rows, 1) each."""
        first, gap = streams.integers(length, 1), streams.integers(length - 1, 1)
        return first, (first + 1 + gap) % length

    def _members(self, streams: RowStreams, length: int) -> Tokens:
        steps, kinds = streams.bits(length), streams.bits(length)
        tokens = np.empty((streams.rows, length), dtype=np.int16)
        rows = np.arange(streams.rows)
        open_kinds = np.zeros((streams.rows, self.depth + 1), dtype=np.int16)
        height = np.zeros(streams.rows, dtype=np.int64)
        for place in range(length):
            highest = min(self.depth, length - place)
            opens = ((steps[:, place] == 1) | (height == 0)) & (height < highest)
            open_kinds[rows[opens], height[opens]] = kinds[opens, place]
            height += np.where(opens, 1, -1)
            innermost = open_kinds[rows, height - opens]
            tokens[:, place] = 2 * innermost + np.where(opens, 0, 1)
        return tokens

    def _belongs(self, tokens: Tokens) -> NDArray[np.bool_]:
        rows = np.arange(len(tokens))
        alive = np.ones(len(tokens), dtype=np.bool_)
        open_kinds = np.zeros((len(tokens), self.depth), dtype=np.int16)
        height = np.zeros(len(tokens), dtype=np.int64)
        for token in tokens.T:
            opens, kind = token % 2 == 0, token // 2
            alive &= np.where(opens, height < self.depth, (height > 0) & (open_kinds[rows, height - 1] == kind))
            deeper = alive & opens
            open_kinds[rows[deeper], height[deeper]] = kind[deeper]
            height += np.where(alive, np.where(opens, 1, -1), 0)
        return alive & (height == 0)

    def _solve(self, symbols: str) -> str:
        expected: list[str] = []
        for symbol in symbols.rstrip("#"):
            if symbol in "([":
                expected.append({"(": ")", "[": "]"}[symbol])
                if len(expected) > self.depth:
                    return "0"
            elif not expected or expected.pop() != symbol:
                return "0"
        return "0" if expected else "1"
