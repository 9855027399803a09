"""Tasks that need more than one stack: a tape bounded by the input is enough."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .streams import RowStreams
from .task import Task, Tokens


class MissingDuplicateString(Task):
    """Find the bit that is missing from one of two copies of a string.

    0110?1 is 011 twice with the fifth symbol hidden: 1. An odd length is filled up with `#`; length 1 is
    always the token 1 with the answer 1.
    """

    name = "missing_duplicate_string"
    level = "context-sensitive"
    kind = "class"
    alphabet = "01?#"
    output_alphabet = "01"
    chance = 1 / 2

    def draw(self, streams: RowStreams, length: int) -> tuple[Tokens, Tokens]:
        """Draw a string of half the length and the place to hide."""
        if length == 1:
            return np.ones((streams.rows, 1), dtype=np.int16), np.ones((streams.rows, 1), dtype=np.int16)
        half = length // 2
        inputs = np.full((streams.rows, length), self.alphabet.index("#"), dtype=np.int16)
        inputs[:, :half] = streams.bits(half)
        inputs[:, half : 2 * half] = inputs[:, :half]
        hidden = streams.integers(2 * half, 1)
        outputs = np.take_along_axis(inputs, hidden, axis=1)
        np.put_along_axis(inputs, hidden, np.int16(self.alphabet.index("?")), axis=1)
        return inputs, outputs

    def _solve(self, symbols: str) -> str:
        if symbols == "1":
            return "1"
        copies = symbols.removesuffix("#")
        if copies.count("?") == 1 and "#" not in copies:
            for answer in self.output_alphabet:
                whole = copies.replace("?", answer)
                if whole == whole[: len(whole) // 2] * 2:
                    return answer
        raise ValueError(f"{symbols!r} is not a string of 0 and 1 twice with one symbol hidden")


class DuplicateString(Task):
    """Write the string twice.

    011 becomes 011011.
    """

    name = "duplicate_string"
    level = "context-sensitive"
    kind = "sequence"
    alphabet = "01"
    output_alphabet = "01"
    chance = 1 / 2

    def output_length(self, length: int) -> int:
        """Return twice the length of the string."""
        return 2 * length

    def draw(self, streams: RowStreams, length: int) -> tuple[Tokens, Tokens]:
        """Draw fair bits."""
        inputs = streams.bits(length).astype(np.int16)
        return inputs, np.tile(inputs, 2)

    def _solve(self, symbols: str) -> str:
        return symbols * 2


class BinaryAddition(Task):
    """Add two binary numbers, lowest digit first.

    10+01 (1 + 2) is 11.00: `.` ends the sum and zeros fill the row up to one more than the input. Below
    length 3 there is a single number, repeated as the output; the largest one never occurs.
    """

    name = "binary_addition"
    level = "context-sensitive"
    kind = "sequence"
    alphabet = "01+"
    output_alphabet = "01."
    terminator = 2
    chance = 1 / 2

    def output_length(self, length: int) -> int:
        """Return room for the sum and the terminator."""
        return length + 1

    def draw(self, streams: RowStreams, length: int) -> tuple[Tokens, Tokens]:
        """Draw two positive numbers; they are added as Python's integers."""
        inputs, split = _draw_operands(streams, length)
        sums = [left + right for left, right in _operands(inputs, split)]
        return inputs, _terminate(_digits(sums, length + 1))

    def _solve(self, symbols: str) -> str:
        total = sum(_written_numbers(symbols, "+"))
        return (f"{total:b}"[::-1] + ".").ljust(len(symbols) + 1, "0")


class BinaryMultiplication(Task):
    """Multiply two binary numbers, lowest digit first.

    01*11 (2 * 3) is 011.0: `.` ends the product and zeros fill the row up to the length of the input. Length
    1 has the product of no digits, length 2 the product 0; their largest number never occurs.
    """

    name = "binary_multiplication"
    level = "context-sensitive"
    kind = "sequence"
    alphabet = "01*"
    output_alphabet = "01."
    terminator = 2
    chance = 1 / 2

    def output_length(self, length: int) -> int:
        """Return room for the product and the terminator."""
        return length

    def draw(self, streams: RowStreams, length: int) -> tuple[Tokens, Tokens]:
        """Draw two positive numbers; they are multiplied as Python's integers."""
        inputs, split = _draw_operands(streams, length)
        if length <= 2:
            outputs = np.zeros((streams.rows, length), dtype=np.int16)
            outputs[:, -1] = self.terminator
            return inputs, outputs
        products = [left * right for left, right in _operands(inputs, split)]
        return inputs, _terminate(_digits(products, length))

    def _solve(self, symbols: str) -> str:
        numbers = _written_numbers(symbols, "*")
        if len(numbers) == 1:
            return "0" * (len(symbols) - 1) + "."
        return (f"{math.prod(numbers):b}"[::-1] + ".").ljust(len(symbols), "0")


