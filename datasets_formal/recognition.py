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
    """Tell whether brackets of several kinds match and do not nest too deep.

    dyck_k_d has k kinds of brackets, 2 to 4, which may nest d deep. In dyck_2_3, ([]) has the answer 1; ([)] and
    (((()))) have the answer 0. An odd length is filled up with `#`.
    """

    level = "regular"
    kind = "class"
    output_alphabet = "01"
    chance = 1 / 2
    source = _FLARE

    def __init__(self, kinds: int, depth: int) -> None:
        self.name = f"dyck_{kinds}_{depth}"
        self.alphabet = "()[]{}<>"[: 2 * kinds] + "#"
        self._kinds, self._depth = kinds, depth
        self._step, self._written, self._read = _dyck_tables(kinds, depth)

    @property
    def summary(self) -> str:
        """The kinds of brackets and the depth allowed."""
        return f"Tell whether {self._kinds} kinds of brackets match and nest at most {self._depth} deep."

    def draw(self, streams: RowStreams, length: int) -> tuple[Tokens, Tokens]:
        """Draw members, and spoil half of them.

        A member is a fair walk between depth 0 and the greatest, forced where a step would leave that range or
        could not come back in time; the kinds of brackets are drawn evenly. Of every two rows, on average, one
        stays; of the others half get another symbol somewhere, and half have two symbols exchanged, which may
        leave them members: the answer is read off the outcome.
        """
        even = length - length % 2
        inputs = np.full((streams.rows, length), self.alphabet.index("#"), dtype=np.int16)
        if even:
            inputs[:, :even] = self._spoil(streams, self._members(streams, even))
        return inputs, self._belongs(inputs[:, :even])[:, None].astype(np.int16)

    def _members(self, streams: RowStreams, length: int) -> Tokens:
        """Return members of the language, (rows, length)."""
        choices = streams.symbols(2 * self._kinds, length)
        stacks = np.empty((streams.rows, length), dtype=np.int64)
        highest = np.minimum(self._depth, length - np.arange(length))
        stack = np.full(streams.rows, _EMPTY_STACK)
        for place in range(length):
            stacks[:, place] = stack
            stack = self._step[highest[place], stack, choices[:, place]]
        return self._written[highest, stacks, choices]

    def _spoil(self, streams: RowStreams, members: Tokens) -> Tokens:
        """Return the rows, a quarter with one symbol replaced and a quarter with two exchanged."""
        length, symbols = members.shape[1], 2 * self._kinds
        fate, first, gap = streams.integers(4, 1), streams.integers(length, 1), streams.integers(length - 1, 1)
        second = (first + 1 + gap) % length
        here, there = np.take_along_axis(members, first, 1), np.take_along_axis(members, second, 1)
        replaced = (here + 1 + streams.integers(symbols - 1, 1)) % symbols
        spoilt = members.copy()
        np.put_along_axis(spoilt, first, np.choose(fate, [here, here, replaced, there]), 1)
        np.put_along_axis(spoilt, second, np.where(fate == 3, here, there), 1)
        return spoilt

    def _belongs(self, tokens: Tokens) -> NDArray[np.bool_]:
        """Return which rows of tokens are members, (rows,)."""
        stack = np.full(len(tokens), _EMPTY_STACK)
        for token in tokens.T:
            stack = self._read[stack, token]
        return stack == _EMPTY_STACK

    def _solve(self, symbols: str) -> str:
        opening, closing = self.alphabet[:-1:2], self.alphabet[1::2]
        expected: list[str] = []
        for symbol in symbols.rstrip("#"):
            if symbol in opening:
                expected.append(closing[opening.index(symbol)])
                if len(expected) > self._depth:
                    return "0"
            elif not expected or expected.pop() != symbol:
                return "0"
        return "0" if expected else "1"


_EMPTY_STACK = 1
_BROKEN = 0


def _dyck_tables(kinds: int, depth: int) -> tuple[NDArray[np.int64], NDArray[np.int16], NDArray[np.int64]]:
    """Return the moves of the automaton behind `BoundedDyck`.

    A stack of open brackets is a number: a leading 1, then to the base `kinds` a digit for each bracket's kind,
    outermost first. 0 is the state after a mistake.

    Returns:
        the next stack and the token written, by the greatest depth allowed, the stack and a random choice below
        2 * kinds (odd asks to open, half of it is the kind); and the next stack by the stack and the token read.
    """
    shape = (depth + 1, 2 * kinds**depth, 2 * kinds)
    step, written = np.zeros(shape, np.int64), np.zeros(shape, np.int16)
    read = np.full(shape[1:], _BROKEN, np.int64)
    for height in range(depth + 1):
        for stack in range(kinds**height, 2 * kinds**height):
            if height < depth:
                read[stack, ::2] = kinds * stack + np.arange(kinds)
            if height:
                read[stack, 2 * (stack % kinds) + 1] = stack // kinds
            for highest, choice in np.ndindex(depth + 1, 2 * kinds):
                opens = height < highest and (choice % 2 == 1 or height == 0)
                token = choice // 2 * 2 if opens else 2 * (stack % kinds) + 1
                written[highest, stack, choice] = token
                step[highest, stack, choice] = read[stack, token]
    return step, written, read
