"""PR-LSTM models: the tree composer as transformers' `PreTrainedModel`s, with their heads and losses."""

import math
import os
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .composer import PRLSTMBinary, PRLSTMComposer
from .configuration_prlstm import PRLSTMConfig
from .padding import can_look_at, check_tensors, is_integer, one_sequence_a_row


class PRLSTMPreTrainedModel(PreTrainedModel):
    """What all PR-LSTM models share: configuration, initialisation and what they support of the library."""

    config: PRLSTMConfig
    base_model_prefix = "prlstm"
    supports_gradient_checkpointing = True
    _no_split_modules: tuple[str, ...] = ("PRLSTMComposer",)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let a class that FSDP2 makes of a model keep its name and module: saving finds the code by them."""
        super().__init_subclass__(**kwargs)
        if cls.__module__.startswith("torch."):
            model_class = cls.__bases__[-1]
            cls.__name__, cls.__module__ = model_class.__name__, model_class.__module__
        else:  # an automatic class is of the class that is registered for it, not of those derived from that
            cls._auto_class = None

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Every weight from a normal truncated at 2 sd, sd = 1/sqrt(fan-in); every bias 0 (paper's code)."""
        if isinstance(module, nn.Linear):
            fan_in = module.fan_in if isinstance(module, PRLSTMBinary) else module.in_features
            _truncated_normal_(module.weight, fan_in)
            if module.bias is not None:  # a derived class may have layers without
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            _truncated_normal_(module.weight, 1)

    @classmethod
    def from_pretrained(cls, *args: Any, use_safetensors: bool | None = True, **kwargs: Any) -> Self:
        """Load a model; arguments and errors as in transformers.

        Weights are read from safetensors alone, unless `use_safetensors` says otherwise: others must be unpickled.
        """
        try:
            return super().from_pretrained(*args, use_safetensors=use_safetensors, **kwargs)
        except OSError as error:
            if use_safetensors and "safetensors" in str(error):
                error.add_note(
                    "PR-LSTM reads weights from safetensors alone by default. `use_safetensors=False` unpickles those "
                    "of a source that you trust."
                )
            raise

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Write the model with its code; arguments as in transformers.

        The configuration then names a class for every head, so that without this package, too, any of them loads the
        folder, as a built-in model's would. Of a class derived from these, it names that class alone, if it is
        registered by `register_for_auto_class`.
        """
        auto_map = getattr(self.config, "auto_map", None) or {}
        auto_map = {name: code for name, code in auto_map.items() if not name.startswith("AutoModel")}
        if self._auto_class is not None and type(self).__module__ == __name__:
            auto_map |= {
                "AutoModel": "modeling_prlstm.PRLSTMModel",
                "AutoModelForSequenceClassification": "modeling_prlstm.PRLSTMForSequenceClassification",
                "AutoModelForTokenClassification": "modeling_prlstm.PRLSTMForTokenClassification",
            }
        self.config.auto_map = auto_map
        super().save_pretrained(save_directory, *args, **kwargs)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resize the embedding table; arguments as in transformers.

        Raises:
            ValueError: with one-hot tokens, which have none.
        """
        if self.get_input_embeddings() is None:
            raise ValueError(
                "`embedding_size` is None: tokens are one-hot and there is no embedding table to resize. Build the "
                "model with the `vocab_size` you need, or with an `embedding_size`."
            )
        return super().resize_token_embeddings(*args, **kwargs)