class ComputeSqrt(Task):
    """Take the integer square root of a positive binary number, highest digit first.

    1010 (10) has the root 11 (3).
    """

    name = "compute_sqrt"
    level = "context-sensitive"
    kind = "sequence"
    alphabet = "01"
    output_alphabet = "01"
    chance = 1 / 2

    def output_length(self, length: int) -> int:
        """Return half the number of digits, rounded up."""
        return -(-length // 2)

    def draw(self, streams: RowStreams, length: int) -> tuple[Tokens, Tokens]:
        """Draw a number from 1 to 2**length - 1; its root is taken by Python's integers."""
        digits = streams.bits(length)
        _redraw_zeros(streams, digits, np.ones_like(digits, dtype=np.bool_))
        roots = [math.isqrt(number) for number in _integers(digits)]
        return digits[:, ::-1].astype(np.int16), _digits(roots, self.output_length(length))[:, ::-1]

    def _solve(self, symbols: str) -> str:
        number, root = int(symbols, 2), 0
        for place in reversed(range(self.output_length(len(symbols)))):
            if (root + (1 << place)) ** 2 <= number:
                root += 1 << place
        return f"{root:b}".zfill(self.output_length(len(symbols)))


class OddsFirst(Task):
    """Write the symbols at odd places first, counting from 0, then those at even places.

    0011 becomes 0101.
    """

    name = "odds_first"
    level = "context-sensitive"
    kind = "sequence"
    alphabet = "01"
    output_alphabet = "01"
    chance = 1 / 2

    def output_length(self, length: int) -> int:
        """Return the length of the string."""
        return length

    def draw(self, streams: RowStreams, length: int) -> tuple[Tokens, Tokens]:
        """Draw fair bits."""
        inputs = streams.bits(length).astype(np.int16)
        return inputs, np.concatenate([inputs[:, 1::2], inputs[:, ::2]], axis=1)

    def _solve(self, symbols: str) -> str:
        ordered = sorted(range(len(symbols)), key=lambda place: place % 2 == 0)
        return "".join(symbols[place] for place in ordered)


class BucketSort(Task):
    """Sort a string of five symbols.

    3041 becomes 0134.
    """

    name = "bucket_sort"
    level = "context-sensitive"
    kind = "sequence"
    alphabet = "01234"
    output_alphabet = "01234"
    chance = 1 / 5

    def output_length(self, length: int) -> int:
        """Return the length of the string."""
        return length

    def draw(self, streams: RowStreams, length: int) -> tuple[Tokens, Tokens]:
        """Draw symbols evenly."""
        inputs = streams.symbols(5, length)
        return inputs, np.sort(inputs, axis=1)

    def _solve(self, symbols: str) -> str:
        return "".join(symbol * symbols.count(symbol) for symbol in self.alphabet)


def _draw_operands(streams: RowStreams, length: int) -> tuple[Tokens, NDArray[np.int64]]:
    """Draw two numbers of random sizes with token 2 between them, neither of them 0.

    Below length 3 there is one number, drawn from 0 to 2**length - 2.

    Returns:
        inputs (rows, length) int16, and the place of token 2 (rows, 1): `length` where there is none.
    """
    places = np.arange(length)
    if length <= 2:
        number = streams.integers(2**length - 1, 1)
        return ((number >> places) & 1).astype(np.int16), np.full((streams.rows, 1), length)
    split = 1 + streams.integers(length - 2, 1)
    digits = streams.bits(length)
    for part in (places < split, places > split):
        _redraw_zeros(streams, digits, part)
    return np.where(places == split, 2, digits).astype(np.int16), split


def _written_numbers(symbols: str, sign: str) -> list[int]:
    """Return the two numbers around the sign, or the one of a row too short for a sign; lowest digit first."""
    numbers = symbols.split(sign)
    if "" in numbers or len(numbers) != (1 if len(symbols) <= 2 else 2):
        raise ValueError(f"{symbols!r} is not two binary numbers with one {sign} between them")
    return [int(number[::-1], 2) for number in numbers]


def _redraw_zeros(streams: RowStreams, digits: NDArray[np.uint8], part: NDArray[np.bool_]) -> None:
    """Draw the marked digits of a row again, in place, until they are not all 0."""
    rows = np.flatnonzero(~(digits.astype(np.bool_) & part).any(axis=1))
    while rows.size:
        fresh = streams.bits(digits.shape[1], rows)
        digits[rows] = np.where(part[rows], fresh, digits[rows])
        rows = rows[~(digits[rows].astype(np.bool_) & part[rows]).any(axis=1)]


def _operands(inputs: Tokens, split: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return the numbers before and after the token at `split` in every row, lowest digit first."""
    numbers = _integers(inputs == 1)
    return [
        (number & ((1 << place) - 1), number >> (place + 1))
        for number, place in zip(numbers, split[:, 0].tolist(), strict=True)
    ]


def _integers(digits: NDArray[np.integer] | NDArray[np.bool_]) -> list[int]:
    """Return the number in every row of digits, lowest first."""
    packed = np.packbits(digits, axis=1, bitorder="little")
    width, raw = packed.shape[1], packed.tobytes()
    return [int.from_bytes(raw[at : at + width], "little") for at in range(0, len(raw), width)]


def _digits(numbers: list[int], length: int) -> Tokens:
    """Return the lowest `length` digits of every number, lowest first, (rows, length) int16."""
    width = -(-length // 8)
    raw = b"".join(number.to_bytes(width, "little") for number in numbers)
    packed = np.frombuffer(raw, dtype=np.uint8).reshape(len(numbers), width)
    return np.unpackbits(packed, axis=1, count=length, bitorder="little").astype(np.int16)


def _terminate(digits: Tokens) -> Tokens:
    """Put class 2 after the highest 1 of every row (after the first digit where there is none), in place."""
    width = digits.shape[1]
    highest = np.where(digits.any(axis=1), width - 1 - digits[:, ::-1].argmax(axis=1), 0)
    digits[np.arange(len(digits)), highest + 1] = 2
    return digits
