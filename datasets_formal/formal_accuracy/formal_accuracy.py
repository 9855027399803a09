"""Metric for `evaluate.load`: the accuracy of the benchmark, over scored outputs only."""

from typing import Any

import datasets
import evaluate

from datasets_formal.scoring import formal_accuracy

_DESCRIPTION = """
Share of the scored outputs of a formal-language task that a model predicts.
"""

_KWARGS = """
Args:
    predictions: a class for every row, or a list of classes for every row.
    references: the same with the true classes; entries of -100 are ignored.
    task: the name of the task, which says which outputs are scored.
    lengths: optional, the requested length of every row: adds the accuracy of every length and their mean.
Returns:
    accuracy, and with lengths: accuracy_by_length, score, solved.
"""

_CITATION = """
@inproceedings{deletang2023neural,
    title = {Neural Networks and the Chomsky Hierarchy},
    author = {Del{\\'e}tang, Gr{\\'e}goire and others},
    booktitle = {International Conference on Learning Representations},
    year = {2023}
}
"""


class FormalAccuracy(evaluate.Metric):
    """The metric; see `datasets_formal.scoring` for what it computes."""

    def _info(self) -> evaluate.MetricInfo:
        one = datasets.Value("int32")
        many = datasets.Sequence(one)
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS,
            features=[
                datasets.Features({"predictions": one, "references": one}),
                datasets.Features({"predictions": many, "references": many}),
            ],
        )

    def _compute(self, predictions: Any, references: Any, task: str, lengths: Any = None) -> dict[str, Any]:
        return formal_accuracy(predictions, references, task=task, lengths=lengths)
