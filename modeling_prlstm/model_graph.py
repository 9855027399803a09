"""A model with its head and loss as one CUDA graph: when it can be one, and its batches' checks."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .checks import check_classes, check_range, well_formed_inputs
from .composer import (
    SMALL_VOCABULARY,
    PRLSTMBinary,
    PRLSTMComposer,
    PRLSTMMerge,
    arithmetic_of,
    choose_backend,
    every_module_has_hooks,
    has_hooks,
)
from .configuration_prlstm import PRLSTMConfig
from .fused import Arithmetic, Bounds, Survey
from .graphs import Call, Checks, Function, Tensors, autocast_dtype, can_capture, is_dual, others_save_tensors
from .padding import check_mask

# Loss, logits and hidden states.
Classified = tuple[Tensor | None, Tensor, tuple[Tensor, ...] | None]

# Kinds of layers, with the names of their parameters.
KnownLayers = dict[type[nn.Module], frozenset[str]]

# What a CUDA graph of a whole model takes in, and the layers that it may have: of others it is not known what they do.
IN_GRAPH = {"input_ids", "attention_mask", "inputs_embeds", "labels", "num_items_in_batch"}
IN_LAYERS: KnownLayers = {
    **dict.fromkeys((PRLSTMComposer, PRLSTMMerge, nn.Dropout, nn.ModuleList), frozenset()),
    **dict.fromkeys((PRLSTMBinary, nn.Linear), frozenset({"weight", "bias"})),
    nn.Embedding: frozenset({"weight"}),
}

# The problem type of labels that are classes, and bounds that pass: of values that are looked at later.
CLASSES, TRUSTED = "single_label_classification", (0, 0)


class Layers(NamedTuple):
    """Those of a model with a head."""

    prlstm: Any  # a `PRLSTMModel`
    dropout: nn.Dropout
    classifier: nn.Linear


class Batch(NamedTuple):
    """A batch after its checks.

    Attributes:
        tensors: the arguments of `forward`, without a mask that hides nothing.
        shape: (B, T).
        ids: how many there are to choose from, if few; None where there are no ids.
        problem_type: that of the labels.
        checks: what is still to be checked; None: nothing is.
    """

    tensors: dict[str, Tensor]
    shape: tuple[int, int]
    ids: int | None
    problem_type: str | None
    checks: Checks | None


class GraphedClassifier(PreTrainedModel):
    """A model with a head that `_run` makes a graph of, together with its loss."""

    config: PRLSTMConfig
    prlstm: nn.Module
    dropout: nn.Dropout
    classifier: nn.Linear
    loss_function: Callable[..., Tensor]

    every_prefix: ClassVar[bool]  # whether the head reads all positions, or the last of each row
    own_loss: ClassVar[Callable[..., Tensor]]
    in_layers: ClassVar[KnownLayers]  # `IN_LAYERS`, with the model's own class

    def _classify(self, layers: Layers, *, alone: bool = False, **arguments: Any) -> Classified:
        """Loss, logits and hidden states by these `layers`, of the `arguments` of `forward`.

        Args:
            layers: see above.
            alone: whether the layers' parameters are known to be all that decides what these give.
            **arguments: see above.
        """
        raise NotImplementedError

    def _check_labels(self, labels: Tensor, logits_shape: tuple[int, ...], bounds: Bounds | None = None) -> str:
        """The problem type, after a check that the labels fit."""
        raise NotImplementedError

    def _run(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        inputs_embeds: Tensor | None,
        labels: Tensor | None,
        **kwargs: Any,
    ) -> Classified:
        """What `_classify` gives, of `forward`'s arguments: by one CUDA graph, after their checks, where it can."""
        arguments = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "inputs_embeds": inputs_embeds,
            "labels": labels,
            **kwargs,
        }
        layers = Layers(self.prlstm, self.dropout, self.classifier)
        tensors = {} if torch.compiler.is_compiling() else self._tensors_alone(arguments)
        parameters = self._parameters_alone(layers, tensors)
        if parameters is None:
            return self._classify(layers, **arguments)
        composer = layers.prlstm.composer
        dtype = autocast_dtype() or composer.leaf.weight.dtype
        backend = choose_backend(composer.config, parameters[0].device, dtype)
        if backend == "eager":
            return self._classify(layers, **arguments)
        arithmetic = arithmetic_of(backend)
        batch = self._checked(layers, tensors, arithmetic)
        if batch is None:
            return self._classify(layers, **arguments)
        each_length = "attention_mask" in batch.tensors
        how = composer.composition(arithmetic, batch.shape, batch.ids, each_length, self.every_prefix)
        if how.in_parts or not how.can_capture:
            return self._classify(layers, **arguments)

        def call(layers: Layers, *inputs: Tensor) -> tuple[Tensor, ...]:
            named = dict(zip(batch.tensors, inputs, strict=True))
            if batch.checks is not None and batch.problem_type == CLASSES:
                named["labels"] = _known_labels(named["labels"], layers.classifier.out_features)
            loss, logits, _ = self._classify(layers, **named, alone=True, output_hidden_states=False)
            return (logits,) if loss is None else (loss, logits)

        def rebind(others: Tensors) -> Call:
            memo = {id(own): other for own, other in zip(parameters, others, strict=True)}
            return partial(call, copy.deepcopy(layers, memo))  # the model's own may be in use by another thread

        # All that decides what the graph does, besides the inputs and the parameters.
        how_checked = batch.problem_type, batch.checks is None
        depends_on = type(self), self.training, backend, how[1:], *how_checked, *batch.tensors
        size = partial(composer.size, how)
        # Gradients in float16 must be made of a scaled loss.
        gives_loss = self.training and "labels" in tensors and dtype != torch.float16
        function = Function(partial(call, layers), parameters, rebind, depends_on, size, gives_loss, batch.checks)
        *loss, logits = composer.graphs.run(function, *batch.tensors.values())
        return loss[0] if loss else None, logits, None

    def _tensors_alone(self, arguments: dict[str, Any]) -> dict[str, Tensor]:
        """Those of the arguments that are tensors, if all others are nothing and a graph takes these in; else none."""
        arguments = {"output_hidden_states": self.config.output_hidden_states} | arguments
        tensors = {}
        for name, value in arguments.items():
            if isinstance(value, Tensor) and not is_dual(value):
                tensors[name] = value
            elif value is not None and value is not False:
                return {}
        own_loss = "labels" not in tensors or self.loss_function is self.own_loss
        return tensors if own_loss and tensors.keys() <= IN_GRAPH else {}

    def _parameters_alone(self, layers: Layers, tensors: dict[str, Tensor]) -> tuple[Tensor, ...] | None:
        """All parameters, if they and the tensors, on one GPU, decide what the layers give and nothing else does."""
        if not tensors:
            return None
        device = next(iter(tensors.values())).device
        if not can_capture(device) or others_save_tensors() or has_hooks(self) or every_module_has_hooks():
            return None
        parameters: list[Tensor] = []
        modules: list[nn.Module | None] = [*layers]
        for module in modules:  # as `Module.modules`, which takes as long as a graph's launch
            if module is not None:
                own = _parameters_of(module, self.in_layers)
                if own is None:
                    return None
                parameters += own
                modules += module._modules.values()
        on_one_device = all(part.device == device for part in (*tensors.values(), *parameters))
        return tuple(parameters) if _are_own(parameters) and on_one_device else None

    def _checked(self, layers: Layers, tensors: dict[str, Tensor], arithmetic: Arithmetic) -> Batch | None:
        """The batch, after the checks of `forward`'s arguments.

        None for what is rare, or so wrong that only a look at it says why; and if a mask hides half of the columns: a
        graph, which cannot look at it, would do twice the work.
        """
        ids, embeds, mask, labels = (
            tensors.get(name) for name in ("input_ids", "inputs_embeds", "attention_mask", "labels")
        )
        config = layers.prlstm.config
        # Shapes and dtypes first, and the values of embeddings and of targets that are no classes.
        inputs = well_formed_inputs(ids, embeds, mask, config)
        batch, length = shape = inputs.shape[0], inputs.shape[1]
        if mask is not None and (mask.shape != shape or mask.is_floating_point() or mask.is_complex()):
            return None
        logits_shape = *(shape if self.every_prefix else (batch,)), layers.classifier.out_features
        problem_type = None if labels is None else self._check_labels(labels, logits_shape, TRUSTED)
        classes = labels if problem_type == CLASSES else None
        vocab_size = config.vocab_size
        few = None if ids is None or vocab_size > SMALL_VOCABULARY else vocab_size

        def check(survey: Survey) -> None:
            if ids is not None:
                check_range(ids, mask, vocab_size, survey.ids)
            if classes is not None:
                check_classes(classes, logits_shape, survey.labels)

        def look(inputs: Tensors, found: Tensor | None) -> Tensor:
            named = dict(zip(tensors, inputs, strict=True))
            labels = None if classes is None else named["labels"]
            return arithmetic.look(named.get("input_ids"), None, labels, found)

        bears_ids = ids is None or (arithmetic.bears_unknown_ids and few is not None)
        if mask is None and bears_ids:
            checks = Checks(look, lambda found: check(arithmetic.survey(found)))
            return Batch(tensors, shape, few, problem_type, checks)
        found = arithmetic.look(ids, mask, classes)
        torch.cuda.current_stream(inputs.device).synchronize()
        survey = arithmetic.survey(found)
        check(survey)
        if mask is not None:
            check_mask(mask, survey.mask, survey.lengths)
            shortest, longest = survey.lengths
            if 2 * longest <= length:
                return None
            if shortest == length:
                tensors = {name: part for name, part in tensors.items() if name != "attention_mask"}
        return Batch(tensors, shape, few, problem_type, None)


