"""What a column of labels asks for: one class of a row, several, or numbers; with its loss, its figures, its names."""

import math
import numbers
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from datasets import ClassLabel, Dataset
from torch import Tensor
from torch.nn import functional as F

LOWER_IS_BETTER = ("mae", "rmse")
"""The metrics of which the least is the best, beside losses."""


@dataclass
class Problem(ABC):
    """A kind of classification or regression; `names` are those of the model's outputs."""

    names: list[str]

    problem_type: ClassVar[str]
    """As transformers calls it."""
    metrics: ClassVar[tuple[str, ...]]
    """What `classification_metrics` computes for it; the first chooses the epoch and is the run's score."""
    hub_metrics: ClassVar[tuple[str, ...]]
    """The same, as the Hub's model cards call them."""
    score_name: ClassVar[str]
    loss_name: ClassVar[str]
    baseline_name: ClassVar[str]
    """What the same prediction for every row, `baseline`, predicts."""

    @classmethod
    @abstractmethod
    def of(cls, rows: Dataset, column: str) -> "Problem":
        """The problem that the labels in `column` of the training `rows` state.

        Raises:
            ValueError: they are of another kind.
        """

    @abstractmethod
    def target(self, label: Any) -> Any:
        """A label as the loss takes it.

        Raises:
            ValueError: for one that the training rows do not have.
        """

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor, reduction: str, label_smoothing: float) -> Tensor:
        """The loss of logits [B, num_labels], reduced by "mean" or "sum" over all targets."""

    @abstractmethod
    def predictions(self, logits: Tensor) -> Tensor:
        """What the logits [B, num_labels] predict, in the form of the targets."""

    @abstractmethod
    def baseline(self, targets: np.ndarray) -> np.ndarray:
        """The same prediction for each of the targets: what a model must beat."""

    def format(self, score: float) -> str:
        """A score for people."""
        return f"{score:.3f}"


class SingleLabel(Problem):
    """Each row has one class."""

    problem_type = "single_label_classification"
    metrics = ("accuracy", "macro_f1")
    hub_metrics = ("accuracy", "f1")
    score_name = "accuracy"
    loss_name = "cross entropy"
    baseline_name = "most frequent class"

    @classmethod
    def of(cls, rows: Dataset, column: str) -> "SingleLabel":
        """The classes of a column of integers or strings."""
        feature = rows.features[column]
        if isinstance(feature, ClassLabel):
            return cls(list(feature.names))
        if not _holds(feature, "int", "uint", "string", "large_string", "bool"):
            raise ValueError(f"--label_column_name: column {column!r} must hold integers or strings, got {feature}.")
        return cls(_class_names(rows.unique(column), column))

    def target(self, label: int | str) -> int:
        """The index of the class."""
        return _index(label, self.names)

    def loss(self, logits: Tensor, targets: Tensor, reduction: str, label_smoothing: float) -> Tensor:
        """Cross entropy."""
        return F.cross_entropy(logits, targets, reduction=reduction, label_smoothing=label_smoothing)

    def predictions(self, logits: Tensor) -> Tensor:
        """The likeliest class."""
        return logits.argmax(dim=-1)

    def baseline(self, targets: np.ndarray) -> np.ndarray:
        """The most frequent class."""
        return np.full_like(targets, np.bincount(targets).argmax())

    def format(self, score: float) -> str:
        """An accuracy in percent."""
        return f"{score:.2%}"


class MultiLabel(Problem):
    """Each row has any number of labels."""

    problem_type = "multi_label_classification"
    metrics = ("micro_f1", "macro_f1", "exact_match")
    hub_metrics = ("f1", "exact_match")
    score_name = "micro F1"
    loss_name = "binary cross entropy"
    baseline_name = "every label for every row"

    @classmethod
    def of(cls, rows: Dataset, column: str) -> "MultiLabel":
        """The labels of a column of lists of integers or strings."""
        item = _item(rows.features[column])
        if isinstance(item, ClassLabel):
            return cls(list(item.names))
        if not _holds(item, "int", "uint", "string", "large_string"):
            raise ValueError(
                f"--label_column_name: column {column!r} must hold lists of integers or strings, the labels of the "
                f"row, got {rows.features[column]}."
            )
        lists = rows[column]
        if None in lists:
            raise ValueError(f"--label_column_name: column {column!r} has rows without a list; leave them out.")
        return cls(_class_names(set().union(*lists), column))

    def target(self, label: list[int | str]) -> list[float]:
        """1 at the labels of the row and 0 elsewhere."""
        if label is None:
            raise ValueError("it is no list")
        at = [_index(item, self.names) for item in label]
        if len(set(at)) < len(at):
            raise ValueError("it names a label twice; a row must list its labels, not a 0 or 1 for every label")
        return [float(index in at) for index in range(len(self.names))]

    def loss(self, logits: Tensor, targets: Tensor, reduction: str, label_smoothing: float) -> Tensor:
        """Binary cross entropy of every label; smoothing moves targets towards 1/2."""
        smooth = targets * (1 - label_smoothing) + label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, smooth.to(logits.dtype), reduction=reduction)

    def predictions(self, logits: Tensor) -> Tensor:
        """The labels that are likelier than not."""
        return (logits > 0).long()

    def baseline(self, targets: np.ndarray) -> np.ndarray:
        """Every label."""
        return np.ones_like(targets)


