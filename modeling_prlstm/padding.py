"""Padding and packing moved out of the way before the tree, and the results put back.

A prefix state depends on all tokens before it and there is no identity element to pad with, so the tokens of each
sequence are brought together at the start of a row of its own. A sequence's answer is then the same whatever it is
padded, batched or packed with.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .fused import Bounds
from .graphs import is_rehearsal


class Rows(NamedTuple):
    """A batch with one sequence a row, its tokens at the start.

    Attributes:
        inputs: ids [N, L] or embeddings [N, L, E] of N sequences, the longest of L tokens.
        lengths: tokens of each sequence [N], int64; None where all have L.
        places: for every position of the original batch [B, T] its token's place, -1 at padding: the place in its own
            row [B, T], or among all rows [1, B * T] where rows were packed. None where nothing was moved.
        shape: (B, T) of the original batch.
    """

    inputs: Tensor
    lengths: Tensor | None
    places: Tensor | None
    shape: tuple[int, int]

    def restore(self, states: Tensor) -> Tensor:
        """Put `states` [N, L, H] back to the positions of the original batch [B, T, H]; zeros at padding."""
        if self.places is None:
            return states
        size = states.shape[-1]
        states = states.reshape(self.places.shape[0], -1, size)
        index = self.places.clamp(min=0)[:, :, None].expand(-1, -1, size)
        restored = states.gather(1, index).masked_fill((self.places < 0)[:, :, None], 0)
        return restored.reshape(*self.shape, size)

    def last(self, states: Tensor) -> Tensor:
        """The state [N, H] of each sequence's last token, any of one without tokens, of `states` [N, L, H]."""
        if self.lengths is None:
            return states[:, -1]
        last = (self.lengths - 1).clamp(min=0)
        return states.gather(1, last[:, None, None].expand(-1, 1, states.shape[-1])).squeeze(1)


def can_look_at(tensor: Tensor) -> bool:
    """Whether values may decide what is done: not in a graph that is traced, nor in a CUDA graph being captured.

    Nor are there any on the meta device, nor one for all of `torch.func.vmap`'s batches.
    """
    if torch.compiler.is_compiling() or tensor.is_meta or is_rehearsal():
        return False
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    try:
        tensor.untyped_storage()
    except NotImplementedError:
        return False
    return True


def is_integer(tensor: Tensor) -> bool:
    """Whether its dtype is one of integers, which booleans are not."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def check_tensors(**arguments: object) -> None:
    """Raise a TypeError for what is neither None nor a tensor."""
    for name, value in arguments.items():
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(f"`{name}` must be a tensor, got {type(value).__name__}: use `torch.tensor(...)`.")


def one_sequence_a_row(
    inputs: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
) -> Rows:
    """Give each sequence of a batch a row of its own, its tokens at the start.

    The last three arguments, the keys of `DataCollatorWithFlattening`, say where packed sequences begin; one of them
    is enough. Without them each row is one sequence.

    Args:
        inputs: ids [B, T] or embeddings [B, T, E].
        attention_mask: [B, T], 1 at tokens and 0 at padding, on any side or scattered. None: no padding.
        position_ids: [B, T], integers; a sequence begins where they don't go on from the token before, by one or,
            over padding, by as many positions as there are.
        seq_idx: [B, T], integers, the number of each token's sequence.
        cu_seq_lens_q: the sequences' ends [number of sequences + 1] in a batch of one row, from 0 to T.

    Raises:
        TypeError: for an argument that is no tensor.
        ValueError: for a mask of another shape, with values other than 0 and 1 or a row of padding alone, for
            boundaries that don't fit the input, `cu_seq_lens_q` with padding alone between two of them, and boundaries
            where no values may be read.
    """
    check_tensors(position_ids=position_ids, seq_idx=seq_idx, cu_seq_lens_q=cu_seq_lens_q)
    shape = (inputs.shape[0], inputs.shape[1])
    tokens = None if attention_mask is None else _find_tokens(attention_mask, shape)
    if position_ids is None and seq_idx is None and cu_seq_lens_q is None:
        return Rows(inputs, None, None, shape) if tokens is None else _compact(inputs, tokens)
    if not can_look_at(inputs):
        raise ValueError(
            "`position_ids`, `seq_idx` and `cu_seq_lens_q` cannot be compiled, exported or captured: the number of "
            "packed sequences is known only from their values. Give one sequence a row, with an `attention_mask`."
        )
    is_token = torch.ones(shape, dtype=torch.bool, device=inputs.device) if tokens is None else tokens.where
    if cu_seq_lens_q is not None:
        seq_idx = _numbered(cu_seq_lens_q, is_token)
    return _unpack(inputs, is_token, _begins(is_token, position_ids, seq_idx))


class _Tokens(NamedTuple):
    """The tokens among padding: `where` they are [B, T], each row's number [B] of them, the least and the greatest.

    Of these two, where no values may be read, the bounds -1 and T.
    """

    where: Tensor
    lengths: Tensor
    shortest: int
    longest: int


def _compact(inputs: Tensor, tokens: _Tokens) -> Rows:
    """Bring the tokens of each row together at its start."""
    shape = (inputs.shape[0], inputs.shape[1])
    is_token, lengths, shortest, longest = tokens
    if shortest == shape[1]:
        return Rows(inputs, None, None, shape)
    order = is_token.cumsum(dim=1) - 1
    # Padding is written to one place behind the longest row, which is then cut off.
    target = order.masked_fill(~is_token, longest)
    moved = _scatter(inputs, target, longest + 1)[:, :longest]
    return Rows(moved, lengths, order.masked_fill(~is_token, -1), shape)


def _unpack(inputs: Tensor, is_token: Tensor, begins: Tensor) -> Rows:
    """Give each packed sequence a row: it goes from a position that `begins` [B, T] marks to the next one."""
    shape = (inputs.shape[0], inputs.shape[1])
    inputs, is_token, begins = inputs.flatten(0, 1), is_token.flatten(), begins.flatten()
    sequence, order = begins.cumsum(0) - 1, is_token.cumsum(0) - 1
    offset = order - order[begins][sequence.clamp(min=0)]
    lengths = torch.bincount(sequence[is_token])
    count, longest, shortest = len(lengths), *torch.stack((lengths.max(), lengths.min())).tolist()
    places = (sequence * longest + offset)[None]
    moved = _scatter(inputs[None], places.masked_fill(~is_token, count * longest), count * longest + 1)
    rows = moved[0, :-1].unflatten(0, (count, longest))
    return Rows(rows, None if shortest == longest else lengths, places.masked_fill(~is_token, -1), shape)


def _scatter(inputs: Tensor, target: Tensor, length: int) -> Tensor:
    """Zeros [B, length, ...] with `inputs` [B, T, ...] written to the positions `target` [B, T] of their rows."""
    if inputs.dim() == 3:
        target = target[:, :, None].expand(-1, -1, inputs.shape[2])
    return inputs.new_zeros(inputs.shape[0], length, *inputs.shape[2:]).scatter(1, target, inputs)


def _find_tokens(attention_mask: Tensor, shape: tuple[int, int]) -> _Tokens:
    """The tokens of a mask, after its checks."""
    check_mask_shape(attention_mask, shape)
    is_token = attention_mask != 0
    lengths = is_token.sum(dim=1)
    if not can_look_at(lengths):
        return _Tokens(is_token, lengths, -1, shape[1])
    # On a GPU, reading values twice would take longer than these.
    low, high, shortest, longest = torch.stack((*attention_mask.long().aminmax(), *lengths.aminmax())).tolist()
    check_mask(attention_mask, (low, high), (shortest, longest))
    return _Tokens(is_token, lengths, shortest, longest)


def check_mask_shape(attention_mask: Tensor, shape: tuple[int, int]) -> None:
    """Raise unless it is that of the input."""
    if attention_mask.shape != shape:
        raise ValueError(
            f"`attention_mask` must have the shape (batch, length) of the input, {shape}, "
            f"got {tuple(attention_mask.shape)}."
        )
    if attention_mask.is_complex():
        raise ValueError(f"`attention_mask` must hold 1 at tokens and 0 at padding, got {attention_mask.dtype}.")


def check_mask(attention_mask: Tensor, values: Bounds, lengths: Bounds) -> None:
    """Raise unless it has ones and zeros, and a one in each row: of its bounds, and those of its rows' ones."""
    low, high = values
    has_fractions = attention_mask.is_floating_point() and ((attention_mask != 0) & (attention_mask != 1)).any()
    if low < 0 or high > 1 or has_fractions:
        raise ValueError(
            f"`attention_mask` must hold 1 at tokens and 0 at padding, got {attention_mask.unique().tolist()[:8]}."
        )
    if lengths[0] == 0:
        empty = (~attention_mask.bool()).all(dim=1).nonzero().flatten().tolist()
        raise ValueError(
            f"`attention_mask` is 0 everywhere in row(s) {empty[:8]}: each row needs at "
            "least one token, because an empty sequence has no state. Remove these rows from the batch."
        )


