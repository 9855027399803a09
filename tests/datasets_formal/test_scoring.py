from typing import Any

import evaluate
import numpy as np
import pytest

from datasets_formal import FORMAL_ACCURACY, TASKS, formal_accuracy


@pytest.fixture
def metric() -> Any:
    return evaluate.load(FORMAL_ACCURACY)


def test_classes(metric: Any) -> None:
    scores = metric.compute(predictions=[1, 0, 1], references=[1, 1, 1], task="parity_check", lengths=[3, 3, 4])
    assert scores == {
        "accuracy": pytest.approx(2 / 3),
        "accuracy_by_length": {3: 0.5, 4: 1.0},
        "score": 0.75,
        "solved": False,
    }


def test_outputs_after_the_terminator_do_not_count(metric: Any) -> None:
    predictions, references = [[1, 2, 0], [1, 1, 1, 2]], [[1, 2, 1], [1, 1, 0, 2]]
    pooled = metric.compute(predictions=predictions, references=references, task="binary_addition")
    assert pooled == {"accuracy": pytest.approx(5 / 6)}
    every = metric.compute(predictions=predictions, references=references, task="bucket_sort")
    assert every == {"accuracy": pytest.approx(5 / 7)}


def test_full_length_labels_may_be_given() -> None:
    references = np.array([[-100, -100, 0, 1, -100], [-100, -100, -100, 1, 1]])
    predictions = np.array([[0, 1, 0, 0, 1], [1, 0, 0, 1, 1]])
    assert formal_accuracy(predictions, references, "reverse_string", [2, 2])["score"] == 0.75


def test_scored_outputs_are_those_of_the_reference_rows(reference_rows: list[dict[str, Any]]) -> None:
    generator = np.random.default_rng(0)
    for name in {row["task"] for row in reference_rows}:
        task = TASKS[name]
        rows = [row for row in reference_rows if row["task"] == name]
        predictions = [generator.integers(0, task.output_size, len(row["output"])) for row in rows]
        lengths = [row["length"] for row in rows]
        hits = [
            (row["length"], prediction == output)
            for row, guess in zip(rows, predictions, strict=True)
            for prediction, output, scored in zip(guess, row["output"], row["scored"], strict=True)
            if scored
        ]
        means = [np.mean([hit for at, hit in hits if at == length]) for length in sorted(set(lengths))]
        scores = formal_accuracy(predictions, [row["output"] for row in rows], name, lengths)
        assert scores["accuracy"] == pytest.approx(np.mean([hit for _, hit in hits]))
        assert scores["score"] == pytest.approx(np.mean(means))


def test_tasks_may_be_mixed(metric: Any) -> None:
    tasks = ["parity_check", "reverse_string", "even_pairs", "parity_check"]
    predictions, references = [[1], [0, 1], [0], [0]], [[1], [0, 0], [1], [0]]
    scores = metric.compute(predictions=predictions, references=references, task=tasks, lengths=[1, 2, 1, 1])
    assert scores["by_level"] == {"regular": 0.5, "deterministic context-free": 0.5}
    assert scores["by_task"]["parity_check"] == {
        "accuracy": 1.0,
        "accuracy_by_length": {1: 1.0},
        "score": 1.0,
        "solved": True,
    }
    assert formal_accuracy(predictions, references, tasks)["by_task"]["even_pairs"] == {"accuracy": 0.0}


def test_metric_checks_its_inputs(metric: Any) -> None:
    with pytest.raises(ValueError, match="take the argmax"):
        metric.compute(predictions=[0.5], references=[1], task="parity_check")
    with pytest.raises(ValueError, match="Mismatch in the number of predictions"):
        metric.compute(predictions=[0, 1], references=[1], task="parity_check")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 1], [0], "parity_check"), "same number of rows"),
        (([[0, 1]], [[0]], "reverse_string"), "same number of rows"),
        (([0.5], [1], "parity_check"), "predictions must be classes .* take the argmax"),
        (([[1]], [[-100]], "reverse_string"), "no scored output"),
        (([], [], "parity_check"), "no scored output"),
        (([1, 1], [[-100], [1]], "reverse_string", [3, 4]), "no scored output at length 3"),
        (([1], [2], "parity_check"), r"references of parity_check must be classes 0\.\.1 or -100, got 2"),
        (([1], [1], ["parity_check", "first"]), "task must have one entry a row, got 2 for 1"),
        (([1], [1], "parity_check", [1, 2]), "lengths must have one entry a row, got 2 for 1"),
        (([1], [1], "parity"), "Did you mean 'parity_check'"),
    ],
)
def test_bad_inputs_say_what_is_wrong(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        formal_accuracy(*arguments)
