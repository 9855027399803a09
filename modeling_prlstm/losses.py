"""The losses of classifiers: of whole rows, for each kind of target, and of tokens."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import check_labels
from .configuration_prlstm import PRLSTMConfig


def sequence_classification_loss(
    logits: Tensor,
    labels: Tensor,
    config: PRLSTMConfig,
    num_items_in_batch: Tensor | int | None = None,
    **kwargs: Any,
) -> Tensor:
    """The loss of `PRLSTMForSequenceClassification`, for each `problem_type`.

    Transformers' own divides by `num_items_in_batch` for single-label classification alone, so that Trainer's
    gradients of the other two grow with the accumulation steps. Here all three divide. As there, the problem type that
    the first labels show is written to the config: pipelines read their scores by it.

    Args:
        logits: [B, num_labels].
        labels: regression: floats [B] or [B, num_labels]; single-label: classes [B], -100 where there is none;
            multi-label: 0 or 1, or a probability, for each class [B, num_labels].
        config: its `problem_type` chooses. None: regression for one label, single-label for integer labels,
            multi-label for others.
        num_items_in_batch: the number of labels, over all processes and accumulation steps, that the sum is divided
            by. None: the mean over this batch. Trainer does not count labels of exactly -100, also of regression.
        **kwargs: further arguments of transformers' losses; not used.

    Returns:
        Mean squared error, cross entropy or binary cross entropy, a float32 scalar (float64 for such logits).

    Raises:
        TypeError: for labels that are no tensor.
        ValueError: for labels whose shape, dtype or range does not fit the problem type.
    """
    problem_type = check_labels(labels, logits.shape, config)
    if not torch.compiler.is_compiling():
        config.problem_type = problem_type
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    labels = labels.to(logits.device)
    reduction = "mean" if num_items_in_batch is None else "sum"
    if problem_type == "single_label_classification":
        loss = F.cross_entropy(logits, labels.flatten().long(), reduction=reduction)
    else:
        measure = F.mse_loss if problem_type == "regression" else F.binary_cross_entropy_with_logits
        loss = measure(logits, labels.reshape(logits.shape).to(logits.dtype), reduction=reduction)
    return loss if num_items_in_batch is None else loss / _on(loss.device, num_items_in_batch)


def token_classification_loss(
    logits: Tensor,
    labels: Tensor,
    config: PRLSTMConfig,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100,
    **kwargs: Any,
) -> Tensor:
    """The loss of `PRLSTMForTokenClassification`: transformers' own, summed by the whole GPU.

    PyTorch's mean cross entropy is summed by one program, which takes as long as a third of a tree's forward.

    Args:
        logits: [..., C].
        labels: classes [...], `ignore_index` where there is none.
        config: not used.
        num_items_in_batch: as in `sequence_classification_loss`.
        ignore_index: see `labels`.
        **kwargs: further arguments of transformers' losses; not used.

    Returns:
        Cross entropy, a float32 scalar (float64 for such logits): the mean of those labelled, NaN if none is.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2)
    labels = labels.flatten().to(logits.device)
    total = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none").sum()
    if num_items_in_batch is None:
        return total / (labels != ignore_index).sum()
    return total / _on(total.device, num_items_in_batch)


def _on(device: torch.device, number: Tensor | int) -> Tensor | int:
    return number.to(device) if isinstance(number, Tensor) else number
