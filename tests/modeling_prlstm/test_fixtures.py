"""The models against the authors' own code: states, logits, losses and every gradient."""

import pytest
import torch

from .reference import VARIANTS, Reference, relative_error

STATES, GRADIENTS = 2e-6, 1e-5


@pytest.fixture(params=VARIANTS)
def reference(request):
    return Reference(request.param)


def assert_gradients(model, expected):
    actual = dict(model.named_parameters())
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert relative_error(actual[name].grad, gradient) < GRADIENTS, name


def test_every_position(reference):
    model = reference.token_classifier()
    tokens, targets = reference.tensors["tokens"], reference.tensors["targets"]
    out = model(tokens, labels=targets, output_hidden_states=True)
    assert relative_error(out.hidden_states[-1], reference.tensors["hidden"]) < STATES
    assert relative_error(out.logits, reference.tensors["logits"]) < STATES
    assert out.loss.item() == pytest.approx(reference.meta["loss_all"], rel=STATES)
    out.loss.backward()
    assert_gradients(model, reference.named("grad_all"))


def test_last_position_by_reduce(reference):
    model = reference.sequence_classifier()
    tokens, targets = reference.tensors["tokens"], reference.tensors["targets"][:, -1]
    out = model(tokens, labels=targets)
    assert relative_error(out.logits, reference.tensors["logits"][:, -1]) < STATES
    assert out.loss.item() == pytest.approx(reference.meta["loss_last"], rel=STATES)
    out.loss.backward()
    assert_gradients(model, reference.named("grad_last"))


def test_every_prefix_by_reduce(reference):
    model = reference.token_classifier()
    tokens, hidden = reference.tensors["tokens"], reference.tensors["hidden"]
    for length in range(1, tokens.shape[1] + 1):
        pooled = model.prlstm(tokens[:, :length], pool_only=True).pooler_output
        assert relative_error(pooled, hidden[:, length - 1]) < STATES, length


def test_one_hot_vectors_are_the_same_input(reference):
    model = reference.token_classifier()
    tokens = reference.tensors["tokens"]
    one_hot = torch.nn.functional.one_hot(tokens, reference.config.vocab_size).float()
    assert relative_error(model(inputs_embeds=one_hot).logits, reference.tensors["logits"]) < STATES
