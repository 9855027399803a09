"""Scan, reduce and a naive recursion are one schedule."""

import pytest
import torch
from torch.nn import functional as F

from modeling_prlstm import PRLSTMModel
from modeling_prlstm.cells import CELLS

from .reference import fold_by_recursion, small_config

LENGTHS = range(1, 131)


@pytest.fixture(params=CELLS)
def composer(request):
    torch.manual_seed(0)
    return PRLSTMModel(small_config(request.param)).composer.double()


def tokens_of(batch, length):
    return torch.randint(5, (batch, length), generator=torch.Generator().manual_seed(length))


def test_scan_and_reduce_agree_at_every_length(composer):
    longest = tokens_of(2, LENGTHS[-1])
    _, prefixes = composer(longest)
    for length in LENGTHS:
        _, scanned = composer(longest[:, :length])
        _, reduced = composer(longest[:, :length], every_prefix=False)
        torch.testing.assert_close(scanned, prefixes[:, :length])
        torch.testing.assert_close(reduced, prefixes[:, length - 1])


def test_rows_of_their_own_lengths(composer):
    lengths = torch.tensor([*LENGTHS])
    tokens = tokens_of(len(lengths), LENGTHS[-1])
    _, prefixes = composer(tokens)
    _, reduced = composer(tokens, lengths, every_prefix=False)
    torch.testing.assert_close(reduced, prefixes[torch.arange(len(lengths)), lengths - 1])


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 11, 21, 32])
def test_against_merging_one_pair_at_a_time(composer, length):
    tokens = tokens_of(1, length)
    leaves = composer.cell.leaf(composer.leaf(F.one_hot(tokens[0], 5).double()))
    _, prefixes = composer(tokens)
    for n in range(1, length + 1):
        torch.testing.assert_close(prefixes[0, n - 1], fold_by_recursion(composer, leaves, n)[0])


@pytest.mark.parametrize("every_prefix", [True, False])
@pytest.mark.parametrize("lengths", [None, torch.tensor([7, 4])])
def test_gradcheck(composer, every_prefix, lengths):
    inputs = torch.randn(2, 7, 5, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*composer.named_parameters(), strict=True)

    def states(inputs, *parameters):
        named = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(composer, named, (inputs, lengths, every_prefix))[1]

    # The products of the fused backward round by how their buffers lie in memory: equal to the last bits, not to all.
    assert torch.autograd.gradcheck(states, (inputs, *parameters), fast_mode=True, nondet_tol=1e-12)


def test_small_and_large_vocabularies_give_the_same_leaves(composer):
    tokens = tokens_of(1, 3)  # fewer tokens than ids: looked up one by one
    many = tokens.repeat(4, 1)  # more: each id's leaf once
    torch.testing.assert_close(composer(many)[1], composer(tokens)[1].expand(4, -1, -1))


def test_nothing_after_a_position_matters(composer):
    tokens = tokens_of(1, 40)
    _, before = composer(tokens)
    tokens[:, 23:] = (tokens[:, 23:] + 1) % 5
    _, after = composer(tokens)
    assert torch.equal(before[:, :23], after[:, :23])


@pytest.mark.parametrize("every_prefix", [True, False])
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_rows_of_one_token_give_all_weights_gradients(composer, backend, every_prefix):
    composer.config.backend = backend
    _, states = composer(tokens_of(3, 1), every_prefix=every_prefix)
    assert states.shape == ((3, 1, states.shape[-1]) if every_prefix else (3, states.shape[-1]))
    torch.testing.assert_close(states, composer.eval()(tokens_of(3, 1), every_prefix=every_prefix)[1])
    states.sum().backward()
    assert all(parameter.grad is not None for parameter in composer.parameters())
