"""The tree composer: parameters put to work in the order of the schedule.

`reduce` gives the state of each row's last token with n - 1 merges, `scan` a state for every token with about 2n, both
in about log2(n) or 2 log2(n) steps. Complete subtrees are work shared by the padded batch; the folds follow each
row's own length.

This is also where a backend is chosen. `eager` is `cells.py` under autograd; the others are the fused paths, one
function for the whole tree: `fused` in plain PyTorch, `triton` in Triton kernels on a GPU.
"""

import importlib.util
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging

from .cells import CELLS, Cell, State
from .configuration_prlstm import PRLSTMConfig
from .fused import Arithmetic
from .fused_cpu import TorchArithmetic
from .graphs import Call, Function, Graphs, Tensors, can_capture, is_dual
from .layout import Form
from .schedule import TRACED_LEVELS, TRACED_STAGE, block_index, block_levels, num_levels
from .tree_function import Composition, compose

# Up to this many ids, the leaf of every id is computed once and looked up; above it, the leaf of every token.
SMALL_VOCABULARY = 1024

logger = logging.get_logger(__name__)


class PRLSTMBinary(nn.Linear):
    """The product of the binary cell (paper section 3): [..., 2H] to the sums of its gates, [..., 5H] of an LSTM's.

    Args:
        size: H.
        cell: its kind, which says how many gates there are.

    Attributes:
        fan_in: how many inputs one map of it has, for its initialisation.
    """

    def __init__(self, size: int, cell: Cell):
        super().__init__(2 * size, cell.merge_width * size)
        self.fan_in = cell.merge_fan_in * size


