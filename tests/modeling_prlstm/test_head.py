"""The head's kernels against PyTorch's layers: logits and every gradient, at odd sizes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from modeling_prlstm import PRLSTMConfig, PRLSTMForSequenceClassification

from .reference import HAS_TRITON, relative_error

if HAS_TRITON:
    from modeling_prlstm.head_kernels import MOST_CLASSES, classify

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}

pytestmark = [pytest.mark.pinned, pytest.mark.skipif(not HAS_TRITON, reason="needs triton")]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("shape", "classes"),
    [((1, 7), 2), ((5, 33), 1), ((3, 23, 256), 3), ((130, 64), 20), ((4200, 16), 5), ((3, 8), 65)],
)
def test_logits_and_gradients(dtype, shape, classes):
    """`torch.empty` gives NaN, so that reading what nothing wrote shows. The last has more classes than kernels do."""
    assert MOST_CLASSES == 64
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(size, generator=generator).to(dtype) for size in (shape, (classes, shape[-1]), (classes,))]
    gradient = torch.randn(*shape[:-1], classes, generator=generator).to(dtype)
    exact = [part.double().requires_grad_() for part in parts]
    expected = F.linear(exact[0].relu(), *exact[1:])
    expected.backward(gradient.double())
    torch.use_deterministic_algorithms(True)
    try:
        own = [part.to(DEVICE).requires_grad_() for part in parts]
        logits = classify(*own)
        logits.backward(gradient.to(DEVICE))
    finally:
        torch.use_deterministic_algorithms(False)
    assert logits.dtype == dtype
    found = logits, *(part.grad for part in own)
    for value, reference in zip(found, (expected, *(part.grad for part in exact)), strict=True):
        assert relative_error(value.detach().cpu().double(), reference.detach()) <= TOLERANCE[dtype]


def test_states_that_are_no_numbers_stay():
    states = torch.tensor([[float("nan"), 1.0], [-1.0, 1.0]], device=DEVICE)
    logits = classify(states, torch.ones(1, 2, device=DEVICE), torch.zeros(1, device=DEVICE))
    assert logits.isnan().flatten().tolist() == [True, False]


def test_second_derivatives_are_refused():
    """As those of the tree are, with which the head is one graph where that can be."""
    parts = [torch.randn(size, device=DEVICE, requires_grad=True) for size in ((5, 7), (3, 7), (3,))]
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(classify(*parts).square().sum(), parts, create_graph=True)


def model_of(backend, **config):
    torch.manual_seed(0)
    config = PRLSTMConfig(vocab_size=5, hidden_size=4, backend=backend, **config)
    return PRLSTMForSequenceClassification(config).to(DEVICE)


CHANGES = {
    "none": lambda model: None,
    "no bias": lambda model: setattr(model.classifier, "bias", None),
    "biases that are not contiguous": lambda model: [
        setattr(layer, "bias", nn.Parameter(layer.bias.detach().repeat_interleave(2)[::2] + 1))
        for layer in (model.classifier, model.prlstm.composer.merge.binary)
    ],
    "a hook": lambda model: model.classifier.register_forward_hook(lambda layer, inputs, output: 2 * output),
    "a hook before the head": lambda model: model.dropout.register_forward_hook(lambda layer, inputs, output: -output),
    "another layer": lambda model: setattr(model, "classifier", nn.Sequential(model.classifier, nn.Tanh())),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_heads(change):
    """The kernels give what the layers give, or leave it to them."""
    ids = torch.randint(5, (3, 6), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    found = []
    for backend in ("triton", "eager"):
        model = model_of(backend)
        CHANGES[change](model)
        for _ in range(3 if DEVICE == "cuda" else 1):  # a GPU's second batch of a shape is a graph's
            model.zero_grad()
            output = model(ids, labels=torch.tensor([0, 1, 1], device=DEVICE))
            output.loss.backward()
        found.append([output.logits.detach(), *(part.grad for part in model.parameters())])
    for value, expected in zip(*found, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_second_gpu(dropout):
    """While the first one is current; dropout keeps head and tree out of graphs, which set the device for both."""
    device = torch.device("cuda", 1)
    ids = torch.randint(5, (3, 6), generator=torch.Generator().manual_seed(0)).to(device)
    found = []
    for backend in ("triton", "eager"):
        model = model_of(backend, classifier_dropout=dropout).to(device)
        for _ in range(3):
            model.zero_grad()
            torch.manual_seed(0)
            output = model(ids, labels=torch.tensor([0, 1, 1], device=device))
            output.loss.backward()
        found.append([output.logits.detach(), *(part.grad for part in model.parameters())])
    for value, expected in zip(*found, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)


def test_layers_of_a_tree_that_runs_eager(monkeypatch):
    """Second derivatives included: where a hook keeps the tree from its kernels, the head uses none either."""
    model, reference = model_of("auto"), model_of("eager")
    model.prlstm.composer.merge.binary.register_forward_hook(lambda layer, inputs, output: output)
    monkeypatch.setattr("modeling_prlstm.head_kernels.classify", None)  # to call it is an error
    ids = torch.randint(5, (3, 6), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    for one in (model, reference):
        parameters = [*one.parameters()]
        first = torch.autograd.grad(one(ids).logits[:, 0].sum(), parameters, create_graph=True)
        sum(part.square().sum() for part in first).backward()
    for own, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(own.grad, expected.grad)
