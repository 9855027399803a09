"""ListOps: nested operations on lists of digits, of an exact length."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .streams import RowStreams, advance, scale, word
from .task import Task, Tokens

_OPERATOR, _CLOSE = 10, 14
_LARGEST_ARITY = 5
# The numbers of arguments that a list of so many symbols may have. An argument takes 1 symbol or at least 4,
# so what the brackets and one symbol an argument leave over is nothing or at least 3. 10 stands for all above.
_ARITIES = {4: [2], 5: [3], 6: [4], 7: [2, 5], 8: [2, 3], 9: [2, 3, 4], 10: [2, 3, 4, 5]}
_ARITY_COUNT = np.array([len(_ARITIES.get(size, [])) for size in range(11)])
_ARITY = np.array([(_ARITIES.get(size, []) + [0] * 4)[:4] for size in range(11)])

_LOWER = np.uint64(0xFFFFFFFF)

_Level = tuple[NDArray[np.intp], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


class ListOps(Task):
    """Evaluate nested maxima, minima, medians and sums of lists of digits.

    M29m47]0] is [MAX 2 9 [MIN 4 7] 0]: 9. `M` is the maximum, `m` the minimum, `d` the median (rounded down),
    `s` the sum modulo 10. Lists have 2 to 5 arguments as in the paper; lengths are exact, and the depth grows
    with them instead of being capped. No list has 2 or 3 symbols: these lengths are shortened to one digit.
    """

    name = "listops"
    level = "deterministic context-free"
    kind = "class"
    alphabet = "0123456789Mmds]"
    output_alphabet = "0123456789"
    chance = 1 / 10
    source = "Nangia and Bowman, NAACL 2018, arXiv 1804.06028"

    def input_length(self, length: int) -> int:
        """Return the nearest length that a list can have."""
        return 1 if length < 4 else length

    def draw(self, streams: RowStreams, length: int) -> tuple[Tokens, Tokens]:
        """Draw lists whose operator and number of arguments are even among those that fit the length.

        The symbols that remain after one for each argument go to two arguments, divided evenly among the
        divisions that fit. All open lists of all rows are expanded together, then evaluated from the inside.
        """
        length = self.input_length(length)
        tokens = np.full((streams.rows, length), _CLOSE, dtype=np.int16)
        flat = tokens.reshape(-1)
        answers = np.full((streams.rows, 1), -1)
        levels: list[_Level] = []

        counter, first = streams.reserve(3 * length), np.arange(streams.rows) * length
        size = np.full(streams.rows, length)
        parent, slot = np.arange(streams.rows), np.zeros(streams.rows, dtype=np.int64)
        arguments = answers
        while first.size:
            leaf, inner = np.flatnonzero(size == 1), np.flatnonzero(size > 1)
            digit = scale(word(counter[leaf]) & _LOWER, 10)
            flat[first[leaf]] = digit
            arguments[parent[leaf], slot[leaf]] = digit

            counter, first, size = counter[inner], first[inner], size[inner]
            parent, slot = parent[inner], slot[inner]
            drawn = word(counter)
            operator = scale(drawn >> np.uint64(32), 4)
            flat[first] = _OPERATOR + operator
            arguments = np.full((len(inner), _LARGEST_ARITY), -1)
            levels.append((parent, slot, operator, arguments))

            sizes, present = _divide(counter, drawn, size)
            skipped = (1 + np.cumsum(sizes, axis=1) - sizes)[present]
            parent, slot = np.nonzero(present)
            counter, first, size = advance(counter[parent], 3 * skipped), first[parent] + skipped, sizes[present]

        for number in reversed(range(len(levels))):
            parent, slot, operator, arguments = levels[number]
            outer = levels[number - 1][3] if number else answers
            outer[parent, slot] = _apply(operator, arguments)
        return tokens, answers.astype(np.int16)

    def _solve(self, symbols: str) -> str:
        lists: list[list[str]] = [[]]
        for symbol in symbols:
            if symbol in _OPERATIONS:
                lists.append([symbol])
            elif symbol.isdigit():
                lists[-1].append(symbol)
            elif len(lists) > 1 and len(lists[-1]) > 1:
                operator, *digits = lists.pop()
                lists[-1].append(str(_OPERATIONS[operator]([int(digit) for digit in digits])))
            else:
                raise ValueError(f"{symbols!r} closes a list that is empty or never opened")
        if len(lists) != 1 or len(lists[0]) != 1:
            raise ValueError(f"{symbols!r} is not one digit or list")
        return lists[0][0]


_OPERATIONS: dict[str, Callable[[list[int]], int]] = {
    "M": max,
    "m": min,
    "d": lambda digits: int(statistics.median(digits)),
    "s": lambda digits: sum(digits) % 10,
}


def _divide(
    counter: NDArray[np.uint64], drawn: NDArray[np.uint64], size: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the sizes of every list's arguments, (lists, 5), 0 where there is none, and which there are."""
    lists = np.arange(len(size))
    known = np.minimum(size, 10)
    arity = _ARITY[known, scale(drawn & _LOWER, _ARITY_COUNT[known])]
    left_over = size - 2 - arity
    places = word(advance(counter, 1))
    one = scale(places >> np.uint64(32), arity)
    other = (one + 1 + scale(places & _LOWER, arity - 1)) % arity
    choice = scale(word(advance(counter, 2)) & _LOWER, 2 + np.maximum(left_over - 5, 0))
    to_one = np.choose(np.minimum(choice, 2), [np.zeros_like(choice), left_over, choice + 1])
    present = np.arange(_LARGEST_ARITY) < arity[:, None]
    sizes = present.astype(np.int64)
    sizes[lists, one] += to_one
    sizes[lists, other] += left_over - to_one
    return sizes, present


def _apply(operator: NDArray[np.int64], arguments: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the values of lists; arguments (lists, 5) are -1 where there is none."""
    present = arguments >= 0
    count = present.sum(axis=1)
    rising = np.sort(np.where(present, arguments, 10), axis=1)
    lists = np.arange(len(arguments))
    median = (rising[lists, (count - 1) // 2] + rising[lists, count // 2]) // 2
    total = np.where(present, arguments, 0).sum(axis=1) % 10
    return np.choose(operator, [rising[lists, count - 1], rising[:, 0], median, total])
