"""How fast the tasks of datasets_formal are generated: rows and tokens a second, and the wait for a first batch.

For the tasks whose rows take work to make, the same figures for a straightforward generator, which makes one row at a
time in plain Python and draws from the same distribution, measured in the same run.

    python examples/benchmark_datasets.py [--task TASK ...] [--rows N] [--length N] [--build]
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable

import datasets
import numpy as np

from datasets_formal import TASKS, Task, get_task
from datasets_formal.streams import RowStreams

Row = tuple[list[int], list[int]]


def plain_expression(generator: random.Random, length: int, operators: str) -> tuple[str, int]:
    """Return a bracketed expression of so many symbols and its value modulo 5."""
    if length <= 4:
        digit = generator.randrange(5)
        minus = "-" if length % 2 == 0 else ""
        text = f"{minus}{digit}"
        return (f"({text})" if length >= 3 else text), (-digit if minus else digit) % 5
    left_length = generator.randrange(1, length - 3)
    left, left_value = plain_expression(generator, left_length, operators)
    right, right_value = plain_expression(generator, length - 3 - left_length, operators)
    operator = generator.choice(operators)
    if operator == "+":
        value = left_value + right_value
    elif operator == "-":
        value = left_value - right_value
    else:
        value = left_value * right_value
    return f"({left}{operator}{right})", value % 5


def plain_brackets(generator: random.Random, length: int) -> Row:
    """Return a row of modular_arithmetic_brackets."""
    text, value = plain_expression(generator, length, "+-*")
    return [TASKS["modular_arithmetic_brackets"].alphabet.index(symbol) for symbol in text], [value]


def plain_equation(generator: random.Random, length: int) -> Row:
    """Return a row of solve_equation."""
    if length < 3:
        return [0] * length, [0]
    text, value = plain_expression(generator, length - 2, "+-")
    place = generator.randrange(len(text))
    while not text[place].isdigit():
        place = (place + 1) % len(text)
    equation = f"{text[:place]}x{text[place + 1 :]}={value}"
    return [TASKS["solve_equation"].alphabet.index(symbol) for symbol in equation], [int(text[place])]


def plain_stack(generator: random.Random, length: int) -> Row:
    """Return a row of stack_manipulation."""
    size = generator.randrange(1, length) if length > 1 else 1
    tokens = [generator.randrange(2) for _ in range(size)]
    stack = list(tokens)
    for _ in range(length - size):
        action = generator.randrange(2, 5)
        tokens.append(action)
        if action != 2:
            stack.append(action - 3)
        elif stack:
            stack.pop()
    return tokens, [*reversed(stack), 2, *[0] * (length - len(stack))]


def plain_operands(generator: random.Random, length: int) -> tuple[list[int], list[int]]:
    """Return two positive numbers whose digits and a token between them fill the length, and those tokens."""
    sizes = [generator.randrange(1, length - 1)]
    sizes.append(length - 1 - sizes[0])
    numbers = [generator.randint(1, 2**size - 1) for size in sizes]
    left, right = (f"{number:b}".zfill(size)[::-1] for number, size in zip(numbers, sizes, strict=True))
    return numbers, [*map(int, left), 2, *map(int, right)]


def plain_addition(generator: random.Random, length: int) -> Row:
    """Return a row of binary_addition."""
    if length <= 2:
        number = generator.randrange(2**length - 1)
        tokens, total = [int(digit) for digit in f"{number:b}".zfill(length)[::-1]], number
    else:
        numbers, tokens = plain_operands(generator, length)
        total = sum(numbers)
    digits = [int(digit) for digit in f"{total:b}"[::-1]]
    return tokens, [*digits, 2, *[0] * (length - len(digits))]


def plain_multiplication(generator: random.Random, length: int) -> Row:
    """Return a row of binary_multiplication."""
    if length <= 2:
        tokens = [int(digit) for digit in f"{generator.randrange(2**length - 1):b}".zfill(length)[::-1]]
        return tokens, [*[0] * (length - 1), 2]
    numbers, tokens = plain_operands(generator, length)
    digits = [int(digit) for digit in f"{math.prod(numbers):b}"[::-1]]
    return tokens, [*digits, 2, *[0] * (length - 1 - len(digits))]


def plain_root(generator: random.Random, length: int) -> Row:
    """Return a row of compute_sqrt."""
    number = generator.randint(1, 2**length - 1)
    root = f"{math.isqrt(number):b}".zfill(-(-length // 2))
    return [int(digit) for digit in f"{number:b}".zfill(length)], [int(digit) for digit in root]


def plain_list(generator: random.Random, length: int) -> tuple[list[int], int]:
    """Return the tokens of a list of listops of so many symbols, or of a digit, and its value."""
    if length == 1:
        digit = generator.randrange(10)
        return [digit], digit

    operator = generator.randrange(4)
    # An argument takes 1 symbol or at least 4, so what one symbol each leaves over is nothing or at least 3.
    arity = generator.choice([count for count in range(2, 6) if (over := length - 2 - count) == 0 or over >= 3])
    extra = length - 2 - arity
    one, other = generator.sample(range(arity), 2)
    sizes = [1] * arity
    share = generator.randrange(2 + max(extra - 5, 0))
    sizes[one] += (0, extra, share + 1)[min(share, 2)]
    sizes[other] += length - 2 - sum(sizes)
    parts = [plain_list(generator, size) for size in sizes]
    values = [value for _, value in parts]
    value = (max(values), min(values), int(statistics.median(values)), sum(values) % 10)[operator]
    return [10 + operator, *itertools.chain.from_iterable(tokens for tokens, _ in parts), 14], value


def plain_listops(generator: random.Random, length: int) -> Row:
    """Return a row of listops."""
    tokens, value = plain_list(generator, length if length >= 4 else 1)
    return tokens, [value]


PLAIN: dict[str, Callable[[random.Random, int], Row]] = {
    "modular_arithmetic_brackets": plain_brackets,
    "solve_equation": plain_equation,
    "stack_manipulation": plain_stack,
    "binary_addition": plain_addition,
    "binary_multiplication": plain_multiplication,
    "compute_sqrt": plain_root,
    "listops": plain_listops,
}


def ours_rate(task: Task, rows: int, length: int) -> float:
    """Return the rows a second of the vectorised sampler, the best of five runs."""
    times = []
    for run in range(5):
        start = time.perf_counter()
        task.draw(RowStreams.keyed(f"benchmark/{run}", np.arange(rows)), length)
        times.append(time.perf_counter() - start)
    return rows / min(times)


def plain_rate(name: str, rows: int, length: int) -> float:
    """Return the rows a second of the plain generator, arrays included, the best of five runs."""
    generator, times = random.Random(0), []
    for _ in range(5):
        start = time.perf_counter()
        drawn = [PLAIN[name](generator, length) for _ in range(rows)]
        np.array([inputs for inputs, _ in drawn], dtype=np.int16)
        np.array([outputs for _, outputs in drawn], dtype=np.int16)
        times.append(time.perf_counter() - start)
    return rows / min(times)


def first_batch(name: str) -> float:
    """Return the seconds from `load_dataset(..., streaming=True)` to a batch of 128 training rows."""
    start = time.perf_counter()
    stream = datasets.load_dataset("datasets_formal", name, split="train", streaming=True, rows_per_length=128)
    next(stream.iter(batch_size=128))
    return time.perf_counter() - start


def build(name: str, rows: int) -> float:
    """Return the seconds that building so many training rows with `load_dataset` takes."""
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        datasets.load_dataset(
            "datasets_formal",
            name,
            split="train",
            cache_dir=cache,
            train_examples=rows,
            validation_examples=1,
            test_lengths=(41, 41),
            test_examples_per_length=1,
        )
        return time.perf_counter() - start


def main() -> None:
    """Print one line a task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", default=list(TASKS), metavar="TASK", help="default: all")
    parser.add_argument("--rows", type=int, default=2000, help="rows drawn in one call (default: %(default)s)")
    parser.add_argument("--length", type=int, default=40, help="requested length (default: %(default)s)")
    parser.add_argument("--build", action="store_true", help="also build 1,000,000 training rows of every task")
    chosen = parser.parse_args()
    datasets.disable_progress_bars()
    first_batch(chosen.task[0])  # imports and reads configuration that the figures should not contain

    print(f"{chosen.rows} rows of length {chosen.length}")
    columns = ["first batch", "plain rows/s", "ratio"] + ["1M rows"] * chosen.build
    print(f"{'task':28}{'rows/s':>14}{'tokens/s':>16}" + "".join(f"{column:>14}" for column in columns))
    for name in chosen.task:
        task = get_task(name)
        rate = ours_rate(task, chosen.rows, chosen.length)
        tokens = rate * (task.input_length(chosen.length) + task.output_length(chosen.length))
        plain = plain_rate(name, chosen.rows // 10, chosen.length) if name in PLAIN else None
        line = f"{name:28}{rate:14,.0f}{tokens:16,.0f}{1e3 * first_batch(name):11.0f} ms"
        line += f"{plain:14,.0f}{rate / plain:13.1f}x" if plain else f"{'':28}"
        line += f"{build(name, 1_000_000):12.1f} s" if chosen.build else ""
        print(line.rstrip(), flush=True)


if __name__ == "__main__":
    main()
