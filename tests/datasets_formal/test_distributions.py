"""Chi-square tests of what the samplers draw: against exact expectations, the reference rows, and plain generators.

Seeds are fixed, so a test passes or fails for good; a right sampler fails one in ten thousand of them.
"""

import importlib.util
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2_contingency, chisquare

from datasets_formal import TASKS

LEAST_P = 1e-4

_spec = importlib.util.spec_from_file_location(
    "benchmark_datasets", Path(__file__).parents[2] / "examples" / "benchmark_datasets.py"
)
assert _spec is not None
assert _spec.loader is not None
benchmark = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(benchmark)

Chances = dict[str, float]


def drawn(name: str, length: int, rows: int) -> list[tuple[str, str]]:
    inputs, outputs = TASKS[name].sample(np.random.default_rng(length), rows, length)
    return [TASKS[name].spell(*row) for row in zip(inputs, outputs, strict=True)]


def assert_follows(seen: Iterable[Any], chances: dict[Any, float]) -> None:
    counts = Counter(seen)
    assert set(counts) <= set(chances)
    assert sum(chances.values()) == pytest.approx(1)
    total = sum(counts.values())
    # Rare values are put together, so that no expectation is below 5.
    common = [value for value, chance in chances.items() if chance * total >= 5]
    observed = [counts[value] for value in common]
    expected = [chances[value] * total for value in common]
    rest = total - sum(expected)
    if rest >= 5:
        observed, expected = [*observed, total - sum(observed)], [*expected, rest]
    else:
        expected = [value * sum(observed) / sum(expected) for value in expected]
    if len(observed) > 1:
        assert chisquare(observed, expected).pvalue > LEAST_P


def assert_same(one: Iterable[Any], other: Iterable[Any]) -> None:
    counts = Counter(one), Counter(other)
    values = [value for value in counts[0] | counts[1] if counts[0][value] + counts[1][value] >= 10]
    if len(values) > 1:
        table = [[count[value] for value in values] for count in counts]
        assert chi2_contingency(table).pvalue > LEAST_P


def even(alphabet: str, length: int) -> Chances:
    return {"".join(row): len(alphabet) ** -length for row in itertools.product(alphabet, repeat=length)}


@cache
def expressions(length: int, operators: str = "+-*") -> Chances:
    """Every expression of a length, by going through the grammar."""
    if length <= 4:
        forms = {1: "{}", 2: "-{}", 3: "({})", 4: "(-{})"}
        return {forms[length].format(digit): 1 / 5 for digit in range(5)}
    chances: Chances = {}
    for left in range(1, length - 3):
        pairs = itertools.product(
            expressions(left, operators).items(), expressions(length - 3 - left, operators).items(), operators
        )
        for (a, p), (b, q), operator in pairs:
            text = f"({a}{operator}{b})"
            chances[text] = chances.get(text, 0) + p * q / len(operators) / (length - 4)
    return chances


def equations(length: int) -> Chances:
    chances: Chances = {}
    for text, chance in expressions(length - 2, "+-").items():
        for place in range(len(text)):
            hidden = next(at for at in itertools.chain(range(place, len(text)), range(place)) if text[at].isdigit())
            equation = f"{text[:hidden]}x{text[hidden + 1 :]}={eval(text) % 5}"
            chances[equation] = chances.get(equation, 0) + chance / len(text)
    return chances


def operands(symbol: str, length: int) -> Chances:
    chances: Chances = {}
    for size in range(1, length - 1):
        numbers = [
            [f"{number:b}".zfill(width)[::-1] for number in range(1, 2**width)] for width in (size, length - 1 - size)
        ]
        for left, right in itertools.product(*numbers):
            chances[left + symbol + right] = 1 / (length - 2) / len(numbers[0]) / len(numbers[1])
    return chances


def stacks(length: int) -> Chances:
    chances: Chances = {}
    for size in range(1, length):
        for start, actions in itertools.product(even("01", size), even("-oi", length - size)):
            chances[start + actions] = 2.0**-size * 3.0 ** (size - length) / (length - 1)
    return chances


