"""Metric for `evaluate.load`: the accuracy of the benchmark, over scored outputs only."""

from typing import Any

import datasets
import evaluate

from datasets_formal.scoring import flatten, formal_accuracy

_DESCRIPTION = """
Share of the scored outputs of a formal-language task that a model predicts.
"""

_KWARGS = """
Args:
    predictions: a class for every row, or a list of classes for every row.
    references: the same with the true classes; entries of -100 are ignored.
    task: the name of the task, which says which outputs are scored, or a list with every row's task.
    lengths: optional, the requested length of every row: adds the accuracy of every length and their mean.
Returns:
    accuracy, and with lengths accuracy_by_length, score and solved; with a list of tasks, by_task and by_level.
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

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Store predictions and references, (rows,) or (rows, outputs); ValueError unless they are integers."""
        for name, rows in (("predictions", predictions), ("references", references)):
            flatten(name, rows)
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def _compute(self, predictions: Any, references: Any, task: Any, lengths: Any = None) -> dict[str, Any]:
        return formal_accuracy(predictions, references, task=task, lengths=lengths)
