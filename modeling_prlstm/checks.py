"""What the models are given, checked before any work is done on it."""

import torch
from torch import Tensor

from .configuration_prlstm import PRLSTMConfig
from .fused import Bounds
from .padding import can_look_at, check_tensors, is_integer


def checked_inputs(
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
    config: PRLSTMConfig,
) -> Tensor:
    """The one input that is given, ids [B, T] or embeddings, after its checks."""
    inputs = well_formed_inputs(input_ids, inputs_embeds, attention_mask, config)
    if input_ids is not None:
        check_range(input_ids, attention_mask, config.vocab_size)
    return inputs


def well_formed_inputs(
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
    config: PRLSTMConfig,
) -> Tensor:
    """The one input that is given, after all checks but that of ids' range."""
    check_tensors(input_ids=input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask)
    if inputs_embeds is not None:
        if input_ids is not None:
            raise ValueError("Give either `input_ids` or `inputs_embeds`; got both.")
        width = config.embedding_size or config.vocab_size
        name = "vocab_size" if config.embedding_size is None else "embedding_size"
        if inputs_embeds.dim() != 3 or inputs_embeds.shape[2] != width or not inputs_embeds.is_floating_point():
            raise ValueError(
                f"`inputs_embeds` must be floating-point vectors of shape (batch, length, {name} = {width}), "
                f"got {inputs_embeds.dtype} of shape {tuple(inputs_embeds.shape)}."
            )
        _check_finite(inputs_embeds, attention_mask)
        inputs = inputs_embeds
    else:
        if input_ids is None:
            raise ValueError("Give either `input_ids` or `inputs_embeds`; got neither.")
        if input_ids.dim() != 2 or input_ids.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                "`input_ids` must be int64 or int32 ids of shape (batch, length), "
                f"got {input_ids.dtype} of shape {tuple(input_ids.shape)}."
            )
        inputs = input_ids
    if inputs.shape[0] == 0 or inputs.shape[1] == 0:
        raise ValueError(
            f"The input of shape {tuple(inputs.shape)} has no tokens: an empty sequence has no state. "
            "Give each row at least one token."
        )
    return inputs


def check_range(
    input_ids: Tensor, attention_mask: Tensor | None, vocab_size: int, bounds: Bounds | None = None
) -> None:
    """Raise unless the ids [B, T], whose `bounds` may be known, are below `vocab_size` where they are not padding."""
    if bounds is None and not can_look_at(input_ids):
        return
    low, high = bounds or torch.stack(input_ids.aminmax()).tolist()
    if low >= 0 and high < vocab_size:
        return
    outside = _at_tokens((input_ids < 0) | (input_ids >= vocab_size), attention_mask)
    if outside.any():
        row, position = outside.nonzero()[0].tolist()
        raise ValueError(
            f"`input_ids` must be from 0 to {vocab_size - 1} (`vocab_size` is {vocab_size}), "
            f"got {input_ids[row, position].item()} in row {row} at position {position}. Mark padding with a 0 in "
            "`attention_mask`."
        )


def _check_finite(inputs_embeds: Tensor, attention_mask: Tensor | None) -> None:
    if not can_look_at(inputs_embeds):
        return
    wrong = _at_tokens(~inputs_embeds.isfinite().all(dim=-1), attention_mask)
    if wrong.any():
        row, position = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"`inputs_embeds` must be finite, got NaN or infinity in row {row} at position {position}, which would "
            "reach every later state of the row. Mark padding with a 0 in `attention_mask`."
        )


def _at_tokens(wrong: Tensor, attention_mask: Tensor | None) -> Tensor:
    """`wrong` [B, T] without padding; a mask that does not fit has an error of its own."""
    fits = attention_mask is not None and attention_mask.shape == wrong.shape
    return wrong & (attention_mask != 0) if fits else wrong


def check_labels(
    labels: Tensor, logits_shape: tuple[int, ...], config: PRLSTMConfig, bounds: Bounds | None = None
) -> str:
    """The problem type of `config`, or that the labels of whole rows show, after a check that they fit it.

    Args:
        labels: of any shape and dtype.
        logits_shape: what they must fit.
        config: its `problem_type`; None: regression for one logit a row, classes for integers, else multi-label.
        bounds: of classes, if known.

    Raises:
        TypeError: for labels that are no tensor.
        ValueError: as `check_classes` or `check_targets`.
    """
    check_tensors(labels=labels)
    problem_type = config.problem_type
    if problem_type is None:
        if logits_shape[-1] == 1:
            problem_type = "regression"
        else:
            is_class = not labels.is_floating_point()
            problem_type = "single_label_classification" if is_class else "multi_label_classification"
    if problem_type == "single_label_classification":
        check_classes(labels, logits_shape, bounds)
    else:
        check_targets(labels, logits_shape, problem_type)
    return problem_type


def check_targets(labels: Tensor, logits_shape: tuple[int, ...], problem_type: str) -> None:
    """Raise unless `labels` has a target for each of the logits: finite for a regression, else a probability."""
    shape = tuple(logits_shape)
    if labels.shape != shape and not (shape[-1] == 1 and labels.shape == shape[:-1]):
        raise ValueError(
            f"`labels` must have one target for each of the logits {shape} for {problem_type}, "
            f"got the shape {tuple(labels.shape)}. `problem_type` in the config sets the kind of target."
        )
    if labels.is_complex():
        raise ValueError(f"`labels` must be real numbers for {problem_type}, got {labels.dtype}.")
    if not can_look_at(labels):
        return
    if problem_type == "regression":
        if not labels.isfinite().all():
            raise ValueError("`labels` must be finite for regression, got NaN or infinity.")
    elif not ((labels >= 0) & (labels <= 1)).all():
        raise ValueError(
            f"`labels` must be from 0 to 1 for {problem_type}, got {labels.unique().tolist()[:8]}: a number for each "
            "class, not the classes."
        )


def check_classes(labels: Tensor, logits_shape: tuple[int, ...], bounds: Bounds | None = None) -> None:
    """Raise unless `labels`, whose `bounds` may be known, has a class, or -100, for each row of logits [..., C]."""
    *rows, count = logits_shape
    shape = tuple(rows)
    fits = labels.shape == shape if len(shape) > 1 else labels.numel() == shape[0]  # of rows also [B, 1]
    if not (is_integer(labels) and fits):
        raise ValueError(
            f"`labels` must be integer classes of shape {shape}, got {labels.dtype} of shape {tuple(labels.shape)}. "
            "For classification of whole rows, `problem_type` in the config sets the kind of target."
        )
    if bounds is None and not can_look_at(labels):
        return
    low, high = bounds or torch.stack(labels.long().aminmax()).tolist()
    if low >= 0 and high < count:
        return
    labels = labels.long()
    outside = ((labels < 0) | (labels >= count)) & (labels != -100)
    if outside.any():
        raise ValueError(
            f"`labels` must be from 0 to {count - 1} (`num_labels` is {count}), or -100 where there is none, "
            f"got {labels[outside].unique().tolist()[:8]}."
        )