def duplicates(length: int) -> Chances:
    chances: Chances = {}
    for half in even("01", length // 2):
        for place in range(2 * len(half)):
            text = list(half + half)
            text[place] = "?"
            key = "".join(text) + "#" * (length % 2)
            chances[key] = chances.get(key, 0) + 2.0 ** -len(half) / (2 * len(half))
    return chances


def flat_arithmetic(length: int) -> Chances:
    return {"".join(row): 5**-2 / 3 for row in itertools.product("01234", "+-*", "01234")} if length == 3 else {}


EXACT: list[tuple[str, int, Callable[[int], Chances]]] = [
    ("even_pairs", 5, lambda length: even("01", length)),
    ("parity_check", 6, lambda length: even("01", length)),
    ("reverse_string", 5, lambda length: even("01", length)),
    ("duplicate_string", 5, lambda length: even("01", length)),
    ("odds_first", 5, lambda length: even("01", length)),
    ("first", 5, lambda length: even("01", length)),
    ("majority", 5, lambda length: even("01", length)),
    ("cycle_navigation", 4, lambda length: even("<.>", length)),
    ("bucket_sort", 3, lambda length: even("01234", length)),
    ("s3_word_problem", 3, lambda length: even("012345", length)),
    ("modular_arithmetic", 3, flat_arithmetic),
    ("modular_arithmetic_brackets", 5, expressions),
    ("modular_arithmetic_brackets", 6, expressions),
    ("modular_arithmetic_brackets", 7, expressions),
    ("solve_equation", 4, equations),
    ("solve_equation", 8, equations),
    ("binary_addition", 5, lambda length: operands("+", length)),
    ("binary_addition", 7, lambda length: operands("+", length)),
    ("binary_multiplication", 6, lambda length: operands("*", length)),
    ("stack_manipulation", 4, stacks),
    ("stack_manipulation", 5, stacks),
    ("missing_duplicate_string", 6, duplicates),
    ("missing_duplicate_string", 7, duplicates),
]


@pytest.mark.parametrize(("name", "length", "chances"), EXACT)
def test_short_rows_have_the_exact_distribution(name: str, length: int, chances: Callable[[int], Chances]) -> None:
    assert_follows((given for given, _ in drawn(name, length, 20_000)), chances(length))


def test_roots_are_of_evenly_drawn_positive_numbers() -> None:
    numbers = [int(given, 2) for given, _ in drawn("compute_sqrt", 5, 20_000)]
    assert_follows(numbers, dict.fromkeys(range(1, 32), 1 / 31))


@cache
def depth_at_most(length: int, depth: int) -> float:
    """Chance that the brackets of an expression nest at most so deep."""
    if length <= 4:
        return float(depth >= (length >= 3))
    if depth == 0:
        return 0.0
    pairs = [(left, length - 3 - left) for left in range(1, length - 3)]
    return float(np.mean([depth_at_most(a, depth - 1) * depth_at_most(b, depth - 1) for a, b in pairs]))


@pytest.mark.parametrize("length", [12, 41, 150])
def test_expressions_nest_as_deep_as_the_grammar_says(length: int) -> None:
    def depth(text: str) -> int:
        return max(itertools.accumulate({"(": 1, ")": -1}.get(symbol, 0) for symbol in text))

    chances = {d: depth_at_most(length, d) - (depth_at_most(length, d - 1) if d else 0) for d in range(length)}
    rows = drawn("modular_arithmetic_brackets", length, 4000)
    assert_follows((depth(given) for given, _ in rows), {d: p for d, p in chances.items() if p > 0})


@pytest.mark.parametrize("length", [10, 40, 200])
def test_stacks_end_as_high_as_the_walk_says(length: int) -> None:
    chances = np.zeros(length + 1)
    for size in range(1, length):
        heights = np.zeros(length + 1)
        heights[size] = 1 / (length - 1)
        for _ in range(length - size):
            popped = np.append(heights[1:], 0)
            popped[0] += heights[0]
            heights = popped / 3 + np.roll(heights, 1) * 2 / 3
        chances += heights
    rows = drawn("stack_manipulation", length, 4000)
    assert_follows((answer.index(".") for _, answer in rows), dict(enumerate(chances)))


def features(row: tuple[str, str]) -> dict[str, Any]:
    """What is compared of long rows: one value a row each, so that rows count independently."""
    given, answer = row
    places = {"first": 0, "second": 1, "middle": len(given) // 2, "third quarter": len(given) * 3 // 4, "last": -1}
    seen: dict[str, Any] = {name: given[place] for name, place in places.items() if abs(place) < len(given)}
    seen["minus signs"] = min(given.count("-"), 12)
    seen["operators"] = min(sum(map(given.count, "+-*o")), 25)
    seen["first answer"], seen["middle answer"] = answer[0], answer[len(answer) // 2]
    seen["end"] = answer.find(".") // 4
    return seen


@pytest.mark.parametrize("name", benchmark.PLAIN)
@pytest.mark.parametrize("length", [9, 40, 83])
def test_long_rows_are_those_of_the_plain_generator(name: str, length: int) -> None:
    generator = random.Random(1)
    plain = [benchmark.PLAIN[name](generator, length) for _ in range(3000)]
    theirs = [features(TASKS[name].spell(np.array(given), np.array(answer))) for given, answer in plain]
    ours = [features(row) for row in drawn(name, length, 6000)]
    for feature in ours[0]:
        assert_same([row[feature] for row in ours], [row[feature] for row in theirs])


def test_reference_rows_are_likely(reference_rows: list[dict[str, Any]]) -> None:
    for name in {row["task"] for row in reference_rows}:
        rows = [row for row in reference_rows if row["task"] == name and row["length"] >= 3]
        theirs = [features(TASKS[name].spell(np.array(row["input"]), np.array(row["output"]))) for row in rows]
        per_length = Counter(row["length"] for row in rows)
        ours = [features(row) for length, count in per_length.items() for row in drawn(name, length, 100 * count)]
        for feature in ours[0]:
            assert_same([row.get(feature) for row in ours], [row.get(feature) for row in theirs])


@cache
def values(length: int) -> tuple[float, ...]:
    """Chance of every value of a bracketed expression."""
    if length <= 4:
        return (1 / 5,) * 5
    chances = [0.0] * 5
    for left in range(1, length - 3):
        pairs = itertools.product(enumerate(values(left)), enumerate(values(length - 3 - left)))
        for (a, p), (b, q) in pairs:
            for value in (a + b, a - b, a * b):
                chances[value % 5] += p * q / 3 / (length - 4)
    return tuple(chances)


@pytest.mark.parametrize("length", [8, 41, 120])
def test_values_of_expressions_follow_the_grammar(length: int) -> None:
    rows = drawn("modular_arithmetic_brackets", length, 6000)
    assert_follows((int(answer) for _, answer in rows), dict(enumerate(values(length))))


EVEN_ANSWERS = [
    "even_pairs",
    "parity_check",
    "cycle_navigation",
    "solve_equation",
    "missing_duplicate_string",
    "s3_word_problem",
    "a5_word_problem",
    "s5_word_problem",
    "first",
    "majority",
]


@pytest.mark.parametrize("name", EVEN_ANSWERS)
def test_no_answer_stands_out(name: str) -> None:
    symbols = TASKS[name].output_alphabet
    assert_follows((answer for _, answer in drawn(name, 61, 6000)), dict.fromkeys(symbols, 1 / len(symbols)))


@pytest.mark.parametrize("name", ["dyck_2_3", "dyck_4_4"])
def test_dyck_rows_are_members_about_half_the_time(name: str) -> None:
    for length in (6, 40, 301):
        share = np.mean([answer == "1" for _, answer in drawn(name, length, 4000)])
        assert 0.48 < share < 0.65
