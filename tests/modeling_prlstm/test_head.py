"""The head's kernels against PyTorch's layers: logits and every gradient, at odd sizes."""

import pytest
import torch
from torch.nn import functional as F

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