class PRLSTMModel(PRLSTMPreTrainedModel):
    """The bare Parallel Recursive LSTM: a state for every position, each of the tokens up to it alone.

    Args:
        config: the sizes; see `PRLSTMConfig`.
    """

    def __init__(self, config: PRLSTMConfig):
        super().__init__(config)
        self.composer = PRLSTMComposer(config)
        if config.embedding_size is not None:  # FSDP2 gives the table a unit of its own, which must come before others
            self._no_split_modules = (*self._no_split_modules, "Embedding")
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding | None:
        """The embedding table; None with one-hot tokens, which have none for NEFTune's noise or for resizing."""
        return self.composer.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the embedding table."""
        self.composer.embed_tokens = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pool_only: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Compose the tokens of each row.

        Args:
            input_ids: token ids [B, T], from 0 to vocab_size - 1 where they are not padding.
            attention_mask: [B, T], 1 at tokens and 0 at padding, which may stand on any side or scattered.
            inputs_embeds: in place of `input_ids`, vectors [B, T, embedding_size]; with one-hot tokens
                [B, T, vocab_size].
            pool_only: compute `pooler_output` alone, with half the merges; `last_hidden_state` is None.
            **kwargs: `output_hidden_states`: also return `hidden_states`, the hidden states of the leaves
                and the `last_hidden_state` (where the backend is not "eager", the leaves' are computed apart, and a
                loss of later states has no gradient with respect to them); `return_dict`; and for rows that pack
                several sequences, the keys of `DataCollatorWithFlattening` that say where these begin: `position_ids`
                or `seq_idx` [B, T], or `cu_seq_lens_q`.

        Returns:
            `last_hidden_state` [B, T, H], the state of the tokens up to each position, 0 at padding, and
            `pooler_output` [B, H], the state of each row's last token (of each sequence's, where rows are packed).

        Raises:
            TypeError: for an argument that is no tensor.
            ValueError: for both inputs or neither, an input of the wrong shape or dtype, ids out of range, a row
                without tokens.
        """
        inputs = _checked_inputs(input_ids, inputs_embeds, attention_mask, self.config)
        boundaries = {key: kwargs.get(key) for key in ("position_ids", "seq_idx", "cu_seq_lens_q")}
        rows = one_sequence_a_row(inputs, attention_mask, **boundaries)
        hidden_wanted = kwargs.get("output_hidden_states", self.config.output_hidden_states)
        every_prefix = hidden_wanted or not pool_only
        leaves, states = self.composer(rows.inputs, rows.lengths, every_prefix, with_leaves=hidden_wanted)
        if not every_prefix:
            return BaseModelOutputWithPooling(pooler_output=states)
        last_hidden_state = rows.restore(states)
        return BaseModelOutputWithPooling(
            last_hidden_state=last_hidden_state,
            pooler_output=rows.last(states),
            hidden_states=(rows.restore(leaves), last_hidden_state) if hidden_wanted else None,
        )


class PRLSTMForSequenceClassification(PRLSTMPreTrainedModel):
    """PR-LSTM with the paper's head, `W relu(h) + b`, on the state of each row's last token.

    Args:
        config: the sizes; see `PRLSTMConfig`. `num_labels` and `problem_type` shape the head and the loss.
    """

    def __init__(self, config: PRLSTMConfig):
        super().__init__(config)
        self.prlstm = PRLSTMModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.loss_function = sequence_classification_loss
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        """Classify each row.

        Args:
            input_ids: token ids [B, T].
            attention_mask: [B, T], 1 at tokens and 0 at padding.
            inputs_embeds: in place of `input_ids`, vectors [B, T, embedding_size or vocab_size].
            labels: integer classes [B]; or targets [B] or [B, num_labels] for regression, [B, num_labels] in {0, 1}
                for multi-label classification (see `sequence_classification_loss`).
            **kwargs: as in `PRLSTMModel.forward`; `num_items_in_batch` goes to the loss.

        Returns:
            `loss` (with labels), `logits` [B, num_labels] and, when asked for, `hidden_states`.

        Raises:
            TypeError, ValueError: as `PRLSTMModel.forward`, and for labels that don't fit.
        """
        outputs = self.prlstm(input_ids, attention_mask, inputs_embeds, pool_only=True, return_dict=True, **kwargs)
        logits = self.classifier(self.dropout(outputs.pooler_output.relu()))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, config=self.config, **kwargs)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


