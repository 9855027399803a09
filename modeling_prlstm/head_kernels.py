"""The paper's head, `W relu(h) + b`, as Triton kernels: for few classes a product is mostly the reading of its states.

PyTorch reads and writes all states five times, and its products with a few columns are slow. Here the forward reads
them once; the backward reads them once and writes their gradients. Imported only when it runs, as `cell_kernels.py`.
"""

# The arguments of a kernel are values of Triton's language, which have no Python types.
# mypy: disable-error-code="no-untyped-def"

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .graphs import refuse_second_derivative
from .kernel_parts import INTERPRETED, multiply, tl, total, triton

# Of more classes a product has enough columns to be fast.
MOST_CLASSES = 64

# So many sums of the weights' gradients, over some of the states each, are made before they are summed themselves.
PARTS = 128

# A program's states; in the forward, of fewer than `MANY` in all, fewer: for more processors to have some.
ROWS, FEW_ROWS, MANY = 32, 16, 4096

COLUMNS = 64


def classify(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`W relu(h) + b`.

    Args:
        states: h [..., H], float32, bfloat16 or float16.
        weight: W [C, H], in the dtype of the states.
        bias: b [C], likewise.

    Returns:
        The logits [..., C], likewise.
    """
    if len(weight) > MOST_CLASSES:
        return F.linear(states.relu(), weight, bias)
    with torch.cuda.device_of(states):
        return _Classify.apply(states, weight, bias)


class _Classify(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(states, weight)
        states, weight, bias = states.contiguous(), weight.contiguous(), bias.contiguous()
        classes = len(weight)
        logits = states.new_empty(*states.shape[:-1], classes)
        count = logits.numel() // classes
        sizes = _sizes(weight, FEW_ROWS if count < MANY else ROWS)
        _logits[(triton.cdiv(count, sizes["ROWS"]),)](states, weight, bias, logits, count, **sizes)
        return logits

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        refuse_second_derivative()
        states, weight = ctx.saved_tensors
        states, weight = states.contiguous(), weight.contiguous()
        classes, size = weight.shape
        count = states.numel() // size
        of_states = torch.empty_like(states)
        sums = states.new_empty(min(PARTS, triton.cdiv(count, ROWS)), classes * (size + 1), dtype=torch.float32)
        grid = len(sums), triton.cdiv(size, COLUMNS)
        _logits_backward[grid](states, weight, gradient.contiguous(), of_states, sums, count, **_sizes(weight, ROWS))
        found = total(sums).to(weight.dtype)
        return of_states, found[: classes * size].view(classes, size), found[classes * size :]


def _sizes(weight: Tensor, rows: int) -> dict[str, Any]:
    classes, size = weight.shape
    return {
        "CLASSES": classes,
        "SIZE": size,
        "PADDED": max(16, triton.next_power_of_2(classes)),
        "WIDEN": INTERPRETED and weight.dtype == torch.bfloat16,
        "ROWS": rows,
        "COLUMNS": COLUMNS,
    }


@triton.jit
def _relu(x):
    return tl.where(x < 0, 0.0, x).to(x.dtype)  # NaN stays


@triton.jit(do_not_specialize=["count"])
def _logits(
    states_ptr,  # [count, SIZE]
    weight_ptr,  # [CLASSES, SIZE]
    bias_ptr,  # [CLASSES]
    logits_ptr,  # [count, CLASSES]
    count,
    CLASSES: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,  # a power of 2 of at least CLASSES
    WIDEN: tl.constexpr,  # the interpreter cannot multiply bfloat16
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """`classify`, of ROWS states."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    classes = tl.arange(0, PADDED)
    logits = tl.zeros((ROWS, PADDED), tl.float32)
    for start in range(0, SIZE, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        inside = (rows < count)[:, None] & (columns < SIZE)[None, :]
        x = tl.load(states_ptr + rows[:, None] * SIZE + columns[None, :], mask=inside, other=0.0)
        w_inside = (columns < SIZE)[:, None] & (classes < CLASSES)[None, :]
        w = tl.load(weight_ptr + classes[None, :] * SIZE + columns[:, None], mask=w_inside, other=0.0)
        logits = multiply(_relu(x), w, logits, WIDEN)
    logits += tl.load(bias_ptr + classes, mask=classes < CLASSES, other=0.0).to(tl.float32)[None, :]
    at = rows[:, None] * CLASSES + classes[None, :]
    inside = (rows < count)[:, None] & (classes < CLASSES)[None, :]
    tl.store(logits_ptr + at, logits.to(logits_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["count"])
def _logits_backward(
    states_ptr,  # [count, SIZE]
    weight_ptr,  # [CLASSES, SIZE]
    gradient_ptr,  # [count, CLASSES]
    of_states_ptr,  # [count, SIZE]
    sums_ptr,  # [programs, CLASSES * SIZE + CLASSES], float32: the weight's gradients and the bias's
    count,
    CLASSES: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradients of `classify`'s states, and sums of its weights' over every so many states; COLUMNS of each."""
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    classes = tl.arange(0, PADDED)
    in_columns = (columns < SIZE)[None, :]
    w_at = classes[:, None] * SIZE + columns[None, :]
    w_inside = (classes < CLASSES)[:, None] & in_columns
    w = tl.load(weight_ptr + w_at, mask=w_inside, other=0.0)
    of_weight = tl.zeros((PADDED, COLUMNS), tl.float32)
    of_bias = tl.zeros((PADDED, ROWS), tl.float32)
    for start in range(tl.program_id(0) * ROWS, count, tl.num_programs(0) * ROWS):
        rows = (start + tl.arange(0, ROWS)).to(tl.int64)
        inside = (rows < count)[:, None] & in_columns
        at = rows[:, None] * SIZE + columns[None, :]
        x = tl.load(states_ptr + at, mask=inside, other=0.0)
        given = (classes < CLASSES)[:, None] & (rows < count)[None, :]
        gradient = tl.load(gradient_ptr + rows[None, :] * CLASSES + classes[:, None], mask=given, other=0.0)
        of_bias += gradient.to(tl.float32)
        of_x = multiply(tl.trans(gradient), w, tl.zeros((ROWS, COLUMNS), tl.float32), WIDEN)
        of_x = tl.where(x > 0, of_x, 0.0)
        tl.store(of_states_ptr + at, of_x.to(of_states_ptr.dtype.element_ty), mask=inside)
        of_weight = multiply(gradient, _relu(x), of_weight, WIDEN)
    sums = sums_ptr + tl.program_id(0).to(tl.int64) * (CLASSES * SIZE + CLASSES)
    tl.store(sums + w_at, of_weight, mask=w_inside)
    if tl.program_id(1) == 0:
        tl.store(sums + CLASSES * SIZE + classes, tl.sum(of_bias, 1), mask=classes < CLASSES)
