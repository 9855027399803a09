"""Languages to recognise: does the string belong (1) or not (0)?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .streams import RowStreams
from .task import Task, Tokens

_FLARE = "Butoi et al., ICLR 2025, arXiv 2411.07107"

_DEPTH = 3
_EMPTY_STACK = 1
_BROKEN = 0


def _dyck_tables() -> tuple[NDArray[np.int64], NDArray[np.int16], NDArray[np.int64]]:
    """Return the moves of the automaton behind `BoundedDyck`.

    A stack of open brackets is a number: a leading binary 1, then a digit for each bracket's kind, outermost
    first. 0 is the state after a mistake.

    Returns:
        the next stack and the token written, by the greatest depth allowed, the stack and a random choice in
        0..3 (its lowest digit asks to open, the other one is the kind); and the next stack by the stack and
        the token read.
    """
    stacks = 2 ** (_DEPTH + 1)
    step, written = np.zeros((_DEPTH + 1, stacks, 4), np.int64), np.zeros((_DEPTH + 1, stacks, 4), np.int16)
    read = np.full((stacks, 4), _BROKEN, np.int64)
    for stack in range(_EMPTY_STACK, stacks):
        height, innermost = stack.bit_length() - 1, stack & 1
        for kind in (0, 1):
            if height < _DEPTH:
                read[stack, 2 * kind] = 2 * stack + kind
        if height:
            read[stack, 2 * innermost + 1] = stack >> 1
        for highest in range(_DEPTH + 1):
            for choice in range(4):
                opens = height < highest and (choice & 1 or height == 0)
                token = 2 * (choice >> 1) if opens else 2 * innermost + 1
                written[highest, stack, choice] = token
                step[highest, stack, choice] = read[stack, token]
    return step, written, read


_STEP, _STEP_TOKEN, _READ = _dyck_tables()


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
        """Return members of the language, (rows, length)."""
        choices = streams.symbols(4, length)
        stacks = np.empty((streams.rows, length), dtype=np.int64)
        highest = np.minimum(_DEPTH, length - np.arange(length))
        stack = np.full(streams.rows, _EMPTY_STACK)
        for place in range(length):
            stacks[:, place] = stack
            stack = _STEP[highest[place], stack, choices[:, place]]
        return _STEP_TOKEN[highest, stacks, choices]

    def _belongs(self, tokens: Tokens) -> NDArray[np.bool_]:
        """Return which rows of tokens are members, (rows,)."""
        stack = np.full(len(tokens), _EMPTY_STACK)
        for token in tokens.T:
            stack = _READ[stack, token]
        return stack == _EMPTY_STACK

    def _solve(self, symbols: str) -> str:
        expected: list[str] = []
        for symbol in symbols.rstrip("#"):
            if symbol in "([":
                expected.append({"(": ")", "[": "]"}[symbol])
                if len(expected) > _DEPTH:
                    return "0"
            elif not expected or expected.pop() != symbol:
                return "0"
        return "0" if expected else "1"
