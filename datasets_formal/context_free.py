"""Tasks that a deterministic pushdown automaton solves."""

from __future__ import annotations

import numpy as np

from .expressions import EXPRESSION_ALPHABET, MODULUS, OPEN, draw_expressions, evaluate
from .streams import RowStreams
from .task import Task, Tokens


class ModularArithmeticBrackets(Task):
    """Evaluate an expression with brackets modulo 5.

    (2*(1-3)) is 1. `x` never occurs: the benchmark's size of the alphabet counts it.
    """

    name = "modular_arithmetic_brackets"
    level = "deterministic context-free"
    kind = "class"
    alphabet = EXPRESSION_ALPHABET + "x"
    output_alphabet = "01234"
    chance = 1 / 5

    def draw(self, streams: RowStreams, length: int) -> tuple[Tokens, Tokens]:
        """Draw expressions; their values are known from the expansion."""
        inputs, values = draw_expressions(streams, length, "+-*")
        return inputs, values[:, None].astype(np.int16)

    def _solve(self, symbols: str) -> str:
        return str(evaluate(symbols))


class ReverseString(Task):
    """Write the string backwards.

    011 becomes 110.
    """

    name = "reverse_string"
    level = "deterministic context-free"
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
        return inputs, inputs[:, ::-1]

    def _solve(self, symbols: str) -> str:
        return "".join(reversed(symbols))


class SolveEquation(Task):
    """Find the digit x in an equation modulo 5.

    (1-x)=3 has the answer 3. Requests below length 3 hold no equation: all zeros, with the answer 0.
    """

    name = "solve_equation"
    level = "deterministic context-free"
    kind = "class"
    alphabet = "01234+-()x="
    output_alphabet = "01234"
    chance = 1 / 5

    def draw(self, streams: RowStreams, length: int) -> tuple[Tokens, Tokens]:
        """Draw an expression; hide the first digit at or (cyclically) after a random symbol."""
        inputs = np.zeros((streams.rows, length), dtype=np.int16)
        if length < 3:
            return inputs, np.zeros((streams.rows, 1), dtype=np.int16)
        expression, values = draw_expressions(streams, length - 2, "+-")
        picked = streams.integers(length - 2, 1)
        digits = expression < MODULUS
        late = digits & (np.arange(length - 2) >= picked)
        hidden = np.where(late.any(axis=1), late.argmax(axis=1), digits.argmax(axis=1))[:, None]

        # The brackets have numbers lower by one than in EXPRESSION_ALPHABET, which knows products.
        np.subtract(expression, expression >= OPEN, out=inputs[:, :-2])
        np.put_along_axis(inputs, hidden, np.int16(self.alphabet.index("x")), axis=1)
        inputs[:, -2] = self.alphabet.index("=")
        inputs[:, -1] = values
        return inputs, np.take_along_axis(expression, hidden, axis=1)

    def _solve(self, symbols: str) -> str:
        if set(symbols) == {"0"} and len(symbols) < 3:
            return "0"
        expression, _, value = symbols.rpartition("=")
        if expression.count("x") != 1 or len(value) != 1 or value not in self.output_alphabet:
            raise ValueError(f"{symbols!r} is not of the form expression with one x, =, digit")
        # x occurs once and is never multiplied, so exactly one digit fits.
        fitting = [digit for digit in "01234" if evaluate(expression.replace("x", digit)) == int(value)]
        return fitting[0]


class StackManipulation(Task):
    """Apply actions to a stack and write what it then holds, top first.

    0 and 1 are the stack to begin with, bottom first; `-` pops (an empty stack stays empty), `o` pushes a 0
    and `i` pushes a 1. 011-i ends as 0, 1, 1: the output is 110.00, where `.` ends the stack and zeros fill
    the row up to one more than the input.
    """

    name = "stack_manipulation"
    level = "deterministic context-free"
    kind = "sequence"
    alphabet = "01-oi"
    output_alphabet = "01."
    terminator = 2
    chance = 1 / 2

    def output_length(self, length: int) -> int:
        """Return room for the largest stack and the terminator."""
        return length + 1

    def draw(self, streams: RowStreams, length: int) -> tuple[Tokens, Tokens]:
        """Draw the size of the stack (at least 1, leaving room for an action), its bits, and the actions."""
        size = 1 + streams.integers(max(length - 1, 1), 1)
        at_start = np.arange(length) < size
        inputs = np.where(at_start, streams.bits(length), streams.symbols(3, length) + 2)

        # The height is a walk held at 0 or above; a push survives if the height never falls below its own.
        push = inputs != 2
        walk = np.cumsum(2 * push.view(np.int8) - 1, axis=1, dtype=np.min_scalar_type(-length - 1))
        height = walk - np.minimum(np.minimum.accumulate(walk, axis=1), 0)
        backwards = height[:, ::-1]
        survives = push[:, ::-1] & (backwards == np.minimum.accumulate(backwards, axis=1))
        pushed = ((inputs == 1) | (inputs == 4))[:, ::-1]
        top = height[:, -1:]
        places = np.arange(length + 1)
        outputs = np.where(places == top, np.int16(self.terminator), np.int16(0))
        outputs[places < top] = pushed[survives]
        return inputs, outputs

    def _solve(self, symbols: str) -> str:
        stack: list[str] = []
        for symbol in symbols:
            if symbol != "-":
                stack.append({"o": "0", "i": "1"}.get(symbol, symbol))
            elif stack:
                stack.pop()
        return ("".join(reversed(stack)) + ".").ljust(len(symbols) + 1, "0")
