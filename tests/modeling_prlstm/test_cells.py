"""Each cell against its equation written out for one vector, and its dtypes."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from modeling_prlstm.cells import CELLS

H = 3


def weights(cell, dtype=torch.float64):
    torch.manual_seed(0)
    make = lambda *shape: torch.randn(shape, dtype=dtype, requires_grad=True)  # noqa: E731
    merge = make(cell.merge_width * H, 2 * H), make(cell.merge_width * H)
    refine = (make(cell.refine_width * H, H), make(cell.refine_width * H)) if cell.refine else None
    return merge, refine


def linear(weight, bias):
    """The map of a layer with these parameters; see `cells.Linear`."""
    return lambda inputs, rows=slice(None): F.linear(inputs, weight[rows], bias[rows])


def test_lstm_merge_is_its_equation():
    (weight, bias), _ = weights(CELLS["lstm"])
    hidden, cell = torch.randn(2, 2, H, dtype=torch.float64)
    i, g, o, f_left, f_right = (weight @ torch.cat((hidden[0], hidden[1])) + bias).chunk(5)
    c = i.sigmoid() * g.tanh() + f_left.sigmoid() * cell[0] + f_right.sigmoid() * cell[1]
    got_hidden, got_cell = CELLS["lstm"].merge((hidden, cell), linear(weight, bias))
    torch.testing.assert_close(got_cell, c)
    torch.testing.assert_close(got_hidden, o.sigmoid() * c.tanh())


def test_lstm_refine_is_its_equation():
    _, (weight, bias) = weights(CELLS["lstm"])
    hidden, cell = torch.randn(2, H, dtype=torch.float64)
    i, g, o, f = (weight @ hidden + bias).chunk(4)
    c = i.sigmoid() * g.tanh() + f.sigmoid() * cell
    got_hidden, got_cell = CELLS["lstm"].refine((hidden, cell), linear(weight, bias))
    torch.testing.assert_close(got_cell, c)
    torch.testing.assert_close(got_hidden, o.sigmoid() * c.tanh())


def test_gru_merge_takes_the_right_state_as_previous():
    (weight, bias), _ = weights(CELLS["gru"])
    x, s = torch.randn(2, H, dtype=torch.float64)
    w_z, w_r, w_a = weight.chunk(3)
    b_z, b_r, b_a = bias.chunk(3)
    z = (w_z[:, :H] @ x + w_z[:, H:] @ s + b_z).sigmoid()
    r = (w_r[:, :H] @ x + w_r[:, H:] @ s + b_r).sigmoid()
    a = (w_a[:, :H] @ x + w_a[:, H:] @ (r * s) + b_a).tanh()
    (got,) = CELLS["gru"].merge((torch.stack((x, s)),), linear(weight, bias))
    torch.testing.assert_close(got, (1 - z) * s + z * a)


@pytest.mark.parametrize("name", CELLS)
def test_gradients(name):
    cell = CELLS[name]
    (weight, bias), refine = weights(cell)
    parts = len(cell.leaf(torch.randn(cell.leaf_width * H)))
    product = torch.randn(2, cell.leaf_width * H, dtype=torch.float64, requires_grad=True)
    pair = tuple(torch.randn(2, 2, H, dtype=torch.float64, requires_grad=True) for _ in range(parts))
    assert gradcheck(cell.leaf, product)
    assert gradcheck(lambda w, b, *pair: cell.merge(pair, linear(w, b)), (weight, bias, *pair))
    if cell.refine:
        assert gradcheck(lambda w, b, *state: cell.refine(state, linear(w, b)), (*refine, *(p[0] for p in pair)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_cell_state_is_at_least_float32(dtype):
    (weight, bias), (refine_weight, refine_bias) = weights(CELLS["lstm"], dtype)
    state = CELLS["lstm"].leaf(torch.randn(2, 3 * H).to(dtype))
    for hidden, cell in (
        state,
        CELLS["lstm"].merge(tuple(part.unsqueeze(0) for part in state), linear(weight, bias)),
        CELLS["lstm"].refine(state, linear(refine_weight, refine_bias)),
    ):
        assert hidden.dtype == dtype
        assert cell.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
