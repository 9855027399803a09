from typing import Any

import numpy as np
import pytest

from datasets_formal import TASKS, Task, get_task

BENCHMARK = {
    "regular": ["even_pairs", "modular_arithmetic", "parity_check", "cycle_navigation"],
    "deterministic context-free": [
        "stack_manipulation",
        "reverse_string",
        "modular_arithmetic_brackets",
        "solve_equation",
    ],
    "context-sensitive": [
        "duplicate_string",
        "missing_duplicate_string",
        "odds_first",
        "binary_addition",
        "binary_multiplication",
        "compute_sqrt",
        "bucket_sort",
    ],
}

all_tasks = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def symbols(task: Task, row: str) -> list[int]:
    return [task.alphabet.index(symbol) for symbol in row]


def answer(task: Task, row: str) -> str:
    return "".join("_" if value < 0 else task.output_alphabet[value] for value in task.solve(symbols(task, row)))


def test_the_benchmark_is_complete() -> None:
    for level, names in BENCHMARK.items():
        assert [TASKS[name].level for name in names] == [level] * len(names)


def test_solvers_agree_with_every_reference_row(reference_rows: list[dict[str, Any]]) -> None:
    assert {row["task"] for row in reference_rows} == {name for names in BENCHMARK.values() for name in names}
    for row in reference_rows:
        task = TASKS[row["task"]]
        assert (task.input_size, task.output_size) == (row["input_size"], row["output_size"])
        assert task.input_length(row["length"]) == len(row["input"])
        assert task.output_length(row["length"]) == len(row["output"])
        assert task.solve(row["input"]) == row["output"]
        assert task.scored(np.array([row["output"]])).astype(int).tolist() == [row["scored"]]


@all_tasks
def test_metadata_is_consistent(task: Task) -> None:
    for symbols in (task.alphabet, task.output_alphabet):
        assert len(set(symbols)) == len(symbols)
        assert "_" not in symbols
        assert symbols.isprintable()
    assert 1 / task.output_size <= task.chance < 1
    assert task.summary.endswith(".")
    given, answered = task.example
    assert answer(task, given) == answered
    assert task.source
    assert all(part in repr(task) for part in (task.name, task.level, task.kind, task.alphabet))


@all_tasks
def test_every_length_up_to_64_is_generated_and_solved(task: Task) -> None:
    for length in range(1, 65):
        inputs, outputs = task.sample(np.random.default_rng(length), 8, length)
        assert inputs.shape == (8, task.input_length(length))
        assert outputs.shape == (8, task.output_length(length))
        assert inputs.dtype == outputs.dtype == np.int16
        assert [task.solve(row) for row in inputs.tolist()] == outputs.tolist()


@all_tasks
def test_long_rows_are_right(task: Task) -> None:
    inputs, outputs = task.sample(np.random.default_rng(0), 2, 1500)
    assert [task.solve(row) for row in inputs.tolist()] == outputs.tolist()


@all_tasks
def test_sampling_depends_on_the_generator_alone(task: Task) -> None:
    np.random.seed(0)  # noqa: NPY002 -- must not matter
    first = task.sample(np.random.default_rng(3), 5, 20)
    second = task.sample(np.random.default_rng(3), 5, 20)
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("even_pairs", "0101001", "1"),
        ("parity_check", "0110", "0"),
        ("cycle_navigation", ">.><", "1"),
        ("modular_arithmetic", "1+2*3", "2"),
        ("modular_arithmetic", "0*1+4*3-2", "0"),
        ("modular_arithmetic_brackets", "(2*(1-3))", "1"),
        ("modular_arithmetic_brackets", "(1-(-2))", "3"),
        ("reverse_string", "011", "110"),
        ("solve_equation", "(1-x)=3", "3"),
        ("stack_manipulation", "011-i", "110.00"),
        ("stack_manipulation", "110---", ".000000"),
        ("duplicate_string", "011", "011011"),
        ("missing_duplicate_string", "0110?1", "1"),
        ("missing_duplicate_string", "101?01#", "1"),
        ("odds_first", "0011", "0101"),
        ("binary_addition", "10+01", "11.000"),
        ("binary_multiplication", "01*11", "011.0"),
        ("compute_sqrt", "1010", "11"),
        ("bucket_sort", "3041", "0134"),
        ("s3_word_problem", "12", "3"),
        ("s3_word_problem", "21", "4"),
        ("s3_word_problem_states", "120", "133"),
        ("dyck_2_3", "([])", "1"),
        ("dyck_2_3", "([)]", "0"),
        ("dyck_2_3", "(((())))", "0"),
        ("dyck_2_3", "#", "1"),
        ("dyck_4_4", "<{[()]}>", "1"),
        ("dyck_4_4", "<{[(())]}>", "0"),
        ("dyck_4_4", "<{>}", "0"),
        ("listops", "M29m47]0]", "9"),
        ("listops", "d1629]", "4"),
        ("listops", "s99s55]]", "8"),
        ("first", "100", "1"),
        ("majority", "110", "1"),
        ("majority", "10", "0"),
        ("associative_recall", "a3b7ba", "____73"),
        ("associative_recall", "a", "0"),
    ],
)
def test_documented_examples(name: str, row: str, expected: str) -> None:
    assert answer(TASKS[name], row) == expected


