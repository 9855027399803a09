"""Metric for `evaluate.load`, without the Hub: accuracy and macro-averaged F1 of single-label classification."""

from typing import Any

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
Accuracy, and F1 averaged over the classes that occur among predictions or references, each weighing the same.
"""

_KWARGS = """
Args:
    predictions: the predicted class of every row.
    references: the true class of every row.
Returns:
    accuracy and macro_f1.
"""


class ClassificationMetrics(evaluate.Metric):
    """The metric; both figures come from one confusion matrix."""

    def _info(self) -> evaluate.MetricInfo:
        classes = datasets.Value("int32")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS,
            features=datasets.Features({"predictions": classes, "references": classes}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        predictions, references = np.asarray(predictions), np.asarray(references)
        count = int(max(predictions.max(), references.max())) + 1
        confusion = np.bincount(references * count + predictions, minlength=count**2).reshape(count, count)
        right, seen = confusion.diagonal(), confusion.sum(0) + confusion.sum(1)
        occurs = seen > 0
        return {
            "accuracy": float(right.sum() / confusion.sum()),
            "macro_f1": float((2 * right[occurs] / seen[occurs]).mean()),
        }