class PRLSTMForTokenClassification(PRLSTMPreTrainedModel):
    """PR-LSTM with the paper's head, `W relu(h) + b`, at every position.

    Args:
        config: the sizes; see `PRLSTMConfig`. `num_labels` is the number of classes.
    """

    def __init__(self, config: PRLSTMConfig):
        super().__init__(config)
        self.prlstm = PRLSTMModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        """Classify each position.

        Args:
            input_ids: token ids [B, T].
            attention_mask: [B, T], 1 at tokens and 0 at padding.
            inputs_embeds: in place of `input_ids`, vectors [B, T, embedding_size or vocab_size].
            labels: integer classes [B, T]; -100 where there is none.
            **kwargs: as in `PRLSTMModel.forward`; `num_items_in_batch` goes to the loss.

        Returns:
            `loss` (with labels: the mean cross entropy of the labelled positions), `logits` [B, T, num_labels] and,
            when asked for, `hidden_states`.

        Raises:
            TypeError, ValueError: as `PRLSTMModel.forward`, and for labels that don't fit.
        """
        outputs = self.prlstm(input_ids, attention_mask, inputs_embeds, return_dict=True, **kwargs)
        logits = self.classifier(self.dropout(outputs.last_hidden_state.relu()))
        loss = None
        if labels is not None:
            check_tensors(labels=labels)
            _check_classes(labels, logits)
            loss = self.loss_function(logits, labels.long(), config=self.config, **kwargs)
        return TokenClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


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
    check_tensors(labels=labels)
    problem_type = config.problem_type
    if problem_type is None:
        if config.num_labels == 1:
            problem_type = "regression"
        else:
            is_class = not labels.is_floating_point()
            problem_type = "single_label_classification" if is_class else "multi_label_classification"
        if not torch.compiler.is_compiling():
            config.problem_type = problem_type
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    labels = labels.to(logits.device)
    reduction = "mean" if num_items_in_batch is None else "sum"
    if problem_type == "single_label_classification":
        _check_classes(labels, logits)
        loss = F.cross_entropy(logits, labels.flatten().long(), reduction=reduction)
    else:
        if labels.numel() != logits.numel():
            raise ValueError(
                f"`labels` must have one target for each of the logits {tuple(logits.shape)} for {problem_type}, "
                f"got the shape {tuple(labels.shape)}. `problem_type` in the config sets the kind of target."
            )
        _check_targets(labels, problem_type)
        measure = F.mse_loss if problem_type == "regression" else F.binary_cross_entropy_with_logits
        loss = measure(logits, labels.reshape(logits.shape).to(logits.dtype), reduction=reduction)
    return loss if num_items_in_batch is None else loss / num_items_in_batch


def _checked_inputs(
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
    config: PRLSTMConfig,
) -> Tensor:
    """The one input that is given, ids [B, T] or embeddings [B, T, E], after its checks."""
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
    if input_ids is not None:
        _check_range(input_ids, attention_mask, config.vocab_size)
    return inputs


def _check_range(input_ids: Tensor, attention_mask: Tensor | None, vocab_size: int) -> None:
    if not can_look_at(input_ids):
        return
    low, high = torch.stack(input_ids.aminmax()).tolist()
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


def _check_targets(labels: Tensor, problem_type: str) -> None:
    """Raise for a regression's targets that are not finite, and for multi-label ones that are no probabilities."""
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


def _check_classes(labels: Tensor, logits: Tensor) -> None:
    """Raise unless `labels` has a class, or -100, for each row of `logits` [..., num_labels]."""
    shape, count = tuple(logits.shape[:-1]), logits.shape[-1]
    fits = labels.shape == shape if len(shape) > 1 else labels.numel() == shape[0]  # of rows also [B, 1]
    if not (is_integer(labels) and fits):
        raise ValueError(
            f"`labels` must be integer classes of shape {shape}, got {labels.dtype} of shape {tuple(labels.shape)}. "
            "For classification of whole rows, `problem_type` in the config sets the kind of target."
        )
    if not can_look_at(labels):
        return
    labels = labels.long()
    low, high = torch.stack(labels.aminmax()).tolist()
    if low >= 0 and high < count:
        return
    outside = ((labels < 0) | (labels >= count)) & (labels != -100)
    if outside.any():
        raise ValueError(
            f"`labels` must be from 0 to {count - 1} (`num_labels` is {count}), or -100 where there is none, "
            f"got {labels[outside].unique().tolist()[:8]}."
        )


def _truncated_normal_(weight: Tensor, fan_in: int) -> None:
    std = 1 / math.sqrt(fan_in)
    init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


__all__ = [
    "PRLSTMForSequenceClassification",
    "PRLSTMForTokenClassification",
    "PRLSTMModel",
    "PRLSTMPreTrainedModel",
]