class Regression(Problem):
    """Each row has a number, or several."""

    problem_type = "regression"
    metrics = ("r2", "mae", "rmse")
    hub_metrics = ("r_squared", "mae")
    score_name = "R²"
    loss_name = "squared error"
    baseline_name = "the mean for every row"

    @classmethod
    def of(cls, rows: Dataset, column: str) -> "Regression":
        """One output for a column of numbers, one for each item of a column of lists of numbers."""
        feature = rows.features[column]
        item = _item(feature)
        if not _holds(item or feature, "float", "double", "int", "uint", "decimal"):
            raise ValueError(
                f"--label_column_name: column {column!r} must hold numbers or lists of numbers, got {feature}."
            )
        if item is None:
            return cls([column])
        if not rows[0][column]:
            raise ValueError(f"--label_column_name: the first row's list in column {column!r} must have numbers.")
        return cls([f"{column}_{index}" for index in range(len(rows[0][column]))])

    def target(self, label: float | list[float]) -> float | list[float]:
        """The number, or the list of them."""
        values = label if isinstance(label, list) else [label]
        if len(values) != len(self.names):
            raise ValueError(f"it must have {len(self.names)} numbers, as the first training row has")
        if not all(isinstance(value, numbers.Number) and math.isfinite(value) for value in values):
            raise ValueError("it must be finite")
        return [float(value) for value in values] if isinstance(label, list) else float(label)

    def loss(self, logits: Tensor, targets: Tensor, reduction: str, label_smoothing: float) -> Tensor:
        """Mean squared error; there is no smoothing of numbers."""
        return F.mse_loss(logits, targets.view_as(logits).to(logits.dtype), reduction=reduction)

    def predictions(self, logits: Tensor) -> Tensor:
        """The numbers themselves."""
        return logits.squeeze(-1) if len(self.names) == 1 else logits

    def baseline(self, targets: np.ndarray) -> np.ndarray:
        """The mean, whose R² is 0."""
        return np.broadcast_to(targets.mean(0), targets.shape)


PROBLEMS = {kind.problem_type: kind for kind in (SingleLabel, MultiLabel, Regression)}


def problem_of(rows: Dataset, column: str, problem_type: str | None = None) -> Problem:
    """What the labels in `column` of the training `rows` ask for.

    Args:
        rows: the training rows.
        column: the name of the label column.
        problem_type: a key of `PROBLEMS`; None takes it from the column: numbers with a fraction, and lists of such,
            mean regression, other lists several labels, anything else one class.

    Raises:
        ValueError: the labels are of no such kind.
    """
    if problem_type is None:
        item = _item(rows.features[column])
        if _holds(item or rows.features[column], "float", "double", "decimal"):
            problem_type = Regression.problem_type
        else:
            problem_type = SingleLabel.problem_type if item is None else MultiLabel.problem_type
    return PROBLEMS[problem_type].of(rows, column)


def named(label: Any, feature: Any) -> Any:
    """A label as its split stores it, with the names of a `ClassLabel` in place of their numbers."""
    if isinstance(label, list):
        return [named(item, _item(feature)) for item in label]
    if isinstance(feature, ClassLabel) and label in range(feature.num_classes):
        return feature.names[label]
    return label


def _item(feature: Any) -> Any:
    """What a list holds; None for what is no list."""
    return getattr(feature, "feature", None)


def _holds(feature: Any, *dtypes: str) -> bool:
    return str(getattr(feature, "dtype", None)).startswith(dtypes)


def _class_names(found: Any, column: str) -> list[str]:
    if None in found:
        raise ValueError(f"--label_column_name: column {column!r} has rows without a label; leave them out.")
    if len(found) < 2:
        raise ValueError(f"--label_column_name: column {column!r} must have at least two classes, got {list(found)}.")
    return [str(value) for value in sorted(found)]


def _index(label: int | str, names: list[str]) -> int:
    if str(label) not in names:
        raise ValueError(f"{label!r} is none of the training rows' classes {names}")
    return names.index(str(label))