def _begins(is_token: Tensor, position_ids: Tensor | None, seq_idx: Tensor | None) -> Tensor:
    """Where a sequence begins [B, T]: at each row's first token, and where the boundaries say so."""
    positions = torch.arange(is_token.shape[1], device=is_token.device).expand_as(is_token)
    latest = positions.masked_fill(~is_token, -1).cummax(dim=1).values
    before = F.pad(latest[:, :-1], (1, 0), value=-1)  # the position of the token before, -1 where there is none
    goes_on = before >= 0
    for name, values, step in (("position_ids", position_ids, 1), ("seq_idx", seq_idx, 0)):
        if values is None:
            continue
        if (
            not is_integer(values)
            or values.dim() not in (1, 2)
            or values.shape[-1] != is_token.shape[1]
            or values.shape[:-1] not in ((), (1,), is_token.shape[:1])
        ):
            raise ValueError(
                f"`{name}` must be integers of the shape (batch, length) of the input, {tuple(is_token.shape)}, "
                f"got {values.dtype} of shape {tuple(values.shape)}."
            )
        values = values.expand_as(is_token)
        steps = values - values.gather(1, before.clamp(min=0))
        goes_on = goes_on & ((steps == step) | (steps == step * (positions - before)))
    return is_token & ~goes_on


def _numbered(cu_seq_lens_q: Tensor, is_token: Tensor) -> Tensor:
    """The number of each token's sequence [1, T], of the sequences' ends."""
    shape, ends = tuple(is_token.shape), cu_seq_lens_q.flatten()
    fits = is_integer(ends) and shape[0] == 1 and len(ends) > 1 and ends[0] == 0 and ends[-1] == shape[1]
    if not fits or (ends.diff() < 1).any():
        raise ValueError(
            "`cu_seq_lens_q` must be integers that rise from 0 to the length of a batch of one row, got "
            f"{ends.tolist()[:8]} for a batch of shape {shape}."
        )
    numbers = torch.arange(len(ends) - 1, device=ends.device).repeat_interleave(ends.diff())
    empty = torch.bincount(numbers[is_token[0]], minlength=len(ends) - 1) == 0
    if empty.any():
        raise ValueError(
            f"`attention_mask` is 0 everywhere in sequence(s) {empty.nonzero().flatten().tolist()[:8]} of "
            "`cu_seq_lens_q`: each needs at least one token, because an empty sequence has no state. Leave them out."
        )
    return numbers[None]
