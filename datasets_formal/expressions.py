"""The bracketed arithmetic expressions that two tasks share: a vectorised sampler and a parser."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .streams import RowStreams, scale
from .task import Tokens

MODULUS = 5
MINUS, OPEN, CLOSE = 6, 8, 9
EXPRESSION_ALPHABET = "01234+-*()"

_Level = tuple[NDArray[np.intp], NDArray[np.int64], NDArray[np.int64]]

_PRECEDENCE = {"(": 0, "+": 1, "-": 1, "*": 2, "~": 3}


def draw_expressions(streams: RowStreams, length: int, operators: str) -> tuple[Tokens, NDArray[np.int64]]:
    """Draw one expression of `length` symbols for every stream.

    The benchmark's grammar: lengths 1 to 4 are d, -d, (d), (-d); a longer one is (left operator right), the
    length of `left` being uniform over all that leave room for `right`. All open parts of all rows are
    expanded together, then evaluated from the inside, so the number of numpy calls grows with the depth of
    the deepest row alone.

    Args:
        streams: one a row.
        length: number of symbols, at least 1.
        operators: those to draw from, evenly: "+-" or "+-*".

    Returns:
        tokens (rows, length) int16, numbered as in EXPRESSION_ALPHABET, and values (rows,) in 0..4.
    """
    tokens = np.empty((streams.rows, length), dtype=np.int16)
    flat = tokens.reshape(-1)
    # Parts of an expression never start at the same symbol, so a part may use the word of its first symbol.
    words = streams.reserve(length)
    values = np.empty(streams.rows, dtype=np.int64)
    levels: list[_Level] = []

    row, slot = np.arange(streams.rows), np.arange(streams.rows)
    start = np.zeros(streams.rows, dtype=np.int64)
    size = np.full(streams.rows, length, dtype=np.int64)
    operands = values
    while row.size:
        word = words.word_at(row, start)
        upper, lower = word >> np.uint64(32), word & np.uint64(0xFFFFFFFF)
        first = row * length + start
        bracketed = size >= 3
        flat[first[bracketed]] = OPEN
        flat[(first + size - 1)[bracketed]] = CLOSE

        leaf = size <= 4
        negated = leaf & (size % 2 == 0)
        flat[(first + (size == 4))[negated]] = MINUS
        digit = scale(lower[leaf], MODULUS)
        flat[(first + size // 2)[leaf]] = digit
        operands[slot[leaf]] = np.where(negated[leaf], -digit, digit)

        inner = ~leaf
        row, start, size = row[inner], start[inner], size[inner]
        left = 1 + scale(upper[inner], size - 4)
        operator = scale(lower[inner], len(operators))
        flat[first[inner] + 1 + left] = MODULUS + operator
        operands = np.empty(2 * len(row), dtype=np.int64)
        levels.append((slot[inner], operator, operands))
        slot = np.arange(2 * len(row))
        row = np.concatenate([row, row])
        start = np.concatenate([start + 1, start + 2 + left])
        size = np.concatenate([left, size - 3 - left])

    outer = [values, *(level[2] for level in levels)]
    for target, (slot, operator, operands) in reversed(list(zip(outer, levels, strict=False))):
        one, other = np.split(operands, 2)
        target[slot] = np.choose(operator, [one + other, one - other, one * other]) % MODULUS
    return tokens, values % MODULUS


def evaluate(expression: str) -> int:
    """Return the value modulo 5 of an expression over + - * ( ) and digits, * binding tighter.

    Operator precedence parsing with explicit stacks, so that depth is bounded by memory alone.

    Raises:
        ValueError: the text is not an expression.
    """
    values: list[int] = []
    operators: list[str] = []

    def reduce() -> None:
        operator, right = operators.pop(), values.pop()
        if operator == "~":
            values.append(-right)
        elif operator == "+":
            values.append((values.pop() + right) % MODULUS)
        elif operator == "-":
            values.append((values.pop() - right) % MODULUS)
        elif operator == "*":
            values.append((values.pop() * right) % MODULUS)
        else:
            raise ValueError("a bracket is never closed")

    try:
        operand_next = True
        for symbol in expression:
            if symbol.isdigit() and operand_next:
                values.append(int(symbol))
                operand_next = False
            elif symbol == "(" and operand_next:
                operators.append("(")
            elif symbol == "-" and operand_next:
                operators.append("~")
            elif symbol == ")" and not operand_next:
                while operators[-1] != "(":
                    reduce()
                operators.pop()
            elif symbol in ("+", "-", "*") and not operand_next:
                while operators and _PRECEDENCE[operators[-1]] >= _PRECEDENCE[symbol]:
                    reduce()
                operators.append(symbol)
                operand_next = True
            else:
                raise ValueError(f"{symbol!r} is out of place")
        while operators:
            reduce()
        (value,) = values
    except (IndexError, ValueError) as error:
        raise ValueError(f"{expression!r} is not an arithmetic expression: {error}") from error
    return value % MODULUS
