"""The metrics of each problem type, by hand."""

from pathlib import Path

import evaluate
import pytest

METRICS = str(Path(__file__).parents[2] / "examples" / "classification_metrics")


@pytest.mark.parametrize(
    ("problem_type", "predictions", "references", "expected"),
    [
        ("single_label_classification", [0, 1, 1, 3], [0, 1, 3, 3], {"accuracy": 3 / 4, "macro_f1": (1 + 4 / 3) / 3}),
        (
            "multi_label_classification",
            [[1, 0, 0, 0], [1, 1, 0, 0]],
            [[1, 0, 0, 0], [0, 1, 1, 0]],
            {"micro_f1": 4 / 6, "macro_f1": (2 / 3 + 1 + 0) / 3, "exact_match": 1 / 2},
        ),
        ("multi_label_classification", [[0]], [[0]], {"micro_f1": 0, "macro_f1": 0, "exact_match": 1}),
        ("regression", [1.0, 2.0, 6.0], [1.0, 2.0, 3.0], {"r2": 1 - 9 / 2, "mae": 1, "rmse": 3**0.5}),
        ("regression", [[1.0, 0.0], [3.0, 2.0]], [[1.0, 2.0], [3.0, 2.0]], {"r2": 1 / 2, "mae": 1 / 2, "rmse": 1}),
    ],
)
def test_metrics(problem_type, predictions, references, expected):
    metric = evaluate.load(METRICS, problem_type)
    assert metric.compute(predictions=predictions, references=references) == pytest.approx(expected)


def test_an_unknown_problem_type_is_named():
    with pytest.raises(ValueError, match=r"single_label_classification, .* got 'ranking'"):
        evaluate.load(METRICS, "ranking")
