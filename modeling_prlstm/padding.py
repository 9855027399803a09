"""Padding moved out of the way before the tree, and the results put back.

A prefix state depends on all tokens before it and there is no identity element to pad with, so a row's tokens are
brought together at its start. The answer of a row is then the same whatever it is padded with, and where.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """A batch whose rows' tokens stand at the start of each row.

    Attributes:
        inputs: ids [B, T'] or embeddings [B, T', E]; T' <= T, the length of the longest row.
        lengths: tokens of each row [B], int64; None where all have T'.
        places: for every position of the original batch its token's place in the row [B, T], -1 at padding;
            None where nothing was moved or cut.
    """

    inputs: Tensor
    lengths: Tensor | None
    places: Tensor | None


def compact(inputs: Tensor, attention_mask: Tensor | None) -> Rows:
    """Bring the tokens of each row together at its start.

    Args:
        inputs: ids [B, T] or embeddings [B, T, E].
        attention_mask: [B, T], 1 at tokens and 0 at padding, on any side or scattered. None: no padding.

    Raises:
        ValueError: if the mask has another shape, values other than 0 and 1, or a row of padding alone.
    """
    if attention_mask is None:
        return Rows(inputs, None, None)
    if attention_mask.shape != inputs.shape[:2]:
        raise ValueError(
            f"`attention_mask` must have the shape (batch, length) of the input, {tuple(inputs.shape[:2])}, "
            f"got {tuple(attention_mask.shape)}."
        )
    is_token = attention_mask != 0
    lengths = is_token.sum(dim=1)
    longest = inputs.shape[1]
    if not torch.compiler.is_compiling():  # a traced graph can neither raise nor look at the lengths
        shortest, longest, wrong = torch.stack(
            (lengths.min(), lengths.max(), (is_token & (attention_mask != 1)).any())
        ).tolist()
        if wrong:
            raise ValueError(
                f"`attention_mask` must hold 1 at tokens and 0 at padding, got {attention_mask.unique().tolist()[:8]}."
            )
        if shortest == 0:
            rows = (lengths == 0).nonzero().flatten().tolist()
            raise ValueError(
                f"`attention_mask` is 0 everywhere in row(s) {rows[:8]}: each row needs at least one token, "
                "because an empty sequence has no state. Remove these rows from the batch."
            )
        if shortest == inputs.shape[1]:
            return Rows(inputs, None, None)
    order = is_token.cumsum(dim=1) - 1
    places = order.masked_fill(~is_token, -1)
    # Padding is written to one place behind the longest row, which is then cut off.
    target = order.masked_fill(~is_token, longest)
    if inputs.dim() == 2:
        moved = inputs.new_zeros(inputs.shape[0], longest + 1).scatter(1, target, inputs)
    else:
        width = inputs.shape[2]
        target = target[:, :, None].expand(-1, -1, width)
        moved = inputs.new_zeros(inputs.shape[0], longest + 1, width).scatter(1, target, inputs)
    return Rows(moved[:, :longest], lengths, places)


def restore(states: Tensor, places: Tensor | None) -> Tensor:
    """Put `states` [B, T', H] back to the positions [B, T] that `Rows.places` tells; zeros at padding."""
    if places is None:
        return states
    index = places.clamp(min=0)[:, :, None].expand(-1, -1, states.shape[-1])
    return states.gather(1, index).masked_fill((places < 0)[:, :, None], 0)


def last(states: Tensor, lengths: Tensor | None) -> Tensor:
    """The state [B, H] of each row's last token, of `states` [B, T', H]."""
    if lengths is None:
        return states[:, -1]
    return states.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, states.shape[-1])).squeeze(1)
