"""The bracketed arithmetic expressions that two tasks share: a vectorised sampler and a parser."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .streams import RowStreams, advance, scale, word
from .task import Tokens

MODULUS = 5
MINUS, OPEN, CLOSE = 6, 8, 9
EXPRESSION_ALPHABET = "01234+-*()"

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
    tokens = np.full((streams.rows, length), CLOSE, dtype=np.int16)
    flat = tokens.reshape(-1)
    levels: list[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int64]]] = []
    leaves: list[tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]] = []

    # Parts of an expression never start at the same symbol, so a part may use the word of its first symbol.
    counter = streams.reserve(length)
    first = np.arange(streams.rows) * length
    size = np.full(streams.rows, length)
    while not levels or first.size:
        is_leaf = size <= 4
        leaf, inner = np.flatnonzero(is_leaf), np.flatnonzero(~is_leaf)
        leaves.append((counter[leaf], first[leaf], size[leaf]))
        counter, first, size = counter[inner], first[inner], size[inner]
        drawn = word(counter)
        middle = 2 + scale(drawn >> np.uint64(32), size - 4)
        operator = scale(drawn & _LOWER, len(operators))
        flat[first] = OPEN
        flat[first + middle] = MODULUS + operator
        levels.append((leaf, inner, operator))
        counter = np.concatenate([advance(counter, 1), advance(counter, middle + 1)])
        first = np.concatenate([first + 1, first + middle + 1])
        size = np.concatenate([middle - 1, size - 2 - middle])

    counters, firsts, sizes = zip(*leaves, strict=True)
    counter, first, size = np.concatenate(counters), np.concatenate(firsts), np.concatenate(sizes)
    digit = scale(word(counter) & _LOWER, MODULUS)
    flat[first] = np.array([0, 0, MINUS, OPEN, OPEN], dtype=np.int16)[size]
    flat[first[size == 4] + 1] = MINUS
    flat[first + size // 2] = digit
    digits = np.where(size % 2, digit, _RESULTS[MODULUS * MODULUS + digit])  # 0 - digit

    values = np.empty(0, dtype=np.int64)
    end = len(digits)
    for leaf, inner, operator in reversed(levels):
        left, right = np.split(values, 2)
        values = np.empty(len(leaf) + len(inner), dtype=np.int64)
        values[inner] = _RESULTS[(operator * MODULUS + left) * MODULUS + right]
        values[leaf] = digits[end - len(leaf) : end]
        end -= len(leaf)
    return tokens, values


_LOWER = np.uint64(0xFFFFFFFF)
_DIGITS = np.arange(MODULUS)
# By operator, left and right value; a table is faster than the arithmetic.
_RESULTS = np.stack([f.outer(_DIGITS, _DIGITS) for f in (np.add, np.subtract, np.multiply)]).reshape(-1) % MODULUS


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
            elif symbol == ")" and not operand_next and "(" in operators:
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
        if operand_next:
            raise ValueError("it ends where an operand should follow")
        while operators:
            reduce()
    except ValueError as error:
        raise ValueError(f"{expression!r} is not an arithmetic expression: {error}") from error
    return values[0] % MODULUS
