"""PR-LSTM models: the tree composer as transformers' `PreTrainedModel`s, with their heads and losses."""

import math
import os
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .checks import check_classes, check_labels, checked_inputs
from .composer import PRLSTMBinary, PRLSTMComposer
from .configuration_prlstm import PRLSTMConfig
from .fused import Bounds
from .losses import sequence_classification_loss, token_classification_loss
from .model_graph import CLASSES, IN_LAYERS, Classified, GraphedClassifier, Layers, logits_of
from .padding import check_tensors, one_sequence_a_row


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

    def enable_input_require_grads(self) -> None:
        """As in transformers; one-hot tokens have no embeddings that gradients could flow to, which is no fault."""
        if self.get_input_embeddings() is not None:
            super().enable_input_require_grads()

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
            `pooler_output` [B, H], the state of each row's last token (of each sequence's, where rows are packed); in
            the dtype of the weights, or of autocast.

        Raises:
            RuntimeError: if the config's `backend` cannot run here.
            TypeError: for an argument that is no tensor.
            ValueError: for both inputs or neither, an input of the wrong shape or dtype, ids out of range, a row
                without tokens.
        """
        inputs = checked_inputs(input_ids, inputs_embeds, attention_mask, self.config)
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


class _Classifier(PRLSTMPreTrainedModel, GraphedClassifier):
    """What the models with the paper's head share. On a GPU tree, head and loss are one CUDA graph.

    Args:
        config: the sizes; see `PRLSTMConfig`.
    """

    in_layers = IN_LAYERS | {PRLSTMModel: frozenset()}

    def __init__(self, config: PRLSTMConfig):
        super().__init__(config)
        self.prlstm = PRLSTMModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def _classify(
        self,
        layers: Layers,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        alone: bool = False,
        **kwargs: Any,
    ) -> Classified:
        """Loss, logits and hidden states by these `layers`, of the arguments of `forward`.

        Args:
            layers: see above.
            input_ids: see `forward`, as the next three.
            attention_mask: see `forward`.
            inputs_embeds: see `forward`.
            labels: see `forward`.
            alone: whether the layers' parameters are known to be all that decides what these give.
            **kwargs: see `forward`.
        """
        inputs = input_ids, attention_mask, inputs_embeds
        outputs = layers.prlstm(*inputs, pool_only=not self.every_prefix, return_dict=True, **kwargs)
        states = outputs.last_hidden_state if self.every_prefix else outputs.pooler_output
        logits = logits_of(layers, states, self.config, alone)
        loss = None if labels is None else self._loss(logits, labels, **kwargs)
        return loss, logits, outputs.hidden_states

    def _loss(self, logits: Tensor, labels: Tensor, **kwargs: Any) -> Tensor:
        return self.loss_function(logits, labels, config=self.config, **kwargs)


class PRLSTMForSequenceClassification(_Classifier):
    """PR-LSTM with the paper's head, `W relu(h) + b`, on the state of each row's last token.

    Args:
        config: the sizes; see `PRLSTMConfig`. `num_labels` and `problem_type` shape the head and the loss.
    """

    every_prefix = False
    own_loss = staticmethod(sequence_classification_loss)

    def __init__(self, config: PRLSTMConfig):
        super().__init__(config)
        self.loss_function = sequence_classification_loss

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
        return SequenceClassifierOutput(*self._run(input_ids, attention_mask, inputs_embeds, labels, **kwargs))

    def _check_labels(self, labels: Tensor, logits_shape: tuple[int, ...], bounds: Bounds | None = None) -> str:
        return check_labels(labels, logits_shape, self.config, bounds)


class PRLSTMForTokenClassification(_Classifier):
    """PR-LSTM with the paper's head, `W relu(h) + b`, at every position.

    Args:
        config: the sizes; see `PRLSTMConfig`. `num_labels` is the number of classes.
    """

    every_prefix = True
    own_loss = staticmethod(token_classification_loss)

    def __init__(self, config: PRLSTMConfig):
        super().__init__(config)
        self.loss_function = token_classification_loss

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
        return TokenClassifierOutput(*self._run(input_ids, attention_mask, inputs_embeds, labels, **kwargs))

    def _loss(self, logits: Tensor, labels: Tensor, **kwargs: Any) -> Tensor:
        self._check_labels(labels, logits.shape)
        return super()._loss(logits, labels.long(), **kwargs)

    def _check_labels(self, labels: Tensor, logits_shape: tuple[int, ...], bounds: Bounds | None = None) -> str:
        check_tensors(labels=labels)
        check_classes(labels, logits_shape, bounds)
        return CLASSES


def _truncated_normal_(weight: Tensor, fan_in: int) -> None:
    std = 1 / math.sqrt(fan_in)
    init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


__all__ = [
    "PRLSTMForSequenceClassification",
    "PRLSTMForTokenClassification",
    "PRLSTMModel",
    "PRLSTMPreTrainedModel",
]