def logits_of(layers: Layers, states: Tensor, config: PRLSTMConfig, alone: bool) -> Tensor:
    """By the paper's head `W relu(h) + b`; where the tree runs in kernels by one too, if nothing else takes part.

    Args:
        layers: of the model.
        states: h [..., H].
        config: the model's.
        alone: see `GraphedClassifier._classify`.

    Returns:
        The logits [..., num_labels].
    """
    tree, dropout, head = layers
    if not (alone or torch.compiler.is_compiling() or every_module_has_hooks()):
        own = _parameters_of(head)
        alone = own is not None and _are_own(own) and _parameters_of(dropout) is not None
    if alone and head.bias is not None:
        dtype = (autocast_dtype() if states.is_cuda else None) or head.weight.dtype
        of_tree = config, states.device, dtype, tree.composer.merge.acts_alone()
        if states.dtype == dtype and choose_backend(*of_tree) == "triton":
            from .head_kernels import classify

            return classify(states, head.weight.to(dtype), head.bias.to(dtype))
    return head(dropout(states.relu()))


def _known_labels(labels: Tensor, count: int) -> Tensor:
    """`labels` without those that are not from 0 to `count` - 1, which would end the GPU's work for good."""
    labels = labels.long()  # first: narrow ones have no -100, nor `count`
    return labels.masked_fill((labels < 0) | (labels >= count), -100)


def _parameters_of(module: nn.Module, in_layers: KnownLayers = IN_LAYERS) -> list[Tensor] | None:
    """Its own parameters, if they alone decide what it does; else None."""
    own = module._parameters
    if own.keys() != in_layers.get(type(module)) or "forward" in module.__dict__ or has_hooks(module):
        return None
    if isinstance(module, nn.Dropout) and module.training and module.p > 0:
        return None
    if isinstance(module, nn.Embedding) and (module.sparse or module.max_norm is not None):
        return None
    return [part for part in own.values() if part is not None]


def _are_own(parameters: list[Tensor]) -> bool:
    """Whether they are not those of a replica, nor spread over processes."""
    return all(type(part) is nn.Parameter for part in parameters)