def test_quirks_of_short_and_even_lengths() -> None:
    def rows(name: str, length: int) -> set[str]:
        inputs, _ = TASKS[name].sample(np.random.default_rng(0), 200, length)
        return {"".join(TASKS[name].alphabet[token] for token in row) for row in inputs}

    assert {len(row) for row in rows("modular_arithmetic", 6)} == {5}
    assert rows("missing_duplicate_string", 1) == {"1"}
    assert all(row.endswith("#") for row in rows("missing_duplicate_string", 5))
    assert rows("solve_equation", 2) == {"00"}
    for name in ("binary_addition", "binary_multiplication"):
        assert rows(name, 1) == {"0"}
        assert rows(name, 2) == {"00", "10", "01"}
    assert {len(row) for row in rows("listops", 3)} == {1}
    assert all(row.endswith("#") for row in rows("dyck_2_3", 7))
    assert rows("compute_sqrt", 2) == {"01", "10", "11"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda task: task.sample(np.random.default_rng(0), -1, 3), "batch must be an integer of at least 0, got -1"),
        (lambda task: task.sample(np.random.default_rng(0), 1, 0), "length must be an integer of at least 1, got 0"),
        (lambda task: task.sample(np.random.default_rng(0), 1, 2.5), r"length must be .*, got 2\.5"),
        (lambda task: task.solve([]), "modular_arithmetic needs at least one input token"),
        (lambda task: task.solve([0, 9]), r"modular_arithmetic knows the tokens 0\.\.8, got 9"),
        (lambda task: task.solve([0, 1.0]), r"modular_arithmetic knows the tokens 0\.\.8, got 1\.0"),
        (lambda task: task.solve("0"), r"modular_arithmetic knows the tokens 0\.\.8, got '0'"),
    ],
)
def test_bad_calls_say_what_is_wrong(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(TASKS["modular_arithmetic"])


def test_samplers_want_a_generator() -> None:
    with pytest.raises(TypeError, match=r"generator must be a numpy Generator, .*, got 0"):
        TASKS["first"].sample(0, 1, 1)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("modular_arithmetic", "0+", "not an arithmetic expression: it ends where an operand should follow"),
        ("modular_arithmetic", "0?1", r"not an arithmetic expression: '\?' is out of place"),
        ("modular_arithmetic_brackets", "(1", "not an arithmetic expression: a bracket is never closed"),
        ("modular_arithmetic_brackets", "1)", r"not an arithmetic expression: '\)' is out of place"),
        ("solve_equation", "1=1", "not of the form expression with one x, =, digit"),
        ("solve_equation", "x=31", "not of the form"),
        ("missing_duplicate_string", "?", "not a string of 0 and 1 twice with one symbol hidden"),
        ("missing_duplicate_string", "0?11", "not a string"),
        ("missing_duplicate_string", "??", "not a string"),
        ("missing_duplicate_string", "0?##", "not a string"),
        ("binary_addition", "0+", r"not two binary numbers with one \+ between them"),
        ("binary_addition", "0110", "not two binary numbers"),
        ("binary_multiplication", "1*1*1", r"not two binary numbers with one \* between them"),
        ("binary_multiplication", "0*", "not two binary numbers"),
        ("listops", "M]", "closes a list that is empty or never opened"),
        ("listops", "12", "not one digit or list"),
        ("listops", "M1", "not one digit or list"),
    ],
)
def test_solvers_refuse_what_is_no_input(name: str, row: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        TASKS[name].solve(symbols(TASKS[name], row))
    assert repr(row) in str(error.value)


def test_an_empty_batch_is_empty() -> None:
    for task in TASKS.values():
        inputs, outputs = task.sample(np.random.default_rng(0), 0, 9)
        assert inputs.shape == (0, task.input_length(9))
        assert outputs.shape == (0, task.output_length(9))


def test_unknown_tasks_get_a_suggestion_and_the_list() -> None:
    with pytest.raises(ValueError, match="Did you mean 'parity_check'") as error:
        get_task("parity_chek")
    assert all(name in str(error.value) for name in TASKS)
