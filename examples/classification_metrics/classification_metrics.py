"""Metrics for `evaluate.load`, without the Hub: those of single labels, of several labels and of regression."""

from typing import Any

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
Configurations, called as `problem_type` of a transformers config:
single_label_classification: accuracy, and F1 averaged over the classes that occur among predictions or references.
multi_label_classification: F1 over all labels of all rows; F1 averaged over the labels that occur; the share of rows
with every label right.
regression: R², averaged over the outputs; mean absolute error; root of the mean squared error.
"""

_KWARGS = """
Args:
    predictions: for every row the predicted class, a 0 or 1 for each label, or the predicted numbers.
    references: the true ones.
Returns:
    accuracy and macro_f1; or micro_f1, macro_f1 and exact_match; or r2, mae and rmse.
"""


class ClassificationMetrics(evaluate.Metric):
    """The metrics of one problem type."""

    def _info(self) -> evaluate.MetricInfo:
        one = {
            "single_label_classification": datasets.Value("int32"),
            "multi_label_classification": datasets.Sequence(datasets.Value("int32")),
            "regression": datasets.Value("float64"),
        }
        if self.config_name not in one:
            raise ValueError(f"The configuration must be one of {', '.join(one)}, got {self.config_name!r}.")
        forms = [one[self.config_name]]
        if self.config_name == "regression":
            forms.append(datasets.Sequence(forms[0]))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS,
            features=[datasets.Features({"predictions": form, "references": form}) for form in forms],
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        compute = {
            "single_label_classification": _single_label,
            "multi_label_classification": _multi_label,
            "regression": _regression,
        }[self.config_name]
        return compute(np.asarray(predictions), np.asarray(references))


def _single_label(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    count = int(max(predictions.max(), references.max())) + 1
    confusion = np.bincount(references * count + predictions, minlength=count**2).reshape(count, count)
    right = confusion.diagonal()
    return {
        "accuracy": float(right.sum() / confusion.sum()),
        "macro_f1": _macro_f1(right, confusion.sum(0) + confusion.sum(1)),
    }


def _multi_label(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    right, seen = (predictions * references).sum(0), (predictions + references).sum(0)
    return {
        "micro_f1": float(2 * right.sum() / max(seen.sum(), 1)),
        "macro_f1": _macro_f1(right, seen),
        "exact_match": float((predictions == references).all(1).mean()),
    }


def _macro_f1(right: np.ndarray, seen: np.ndarray) -> float:
    """From the true positives of each class, and the sum of its predictions and its references."""
    occurs = seen > 0
    return float((2 * right[occurs] / seen[occurs]).mean()) if occurs.any() else 0.0


def _regression(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    error = predictions - references
    rest, spread = (error**2).sum(0), ((references - references.mean(0)) ** 2).sum(0)
    # Where all references are one number, R² is 1 for that number and 0 for any other, as in scikit-learn.
    r2 = np.where(spread > 0, 1 - rest / np.where(spread > 0, spread, 1), rest == 0)
    return {"r2": float(r2.mean()), "mae": float(np.abs(error).mean()), "rmse": float((error**2).mean() ** 0.5)}
