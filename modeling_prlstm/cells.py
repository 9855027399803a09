"""The reference mathematics of one leaf, one merge and one refinement (paper section 3), in plain PyTorch.

Pure functions of tensors: no modules, no schedule. Every faster path is compared with these.

A state is a tuple of tensors of width H, the hidden state first: `(hidden, cell)` for the LSTM cells, `(hidden,)` for
the others. In a *pair* each tensor has shape [..., 2, H], left state first. Hidden states have the dtype of the
matrix products; the sums of the gates and the LSTM's cell state stay in float32 (or float64) under any autocast.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

State = tuple[Tensor, ...]


class Linear(Protocol):
    """A linear map with its bias."""

    def __call__(self, inputs: Tensor, rows: slice | None = None) -> Tensor:
        """The product [..., out] of `inputs` [..., in], or those `rows` of it alone."""


class Cell(NamedTuple):
    """A kind of cell: its three functions, and how many vectors of width H each of their products has.

    Attributes:
        leaf: `leaf(product)`, where `product` [..., leaf_width * H] is `W_leaf x + b_leaf`; gives a state [..., H].
        merge: `merge(pair, linear)`, where `linear` maps 2H inputs to merge_width * H; gives a state [..., H].
        refine: `refine(state, linear)`, where `linear` maps H inputs to refine_width * H; gives a state [..., H].
            None where the paper defines none.
        leaf_width: vectors in the leaf's product.
        merge_width: vectors in the merge's product.
        refine_width: vectors in the refinement's product.
        merge_fan_in: inputs of one product of the merge, in multiples of H; scales its initialisation.
    """

    leaf: Callable[[Tensor], State]
    merge: Callable[[State, Linear], State]
    refine: Callable[[State, Linear], State] | None
    leaf_width: int
    merge_width: int
    refine_width: int
    merge_fan_in: int


def lstm_leaf(product: Tensor) -> State:
    """LSTM leaf. `product`: [..., 3H], rows i, g, o."""
    i, g, o = _sums(product, 3)
    cell = i.sigmoid() * g.tanh()
    return _lstm_state(o, cell, product.dtype)


def lstm_merge(pair: State, linear: Linear) -> State:
    """LSTM binary cell. `linear`: 2H to 5H, rows i, g, o, f_left, f_right."""
    hidden, cell = pair
    product = linear(hidden.flatten(-2))
    i, g, o, f_left, f_right = _sums(product, 5)
    left, right = cell.unbind(-2)
    cell = i.sigmoid() * g.tanh() + f_left.sigmoid() * left + f_right.sigmoid() * right
    return _lstm_state(o, cell, product.dtype)


def lstm_refine(state: State, linear: Linear) -> State:
    """LSTM refinement ("unary") cell. `linear`: H to 4H, rows i, g, o, f."""
    hidden, cell = state
    product = linear(hidden)
    i, g, o, f = _sums(product, 4)
    cell = i.sigmoid() * g.tanh() + f.sigmoid() * cell
    return _lstm_state(o, cell, product.dtype)


def rnn_leaf(product: Tensor) -> State:
    """RNN leaf, the linear map alone. `product`: [..., H]."""
    return (product,)


def rnn_merge(pair: State, linear: Linear) -> State:
    """RNN binary cell. `linear`: 2H to H."""
    (hidden,) = pair
    return (linear(hidden.flatten(-2)).relu(),)


def rnn_refine(state: State, linear: Linear) -> State:
    """RNN refinement cell. `linear`: H to H."""
    (hidden,) = state
    return (linear(hidden).relu(),)


def gru_merge(pair: State, linear: Linear) -> State:
    """GRU binary cell: the left state is the GRU's input, the right one its previous state.

    `linear`: 2H to 3H, rows z, r, a, columns left, right.
    """
    (hidden,) = pair
    left, right = hidden.unbind(-2)
    size = right.shape[-1]
    gates = linear(hidden.flatten(-2), slice(2 * size))
    z, r = (gate.sigmoid() for gate in _sums(gates, 2))
    gated = torch.cat((left, (r * right).to(left.dtype)), dim=-1)
    (a,) = _sums(linear(gated, slice(2 * size, None)), 1)
    return (((1 - z) * right + z * a.tanh()).to(gates.dtype),)


def _sums(product: Tensor, count: int) -> tuple[Tensor, ...]:
    """The `count` vectors of a product [..., count * H], in float32 at least: [..., H] each."""
    return product.to(torch.promote_types(product.dtype, torch.float32)).chunk(count, dim=-1)


def _lstm_state(o: Tensor, cell: Tensor, dtype: torch.dtype) -> State:
    return (o.sigmoid() * cell.tanh()).to(dtype), cell


CELLS: dict[str, Cell] = {
    "lstm": Cell(lstm_leaf, lstm_merge, lstm_refine, leaf_width=3, merge_width=5, refine_width=4, merge_fan_in=2),
    "rnn": Cell(rnn_leaf, rnn_merge, rnn_refine, leaf_width=1, merge_width=1, refine_width=1, merge_fan_in=2),
    # The two halves of a GRU's product are separate maps in the paper's code, each of fan-in H.
    "gru": Cell(rnn_leaf, gru_merge, None, leaf_width=1, merge_width=3, refine_width=0, merge_fan_in=1),
}