def acts_alone(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call of `module` runs the `forward` of `kind` and nothing else.

    If not, an adapter as LoRA's stands in its place, or a hook or offloading takes part: only a call has their effect.
    """
    alone = type(module).forward is kind.forward and "forward" not in module.__dict__
    return alone and not (has_hooks(module) or every_module_has_hooks())


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of `module` does more than its `forward` and what calls of all modules do."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks) or module._compiled_call_impl is not None


def every_module_has_hooks() -> bool:
    """Whether a call of any module does more than its `forward`."""
    return nn.modules.module._has_any_global_hook()


def call(layer: nn.Linear, inputs: Tensor, rows: slice | None = None) -> Tensor:
    """`layer(inputs)` [..., out], or those `rows` of it alone."""
    if rows is None:
        return layer(inputs)
    if acts_alone(layer, nn.Linear):
        return F.linear(inputs, layer.weight[rows], None if layer.bias is None else layer.bias[rows])
    return layer(inputs)[..., rows]


class PRLSTMMerge(GradientCheckpointingLayer):
    """One node of the tree (paper section 3): the binary cell, then R refinement cells with weights of their own.

    Args:
        config: R is its `num_refinements`.
    """

    def __init__(self, config: PRLSTMConfig):
        super().__init__()
        size = config.hidden_size
        self.cell = CELLS[config.cell_type]
        self.binary = PRLSTMBinary(size, self.cell)
        self.refine = nn.ModuleList(
            nn.Linear(size, self.cell.refine_width * size) for _ in range(config.num_refinements)
        )

    def forward(self, *pair: Tensor) -> State:
        """States [..., H] composed of a `pair`: each part of the states, [..., 2, H], left state first."""
        state = self.cell.merge(pair, partial(call, self.binary))
        if self.cell.refine is not None:
            for layer in self.refine:
                state = self.cell.refine(state, partial(call, layer))  # type: ignore[arg-type] # ModuleList's
        return state

    def acts_alone(self) -> bool:
        """Whether its layers' weights are all that decides what it gives; see the function `acts_alone`."""
        layers = (self.binary, *self.refine)
        return acts_alone(self, PRLSTMMerge) and all(acts_alone(layer, nn.Linear) for layer in layers)


class PRLSTMComposer(nn.Module):
    """Leaf and merge weights, and the schedule that applies them to a batch (paper section 3).

    Args:
        config: the sizes, the cells and the backend; see `PRLSTMConfig`.
    """

    def __init__(self, config: PRLSTMConfig):
        super().__init__()
        self.cell = CELLS[config.cell_type]
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size) if config.embedding_size else None
        self.leaf = nn.Linear(config.embedding_size or config.vocab_size, self.cell.leaf_width * config.hidden_size)
        self.merge = PRLSTMMerge(config)
        self.config = config
        self.graphs = Graphs()

    def _apply(self, *arguments: Any, **options: Any) -> "PRLSTMComposer":
        """As `nn.Module`'s, which `to`, `cpu`, `half` and others call: graphs are of the parameters as they were."""
        self.graphs.clear()
        return super()._apply(*arguments, **options)

    def forward(
        self, inputs: Tensor, lengths: Tensor | None = None, every_prefix: bool = True, with_leaves: bool = False
    ) -> tuple[Tensor | None, Tensor]:
        """Compose each row's tokens; every row's tokens stand at its start.

        Args:
            inputs: token ids [B, T] of an integer dtype, or embeddings [B, T, E] (one-hot mode: E = vocab_size).
            lengths: tokens in each row [B], int64, from 1 to T. None: all rows have T.
            every_prefix: True runs the scan, False the reduce.
            with_leaves: also return the leaves.

        Returns:
            The leaves' hidden states [B, T, H], or None, and those of prefixes: [B, T, H] by scan (past a row's
            length they have no meaning), [B, H] of whole rows by reduce. Their dtype is the weights' or autocast's.

        Raises:
            RuntimeError: if the backend that is asked for cannot run, or has no forward-mode derivatives.
            ValueError: for embeddings of another dtype than the weights', an embedding table with too few rows, and
                rows that are longer than a compiled model takes.
        """
        if torch.compiler.is_compiling():
            traced, hidden = self._trace(inputs, lengths, every_prefix)
            return traced if with_leaves else None, hidden
        ids, product = self._products(inputs)
        backend = choose_backend(self.config, product.device, product.dtype, self.merge.acts_alone())
        if backend != "eager":
            alone = _look_up(ids, self.cell.leaf(product)[:1])[0] if with_leaves else None
            return alone, self._compose(backend, ids, product, lengths, every_prefix)
        leaves = _look_up(ids, self.cell.leaf(product))
        batch, length = inputs.shape[:2]
        if self.training and length == 1:
            # The processes of a run wait for each other's gradients of all weights: merge, though nothing comes of it.
            lengths = torch.ones(batch, dtype=torch.int64, device=inputs.device)
            levels = self._up_sweep(tuple(part.expand(-1, 2, -1) for part in leaves))
        else:
            levels = self._up_sweep(leaves)
        if every_prefix:
            states = self._scan(levels)
        else:
            states = self._fold(levels, length) if lengths is None else self._fold_each(levels, lengths)
        return leaves[0] if with_leaves else None, _crop(states[0], length) if every_prefix else states[0]

    def _compose(
        self, backend: str, ids: Tensor | None, product: Tensor, lengths: Tensor | None, every_prefix: bool
    ) -> Tensor:
        """The prefixes' states by a fused path."""
        layers = (self.merge.binary, *self.merge.refine)
        weights = tuple(part.to(product.dtype) for layer in layers for part in (layer.weight, _bias_of(layer)))
        if any(map(is_dual, (product, *weights))):
            raise RuntimeError("The fast backends have no forward-mode derivatives. Use `backend='eager'`.")
        batch, length = (product if ids is None else ids).shape[:2]
        count = None if ids is None else len(product)
        how = self.composition(arithmetic_of(backend), (batch, length), count, lengths is not None, every_prefix)
        if not (can_capture(product.device) and how.can_capture):
            return compose(how, ids, product, lengths, *weights)

        precision = torch.backends.cuda.matmul.fp32_precision  # that of the arithmetic, also in a later backward

        def again(call: Call, backward: bool, tensors: Tensors) -> tuple[Tensor, ...]:
            depends_on = backend, precision, backward, how[1:]

            def size(differentiable: bool) -> int:
                return self.size(how, differentiable or backward)

            return self.graphs.run(Function(call, (), lambda parameters: call, depends_on, size), *tensors)

        if how.in_parts:
            return compose(how, ids, product, lengths, *weights, again=again)
        return again(lambda *inputs: (compose(how, *inputs),), False, (ids, product, lengths, *weights))[0]

    def composition(
        self, arithmetic: Arithmetic, shape: tuple[int, int], ids: int | None, each_length: bool, every_prefix: bool
    ) -> Composition:
        """How a fused backend composes a batch.

        Args:
            arithmetic: the backend's.
            shape: of the batch [B, T].
            ids: how many its tokens have, each with a leaf of its own; None: there is a leaf for every token.
            each_length: whether its rows have lengths of their own.
            every_prefix: as in `forward`.
        """
        form: Form = "every" if every_prefix else "each" if each_length else "whole"
        checkpoint = self.training and self.merge.gradient_checkpointing
        return Composition(arithmetic, form, *shape, ids, checkpoint)

    def size(self, how: Composition, differentiable: bool) -> int:
        """About how many bytes the buffers of a batch have, with a backward or without."""
        return how.size(self.config.hidden_size, len(self.merge.refine), differentiable)

    def _trace(self, inputs: Tensor, lengths: Tensor | None, every_prefix: bool) -> tuple[Tensor, Tensor]:
        """`forward` for a graph of any batch size and length, where no loop can depend on either.

        It runs a fixed number of levels. Every few of them are padded so that they halve without a remainder: blocks
        that hold padding are never read.
        """
        length, longest = inputs.shape[1], 2 ** (TRACED_LEVELS + 1) - 1
        # An export says itself for which lengths it is; a compiled model is made anew for others, and stops here.
        if not torch.compiler.is_exporting() and length > longest:
            raise ValueError(
                f"A compiled model takes up to {longest} tokens a row, got {length}. Use the model as it is."
            )
        ids, product = self._products(_pad_for_trace(inputs))
        leaves = _look_up(ids, self.cell.leaf(product))
        levels = [leaves]
        for level in range(1, TRACED_LEVELS + 1):
            left, right = (tuple(part[:, side::2] for part in levels[-1]) for side in (0, 1))
            merged = self._append(left, right)
            if level % TRACED_STAGE == 0:
                merged = tuple(_pad_for_trace(part) for part in merged)
            levels.append(merged)
        if every_prefix:
            return _crop(leaves[0], length), _crop(self._scan(levels)[0], length)
        if lengths is None:
            lengths = inputs.new_full((inputs.shape[0],), length, dtype=torch.int64)
        return _crop(leaves[0], length), self._fold_each(levels, lengths)[0]

    def _products(self, inputs: Tensor) -> tuple[Tensor | None, Tensor]:
        """The leaves' products, `W_leaf x + b_leaf`, of ids [B, T] or embeddings [B, T, E].

        A leaf depends on its token's id alone: of a small vocabulary, every id's is computed once.

        Returns:
            Either ids [B, T] and the products of all of them [V, leaf_width * H], or None and the products of all
            tokens [B, T, leaf_width * H].
        """
        if inputs.is_floating_point():
            alone = acts_alone(self.leaf, nn.Linear)
            if alone and inputs.dtype != self.leaf.weight.dtype and not _autocasts(inputs.device.type):
                raise ValueError(
                    f"`inputs_embeds` must have the dtype of the model's weights, {self.leaf.weight.dtype}, got "
                    f"{inputs.dtype}. Convert them, or run the model under `torch.autocast`."
                )
            return None, self.leaf(inputs)
        vocab_size, embed = self.config.vocab_size, self.embed_tokens
        # What else takes part, as NEFTune's noise, is meant for every token.
        alone = acts_alone(self.leaf, nn.Linear) and (embed is None or acts_alone(embed, nn.Embedding))
        if alone and embed is not None and len(embed.weight) < vocab_size:
            raise ValueError(
                f"The embedding table has {len(embed.weight)} rows for a `vocab_size` of {vocab_size}. Set it by "
                "`resize_token_embeddings`."
            )
        small = alone and vocab_size <= SMALL_VOCABULARY
        if embed is not None:
            product = self.leaf(embed(torch.arange(vocab_size, device=inputs.device) if small else inputs))
        elif alone:  # W_leaf times a one-hot vector is a column of W_leaf
            columns = self.leaf.weight.t()
            product = columns if small else F.embedding(inputs, columns)
            product = product if self.leaf.bias is None else product + self.leaf.bias
            product = product.to(_product_dtype(product))
        else:
            dtype = next((part.dtype for part in self.leaf.parameters() if part.is_floating_point()), torch.float32)
            one_hot = torch.zeros(*inputs.shape, vocab_size, dtype=dtype, device=inputs.device)
            # F.one_hot looks at the values, which a CUDA graph being captured forbids.
            product = self.leaf(one_hot.scatter(-1, inputs.long()[:, :, None], 1))
        return inputs if small else None, product

    def _up_sweep(self, leaves: State) -> list[State]:
        """The states of all complete blocks, by level: [B, T >> k, H] at level k.

        In this layout the pairs of a level lie side by side: a view, no copy.
        """
        levels = [leaves]
        for _ in range(num_levels(leaves[0].shape[1])):
            pairs = levels[-1][0].shape[1] // 2
            levels.append(self.merge(*(part[:, : 2 * pairs].unflatten(1, (pairs, 2)) for part in levels[-1])))
        return levels

    def _scan(self, levels: list[State]) -> State:
        """The states of all prefixes [B, T, H].

        Downwards, the prefixes that end where a block of level k ends are every second time known from the level
        above; the others append one block of level k to the prefix before them.
        """
        prefixes = levels[-1]
        for blocks in reversed(levels[:-1]):
            count = blocks[0].shape[1]
            known = tuple(_crop(part, count // 2) for part in prefixes)
            appended = tuple(part[:, 2::2] for part in blocks)
            before = tuple(_crop(part, (count - 1) // 2) for part in known)
            merged = self._append(before, appended)
            prefixes = tuple(
                torch.cat((first[:, :1], _interleave(even, odd)), dim=1)
                for first, even, odd in zip(blocks, known, merged, strict=True)
            )
        return prefixes

    def _fold(self, levels: list[State], length: int) -> State:
        """The states [B, H] of rows that all have `length` tokens."""
        first, *rest = (
            tuple(part[:, block_index(length, level)] for part in levels[level]) for level in block_levels(length)
        )
        for block in rest:
            first = self._append(first, block)
        return first

    def _fold_each(self, levels: list[State], lengths: Tensor) -> State:
        """The states [B, H] of rows with `lengths` [B] of their own: the folds of `_fold`, taken where they apply."""
        state = self._blocks(levels, lengths, len(levels) - 1)
        for level in reversed(range(len(levels) - 1)):
            ends_here = (lengths >> level)[:, None]
            block = self._blocks(levels, lengths, level)
            appended = self._append(state, block)
            state = tuple(
                torch.where(ends_here == 1, first, torch.where(ends_here % 2 == 1, both, before))
                for first, both, before in zip(block, appended, state, strict=True)
            )
        return state

    def _blocks(self, levels: list[State], lengths: Tensor, level: int) -> State:
        """The states [B, H] of the blocks of `level` that rows of `lengths` [B] end in; any, where they have none."""
        index = ((lengths >> level) - 1).clamp(min=0)[:, None, None]
        return tuple(part.gather(1, index.expand(-1, 1, part.shape[-1])).squeeze(1) for part in levels[level])

    def _append(self, state: State, block: State) -> State:
        """The states [..., H] of prefixes `state` [..., H] followed by `block` [..., H]."""
        return self.merge(*(torch.stack(pair, dim=-2) for pair in zip(state, block, strict=True)))


def choose_backend(config: PRLSTMConfig, device: torch.device, dtype: torch.dtype, alone: bool = True) -> str:
    """The backend, "eager", "fused" or "triton", that `config.backend` gives.

    Args:
        config: names it, or "auto".
        device: of the hidden states.
        dtype: of the hidden states.
        alone: whether the merges' weights are all that decides what they give; see `PRLSTMMerge.acts_alone`.

    Raises:
        RuntimeError: if the one asked for cannot run.
    """
    return _chosen(config.backend, config.cell_type, device, dtype, alone)


@cache
def _chosen(asked: str, cell_type: str, device: torch.device, dtype: torch.dtype, alone: bool) -> str:
    automatic = asked == "auto"
    backend = {"cpu": "fused", "cuda": "triton"}.get(device.type, "eager") if automatic else asked
    why_not = None
    if backend != "eager" and cell_type != "lstm":
        why_not = f"it has LSTM cells alone, and `cell_type` is {cell_type!r}"
    elif backend != "eager" and not alone:
        why_not = "it calls no layers, and an adapter, a hook or offloading takes part in calls of the merges' layers"
    elif backend == "triton":
        why_not = _why_not_triton(device, dtype)
    elif backend == "fused" and device.type == "meta":
        why_not = "it works in place, and tensors on meta have no memory"
    if automatic:
        reason = f" ({backend!r}: {why_not})" if why_not else ""
        backend = "eager" if why_not else backend
        # Whoever asks transformers for its own messages is told among these, others by Python's logging.
        own = logger if logging.get_verbosity() > logging.INFO else logging.get_logger(f"transformers.{__name__}")
        slower = why_not and device.type == "cuda"  # than the GPU could be
        tell = own.warning_once if slower else own.info_once
        tell(f"PR-LSTM runs its {backend!r} backend on {device.type}{reason}.")
    elif why_not:
        raise RuntimeError(f"`backend='{backend}'` cannot run: {why_not}. Use `backend='auto'`.")
    return backend


def _why_not_triton(device: torch.device, dtype: torch.dtype) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    try:
        from .cell_kernels import why_not
    except ImportError as error:
        return str(error)
    return why_not(device, dtype)


def arithmetic_of(backend: str) -> Arithmetic:
    """What a fused `backend` computes with."""
    if backend == "fused":
        return TorchArithmetic()
    from .cell_kernels import TritonArithmetic

    return TritonArithmetic()


def _bias_of(layer: nn.Linear) -> Tensor:
    """Zeros where it has none."""
    return layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias


def _look_up(ids: Tensor | None, states: State) -> State:
    """The states [B, T, H] of tokens: of `ids` [B, T] among all ids' [V, H]; None: as they are."""
    return states if ids is None else tuple(F.embedding(ids, part) for part in states)


def _interleave(first: Tensor, second: Tensor) -> Tensor:
    """`first` [B, n or n + 1, H] and `second` [B, n, H] taken in turns."""
    count = second.shape[1]
    both = torch.stack((first[:, :count], second), dim=2).flatten(1, 2)
    return torch.cat((both, first[:, count:]), dim=1)


def _crop(states: Tensor, length: int) -> Tensor:
    """The first `length` positions of `states` [B, T, H].

    A traced slice makes the graph ask whether it is contiguous, which depends on the length; a copy is.
    """
    if torch.compiler.is_compiling():
        return states[:, torch.arange(length, device=states.device)]
    return states[:, :length]


def _pad_for_trace(inputs: Tensor) -> Tensor:
    """`inputs` [B, T, ...] with its last position repeated up to a length that halves TRACED_STAGE times.

    To at least three chunks: a traced size that can be 0 or 1, as one less than two, would make a graph of its own.
    """
    chunk = 2**TRACED_STAGE
    length = inputs.shape[1]
    padded = ((length + chunk - 1) // chunk + 2) * chunk
    return inputs[:, torch.arange(padded, device=inputs.device).clamp(max=length - 1)]


def _product_dtype(product: Tensor) -> torch.dtype:
    """The dtype of a matrix product where `product` was made: autocast's, if it is on."""
    device = product.device.type
    return torch.get_autocast_dtype(device) if _autocasts(device) else product.dtype


def _autocasts(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
