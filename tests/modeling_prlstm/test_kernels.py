"""The fused paths against the eager one: forward, every gradient, odd sizes, buffers that start as NaN.

The Triton kernels run through Triton's interpreter where there is no GPU, on the GPU itself where there is one.
"""

import copy
import logging
import pkgutil
from logging.handlers import BufferingHandler

import pytest
import torch
import transformers
from torch.autograd import forward_ad

from modeling_prlstm import PRLSTMConfig, PRLSTMModel, composer
from modeling_prlstm.composer import arithmetic_of, choose_backend

from .reference import HAS_TRITON, relative_error

DEVICE = {"fused": "cpu", "triton": "cuda" if torch.cuda.is_available() else "cpu"}
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
BACKENDS = ["fused", pytest.param("triton", marks=needs_triton)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}

pytestmark = [pytest.mark.pinned, pytest.mark.filterwarnings("ignore::DeprecationWarning:triton.*")]


@pytest.fixture(autouse=True)
def nan_buffers():
    """`torch.empty` gives NaN, so that reading what nothing wrote shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def states_and_gradients(model, backend, tokens, lengths, every_prefix, device="cpu", weighting=1.0):
    """The states and the gradients of all parameters, of a random weighting of the states."""
    model = model.to(device)
    model.config.backend = backend
    tokens, lengths = (None if part is None else part.to(device) for part in (tokens, lengths))
    found = []
    for _ in range(2 if device == "cuda" else 1):  # a GPU's second batch of a shape is a graph's
        model.zero_grad()
        states = model.composer(tokens, lengths, every_prefix)[1]
        if every_prefix and lengths is not None:
            states = states * (torch.arange(states.shape[1]).to(device) < lengths[:, None]).to(states)[:, :, None]
        weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(1)).to(states) * weighting
        (states * weights).sum().backward()
        parameters = model.named_parameters()
        gradients = {name: parameter.grad for name, parameter in parameters if parameter.grad is not None}
        found.append({"states": states.detach()} | gradients)
    for name, value in found[0].items():
        assert torch.equal(value, found[-1][name]), name
    return found[-1]


def assert_agrees(actual, expected, tolerance):
    for name, value in expected.items():
        if not value.any():  # weights that no merge used
            assert not actual[name].any(), name
            continue
        error = relative_error(actual[name].cpu().double(), value.cpu().double())
        assert error <= tolerance, f"{name}: {error:.1e}"


def model_of(dtype=torch.float32, **config):
    torch.manual_seed(0)
    return PRLSTMModel(PRLSTMConfig(**{"vocab_size": 5, "hidden_size": 7} | config)).to(dtype)


def batch_of(length, batch=3):
    return torch.randint(5, (batch, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("every_prefix", [True, False], ids=["scan", "reduce"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 13, 37])
def test_lengths(backend, length, every_prefix):
    model = model_of()
    arguments = batch_of(length), None, every_prefix
    expected = states_and_gradients(model, "eager", *arguments)
    assert_agrees(states_and_gradients(model, backend, *arguments, DEVICE[backend]), expected, 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("length", "lengths"), [(1, [1, 1, 1]), (8, [8, 1, 5]), (21, [16, 21, 3])])
def test_rows_of_their_own_lengths(backend, length, lengths):
    model = model_of()
    arguments = batch_of(length), torch.tensor(lengths), False
    expected = states_and_gradients(model, "eager", *arguments)
    assert_agrees(states_and_gradients(model, backend, *arguments, DEVICE[backend]), expected, 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("every_prefix", [True, False], ids=["scan", "reduce"])
@pytest.mark.parametrize("num_refinements", [0, 2])
def test_refinements(backend, num_refinements, every_prefix):
    model = model_of(num_refinements=num_refinements)
    arguments = batch_of(11), None, every_prefix
    expected = states_and_gradients(model, "eager", *arguments)
    assert_agrees(states_and_gradients(model, backend, *arguments, DEVICE[backend]), expected, 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("hidden_size", "every_prefix"), [(16, True), (33, True), (72, False)])
def test_sizes_and_dtypes(backend, dtype, hidden_size, every_prefix):
    """Half precision is held against the float32 reference with the same (rounded) weights."""
    model = model_of(dtype, hidden_size=hidden_size)
    reference = model_of(hidden_size=hidden_size)
    reference.load_state_dict(model.state_dict())
    arguments = batch_of(6), None, every_prefix
    expected = states_and_gradients(reference, "eager", *arguments)
    assert_agrees(states_and_gradients(model, backend, *arguments, DEVICE[backend]), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("sums", "batch", "every_prefix"), [(4096, 29, False), (1, 29, False), (4096, 60, True)])
def test_many_rows(backend, sums, batch, every_prefix, monkeypatch):
    """More rows than one program of a kernel, or one part of the CPU path, takes; sums in need of room."""
    monkeypatch.setattr("modeling_prlstm.fused.SUMS", sums)
    model = model_of()
    arguments = batch_of(25, batch=batch), None, every_prefix
    expected = states_and_gradients(model, "eager", *arguments)
    assert_agrees(states_and_gradients(model, backend, *arguments, DEVICE[backend]), expected, 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("vocab_size", [100, 200, 2000])
def test_vocabularies(backend, vocab_size):
    """Of many ids the leaves' gradients are summed by another way, above 1024 there is a leaf for every token."""
    model = model_of(vocab_size=vocab_size, embedding_size=4)
    arguments = batch_of(9, batch=7) * (vocab_size // 5), None, False
    expected = states_and_gradients(model, "eager", *arguments)
    assert_agrees(states_and_gradients(model, backend, *arguments, DEVICE[backend]), expected, 1e-5)


@needs_triton
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (70, 5), (2, 1500)])
@pytest.mark.parametrize("missing", [None, 0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool])
def test_survey(shape, missing, dtype):
    """Of batches with wrong values here and there, and views of larger ones."""
    generator = torch.Generator().manual_seed(shape[0])
    ids = torch.randint(-3, 9, shape[::-1], generator=generator).t()
    mask = torch.randint(0, 3, (2 * shape[0], shape[1]), generator=generator).to(dtype)[::2]
    labels = torch.randint(-100, 5, shape, generator=generator)
    parts = [None if number == missing else part for number, part in enumerate((ids, mask, labels))]
    plain = arithmetic_of("fused")
    expected = plain.survey(plain.look(*parts))
    on_device = [None if part is None else part.to(DEVICE["triton"]) for part in parts]
    arithmetic = arithmetic_of("triton")
    with torch.device("meta"):  # as a user's default device
        found = arithmetic.look(*on_device)
        found.fill_(7)
        assert arithmetic.look(*on_device, found) is found
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    for name, bounds in expected._asdict().items():
        if name != "lengths":
            bounds = min(0, bounds[0]), max(0, bounds[1])
        assert getattr(arithmetic.survey(found), name) == bounds, name


@needs_triton
@pytest.mark.parametrize("batch", [1, 3, 29])
def test_sorted_ids(batch, monkeypatch):
    """One id has whole windows of tokens, and some before and after them."""
    monkeypatch.setattr("modeling_prlstm.id_kernels.ONE_HOT_IDS", 0)
    monkeypatch.setattr("modeling_prlstm.id_kernels.WINDOW", 40)
    model = model_of()
    tokens = batch_of(19, batch)
    tokens[:, 5:] = 2
    for ids in (tokens, tokens.int()):
        expected = states_and_gradients(model, "eager", ids, None, False)
        assert_agrees(states_and_gradients(model, "triton", ids, None, False, DEVICE["triton"]), expected, 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("form", ["scan", "reduce", "ragged"])
@pytest.mark.parametrize("length", [4, 5, 15, 22])
def test_repeated_pairs_are_merged_once(backend, length, form, checkpoint, monkeypatch):
    monkeypatch.setattr("modeling_prlstm.layout.REPEATS", 1)
    model = model_of(vocab_size=2, num_refinements=2).train()
    lengths = length - torch.arange(29) % length if form == "ragged" else None
    arguments = batch_of(length, batch=29) % 2, lengths, form == "scan"
    expected = states_and_gradients(model, "eager", *arguments)
    model.composer.merge.gradient_checkpointing = checkpoint
    assert_agrees(states_and_gradients(model, backend, *arguments, DEVICE[backend]), expected, 1e-5)


ARITHMETICS = ["fused_cpu.TorchArithmetic", *(["cell_kernels.TritonArithmetic"] if HAS_TRITON else [])]


@pytest.fixture
def by_ids(monkeypatch):
    """The lowest level of known ids is merged by these, however few merges there are."""
    calls = []
    for name in ARITHMETICS:
        kind = pkgutil.resolve_name(f"modeling_prlstm.{name}")
        own = kind.forward_by_ids
        monkeypatch.setattr(kind, "merges_by_ids", lambda self, ids, merges: True)
        monkeypatch.setattr(kind, "forward_by_ids", lambda *given, own=own: (calls.append(1), own(*given)))
    yield
    assert calls


RAGGED = [1, 2, 3, 4, 5, 8, 12]


@pytest.mark.usefixtures("by_ids")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("length", "every_prefix", "lengths", "checkpoint"),
    [
        (2, True, None, None),
        (2, False, None, 26),
        (3, True, None, 26),
        (3, False, [1, 3, 2, 1, 3, 2, 1], None),
        (8, False, None, None),
        (12, False, RAGGED, None),
        (12, False, RAGGED, 26),
        (12, True, RAGGED, None),
        (13, True, None, 4096),
        (6, False, None, 2),
    ],
)
def test_merging_by_ids(backend, length, every_prefix, lengths, checkpoint, monkeypatch):
    """What each id adds to the gates' sums is computed once."""
    monkeypatch.setattr("modeling_prlstm.layout.REPEATS", 100)
    monkeypatch.setattr("modeling_prlstm.tree_function.CHECKPOINT_TOKENS", checkpoint)
    model = model_of(num_refinements=2).train()
    arguments = batch_of(length, batch=7), None if lengths is None else torch.tensor(lengths), every_prefix
    expected = states_and_gradients(model, "eager", *arguments)
    model.composer.merge.gradient_checkpointing = checkpoint is not None
    assert_agrees(states_and_gradients(model, backend, *arguments, DEVICE[backend]), expected, 1e-5)


@pytest.mark.usefixtures("by_ids")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("every_prefix", "checkpoint"), [(True, False), (False, True), (False, False)])
def test_merging_by_ids_above_tables(backend, every_prefix, checkpoint, monkeypatch):
    monkeypatch.setattr("modeling_prlstm.layout.REPEATS", 1)
    monkeypatch.setattr("modeling_prlstm.id_kernels.PAIRS_WINDOW", 4)
    model = model_of(vocab_size=2, num_refinements=0).train()
    arguments = batch_of(22, batch=29) % 2, None, every_prefix
    expected = states_and_gradients(model, "eager", *arguments)
    model.composer.merge.gradient_checkpointing = checkpoint
    assert_agrees(states_and_gradients(model, backend, *arguments, DEVICE[backend]), expected, 1e-5)


@pytest.mark.usefixtures("by_ids")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("every_prefix", "batch"), [(True, 29), (False, 29), (False, 3)])
def test_merging_a_frequent_id(backend, every_prefix, batch, monkeypatch):
    """It has whole windows of tokens on each side, and some before and after them; others have a few."""
    monkeypatch.setattr("modeling_prlstm.id_kernels.PAIRS_WINDOW", 6)
    model = model_of(num_refinements=1)
    tokens = batch_of(19, batch)
    tokens[:, 5:] = 2
    expected = states_and_gradients(model, "eager", tokens, None, every_prefix)
    assert_agrees(states_and_gradients(model, backend, tokens, None, every_prefix, DEVICE[backend]), expected, 1e-5)


@pytest.mark.usefixtures("by_ids")
@pytest.mark.parametrize("backend", BACKENDS)
def test_merging_by_ids_is_exact(backend):
    """In float32: gates that are small show it, in what depends on them alone, the gradient of i's weights."""
    model = model_of()
    with torch.no_grad():
        for parameter in model.composer.merge.parameters():
            parameter.mul_(0.03)
    arguments = batch_of(2, batch=5), None, False
    expected = states_and_gradients(copy.deepcopy(model).double(), "eager", *arguments)
    actual = states_and_gradients(model, backend, *arguments, DEVICE[backend])
    name = "composer.merge.binary.weight"
    assert relative_error(actual[name][:7].cpu().double(), expected[name][:7]) < 1e-6


@pytest.mark.usefixtures("by_ids")
@pytest.mark.parametrize("backend", BACKENDS)
def test_merging_by_ids_in_parts(backend, monkeypatch):
    for name in ARITHMETICS:
        monkeypatch.setattr(f"modeling_prlstm.{name}.rows", 4)
    model = model_of()
    expected = states_and_gradients(model, "eager", batch_of(21, batch=2), None, False)
    actual = states_and_gradients(model, backend, batch_of(21, batch=2), None, False, DEVICE[backend])
    assert_agrees(actual, expected, 1e-5)


@pytest.mark.usefixtures("by_ids")
@pytest.mark.parametrize("backend", BACKENDS)
def test_merging_by_ids_without_tokens(backend):
    """As a mask that is not looked at, in a CUDA graph, may give: other rows have their states."""
    model = model_of(backend=backend).to(DEVICE[backend])
    tokens = batch_of(7).to(DEVICE[backend])
    states = [model.composer(tokens, torch.tensor([3, n, 7]).to(tokens.device), False)[1][::2] for n in (0, 5)]
    assert torch.equal(*states)


@needs_triton
def test_when_to_merge_by_ids(monkeypatch):
    """By the rule itself; ids of another dtype, cut from a wider batch, of rows with lengths of their own."""
    calls = []
    kind = pkgutil.resolve_name("modeling_prlstm.cell_kernels.TritonArithmetic")
    own = kind.forward_by_ids
    monkeypatch.setattr(kind, "forward_by_ids", lambda *given: (calls.append(1), own(*given)))
    monkeypatch.setattr("modeling_prlstm.id_kernels.FEWER_IDS", 0)
    tokens = (batch_of(20, batch=7).int() * 28)[:, 3:16]
    for least in (43, 42):  # it has 6 * 7 merges
        monkeypatch.setattr("modeling_prlstm.id_kernels.MERGES_BY_IDS", least)
        model = model_of(vocab_size=140)  # with graphs of its own
        arguments = tokens, torch.tensor([13, 1, 2, 3, 8, 9, 12]), False
        expected = states_and_gradients(model, "eager", *arguments)
        assert_agrees(states_and_gradients(model, "triton", *arguments, DEVICE["triton"]), expected, 1e-5)
        assert bool(calls) == (least == 42)


@needs_triton
@pytest.mark.parametrize("count", [5, 2**15 - 1, 2**15, 10**5])
@pytest.mark.parametrize("sides", [1, 2])
def test_sorting_by_id(count, sides):
    ids = torch.tensor([[0, count - 1, -1, 2], [count, count - 1, 2, count + 7]])
    sort = pkgutil.resolve_name("modeling_prlstm.id_kernels.sort_by_id")
    ordered = sort(ids.to(DEVICE["triton"]), count, sides)
    ordered.wait()
    order, keys, starts = (part.cpu() for part in ordered[:3])
    side = torch.arange(8) // 2 % sides
    expected = ids.t().flatten() + count * side
    expected[(ids.t().flatten() < 0) | (ids.t().flatten() >= count)] = sides * count
    assert torch.equal(keys, expected[order])
    for own in expected[expected < sides * count]:
        assert torch.equal(order[starts[own] : starts[own + 1]], (expected == own).nonzero().flatten())


@needs_triton
@pytest.mark.usefixtures("by_ids")
@pytest.mark.parametrize("method", ["_start_gradients", "_look_up_backward"])
def test_sorting_ends_when_a_backward_fails(method, monkeypatch):
    """Else the memory is free while it is sorted."""
    monkeypatch.setattr("modeling_prlstm.id_kernels.ONE_HOT_IDS", 0)
    begun, ended = [], []
    sort = pkgutil.resolve_name("modeling_prlstm.id_kernels.sort_by_id")
    kind = pkgutil.resolve_name("modeling_prlstm.id_kernels.Ordered")
    wait = kind.wait
    counted = "modeling_prlstm.cell_kernels.sort_by_id"
    monkeypatch.setattr(counted, lambda *given: begun.append(sort(*given)) or begun[-1])
    monkeypatch.setattr(kind, "wait", lambda self: ended.append(self.order) or wait(self))

    def fail(self):
        raise MemoryError("none left")

    monkeypatch.setattr(f"modeling_prlstm.fused.Tree.{method}", fail)
    with pytest.raises(MemoryError, match="none left"):
        states_and_gradients(model_of(), "triton", batch_of(7), None, True, DEVICE["triton"])
    assert len(begun) > 1
    assert {id(ordered.order) for ordered in begun} == {id(order) for order in ended}


@pytest.mark.usefixtures("by_ids")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_merging_by_ids_in_half_precision(backend, dtype):
    model, reference = model_of(dtype, hidden_size=16), model_of(hidden_size=16)
    reference.load_state_dict(model.state_dict())
    expected = states_and_gradients(reference, "eager", batch_of(6), None, True)
    assert_agrees(states_and_gradients(model, backend, batch_of(6), None, True, DEVICE[backend]), expected, 2e-2)


@pytest.fixture
def tf32():
    """Products as TF32 allows them; what they are compared with is not made on a GPU."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@needs_triton
@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize(
    ("every_prefix", "lengths"), [(True, None), (False, None), (False, [13, 2, 8])], ids=["scan", "reduce", "ragged"]
)
@pytest.mark.parametrize(("size", "vocab_size", "checkpoint"), [(7, 5, False), (16, 5, True), (72, 2000, False)])
def test_tf32(size, vocab_size, every_prefix, lengths, checkpoint, monkeypatch):
    """Units of each row's own, brought to one in parts of the rows."""
    monkeypatch.setattr("modeling_prlstm.cell_kernels.PRODUCT_ROWS", 8)
    model = model_of(hidden_size=size, vocab_size=vocab_size).train()
    arguments = batch_of(13), None if lengths is None else torch.tensor(lengths), every_prefix
    expected = states_and_gradients(model, "eager", *arguments)
    model.composer.merge.gradient_checkpointing = checkpoint
    assert_agrees(states_and_gradients(model, "triton", *arguments, DEVICE["triton"]), expected, 2e-3)


@needs_triton
@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("rows", [slice(21, 28), slice(None)], ids=["one gate", "all"])
def test_tf32_learns_from_zeros(rows):
    """Weights that were pruned, or begin as zeros, have a unit in which their gradients are not lost."""
    model = model_of()
    with torch.no_grad():
        for layer in (model.composer.merge.binary, *model.composer.merge.refine):
            layer.weight[rows] = 0
    arguments = batch_of(6, batch=12), None, False
    expected = states_and_gradients(model, "eager", *arguments, weighting=1e-6)
    actual = states_and_gradients(model, "triton", *arguments, DEVICE["triton"], weighting=1e-6)
    for name in ("binary", "refine.0"):
        name = f"composer.merge.{name}.weight"
        expected[f"{name} of zeros"], actual[f"{name} of zeros"] = expected[name][rows], actual[name][rows]
    assert_agrees(actual, expected, 2e-3)


@needs_triton
@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_tiles(dtype, monkeypatch):
    """Those of many rows, whose operands are read by descriptors where the sizes fit."""
    monkeypatch.setattr("modeling_prlstm.cell_kernels.MANY_ROWS", 100)
    model, reference = model_of(dtype, hidden_size=64), model_of(hidden_size=64)
    reference.load_state_dict(model.state_dict())
    arguments = batch_of(10, batch=29), None, False
    expected = states_and_gradients(reference, "eager", *arguments)
    tolerance = 2e-3 if dtype == torch.float32 else TOLERANCE[dtype]
    assert_agrees(states_and_gradients(model, "triton", *arguments, DEVICE["triton"]), expected, tolerance)


@needs_triton
@pytest.mark.usefixtures("tf32", "by_ids")
@pytest.mark.parametrize("weighting", [1, 1e-25, 1e20])
def test_tf32_merging_by_ids(weighting):
    model = model_of()
    expected = states_and_gradients(model, "eager", batch_of(13), None, True, weighting=weighting)
    actual = states_and_gradients(model, "triton", batch_of(13), None, True, DEVICE["triton"], weighting=weighting)
    assert_agrees(actual, expected, 2e-3)


@needs_triton
@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("bias", [-9.0, 7.0, 9.0])
@pytest.mark.parametrize("every_prefix", [True, False], ids=["scan", "reduce"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_gates_that_are_almost_closed_or_open(dtype, every_prefix, bias):
    """Forget gates, whose small gradients those of others would hide."""
    model, reference = model_of(dtype), model_of()
    layers = ["composer.merge.binary", "composer.merge.refine.0"]
    with torch.no_grad():
        for layer in layers:
            model.get_submodule(layer).bias[21:] = bias
    reference.load_state_dict(model.state_dict())
    arguments = batch_of(13), None, every_prefix
    expected = states_and_gradients(reference, "eager", *arguments, weighting=64)
    actual = states_and_gradients(model, "triton", *arguments, DEVICE["triton"], weighting=64)
    rows = [
        {f"{layer}.{kind}": found[f"{layer}.{kind}"][21:] for layer in layers for kind in ("weight", "bias")}
        for found in (actual, expected)
    ]
    assert_agrees(*rows, 2e-3 if dtype == torch.float32 else 2 * TOLERANCE[dtype])


@needs_triton
@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("bias", [-40.0, 40.0])
@pytest.mark.parametrize("every_prefix", [True, False], ids=["scan", "reduce"])
def test_gates_that_are_closed_or_open(every_prefix, bias):
    """A forget gate of 0 or 1 in float32 too: the other gradients are right, its own next to nothing."""
    model = model_of()
    layers = [model.composer.merge.binary, *model.composer.merge.refine]
    with torch.no_grad():
        for layer in layers:
            layer.bias[21:] = bias
    arguments = batch_of(13), None, every_prefix
    expected = states_and_gradients(model, "eager", *arguments)
    actual = states_and_gradients(model, "triton", *arguments, DEVICE["triton"])
    own = [value[21:] for name, value in actual.items() if "merge" in name]
    others = [
        {name: value[:21] if "merge" in name else value for name, value in found.items()}
        for found in (actual, expected)
    ]
    assert_agrees(*others, 2e-3)
    assert all(value.abs().max() < 1e-5 for value in own)


@needs_triton
@pytest.mark.usefixtures("tf32")
@pytest.mark.filterwarnings("ignore:overflow encountered")  # by the interpreter
@pytest.mark.parametrize(
    ("weights", "of_o", "weighting"), [(1, 1, 1e-25), (1, 1, 1e20), (1e-6, 1, 1), (1e-6, 1, 1e-12), (1, 1e6, 1)]
)
@pytest.mark.parametrize("every_prefix", [True, False], ids=["scan", "reduce"])
def test_tf32_far_from_1(every_prefix, weights, of_o, weighting):
    """Numbers that float16 has not, in states, weights and gradients: a tree that forgets, gates that saturate."""
    model = model_of(num_refinements=2)
    with torch.no_grad():
        for layer in (model.composer.merge.binary, *model.composer.merge.refine):
            layer.weight *= weights
            layer.weight[14:21] *= of_o
    arguments = batch_of(37, batch=2), None, every_prefix
    expected = states_and_gradients(model, "eager", *arguments, weighting=weighting)
    actual = states_and_gradients(model, "triton", *arguments, DEVICE["triton"], weighting=weighting)
    if of_o > 1:  # the few sums that are next to 0, where the gate is not saturated, decide about the gradients
        expected = {"states": expected["states"]}
    assert_agrees(actual, expected, 2e-3)


@needs_triton
@pytest.mark.parametrize("wrong", [-1, 2, 5])
@pytest.mark.parametrize(("repeats", "merges_by_ids"), [(1, False), (1, True), (100, True)])
@pytest.mark.parametrize("every_prefix", [True, False], ids=["scan", "reduce"])
def test_an_unknown_id_gives_nan_where_ids_repeat(every_prefix, repeats, merges_by_ids, wrong, monkeypatch, request):
    """Where no check of values is possible, as in a CUDA graph: its pairs have no number that another pair has."""
    monkeypatch.setattr("modeling_prlstm.layout.REPEATS", repeats)
    if merges_by_ids:
        request.getfixturevalue("by_ids")
    model = model_of(vocab_size=2, backend="triton").to(DEVICE["triton"])
    ids = batch_of(8, batch=29).to(DEVICE["triton"]) % 2
    ids[range(8), range(8)] = wrong  # in each of the first rows at another place
    with torch.no_grad():
        states = model.composer(ids, None, every_prefix)[1]
    for place in range(8):
        row = states[place, place:] if every_prefix else states[place]
        assert row.isnan().all()
    assert states[8:].isfinite().all()
    if every_prefix:
        assert states[:8].isnan().sum() == sum(range(1, 9)) * states.shape[-1]


@needs_triton
@pytest.mark.usefixtures("by_ids")
def test_gradients_of_unknown_ids(monkeypatch):
    """They are NaN where these ids are; whole windows of them read nothing from where no table is."""
    monkeypatch.setattr("modeling_prlstm.id_kernels.PAIRS_WINDOW", 3)
    model = model_of(backend="triton").to(DEVICE["triton"])
    ids = batch_of(8, batch=9)
    ids[:6] = torch.tensor([-1, 2**40]).repeat(4)
    states = model.composer(ids.to(DEVICE["triton"]), None, False)[1]
    assert states[:6].isnan().all()
    assert states[6:].isfinite().all()
    states[6:].sum().backward()
    assert all(part.grad.isnan().any() for part in model.composer.merge.parameters())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("every_prefix", [True, False], ids=["scan", "reduce"])
def test_checkpointing_changes_nothing(backend, every_prefix):
    model = model_of().train()
    expected = states_and_gradients(model, "eager", batch_of(13), None, every_prefix)
    model.composer.merge.gradient_checkpointing = True
    actual = states_and_gradients(model, backend, batch_of(13), None, every_prefix, DEVICE[backend])
    assert_agrees(actual, expected, 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("vocab_size", [5, 2000])
@pytest.mark.parametrize(
    ("every_prefix", "lengths"),
    [(True, None), (False, None), (False, [13, 2, 8, 1, 13])],
    ids=["scan", "reduce", "ragged"],
)
@pytest.mark.parametrize(("tokens", "parts"), [(4, 8), (26, 8), (4, 2)])
def test_checkpointing_in_parts(backend, vocab_size, every_prefix, lengths, tokens, parts, monkeypatch):
    """A few rows of the batch at a time, or a few merges of one row; or so many of the batch's rows."""
    monkeypatch.setattr("modeling_prlstm.tree_function.CHECKPOINT_TOKENS", tokens)
    monkeypatch.setattr("modeling_prlstm.tree_function.CHECKPOINT_PARTS", parts)
    model = model_of(vocab_size=vocab_size).train()
    arguments = batch_of(13, batch=5), None if lengths is None else torch.tensor(lengths), every_prefix
    expected = states_and_gradients(model, "eager", *arguments)
    model.composer.merge.gradient_checkpointing = True
    assert_agrees(states_and_gradients(model, backend, *arguments, DEVICE[backend]), expected, 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [None, [5, 2, 4, 1, 5]], ids=["reduce", "ragged"])
def test_checkpointing_in_parts_with_tables(backend, lengths, monkeypatch):
    """Twice as many rows at a time, as half of the merges are a table's."""
    monkeypatch.setattr("modeling_prlstm.layout.REPEATS", 0)
    monkeypatch.setattr("modeling_prlstm.tree_function.CHECKPOINT_TOKENS", 4)
    monkeypatch.setattr("modeling_prlstm.tree_function.CHECKPOINT_PARTS", 5)
    model = model_of().train()
    arguments = batch_of(5, batch=5), None if lengths is None else torch.tensor(lengths), False
    how = model.composer.composition(arithmetic_of(backend), (5, 5), 5, lengths is not None, False)
    assert (how._replace(checkpoint=True).rows, how.tables) == (2, 1)
    expected = states_and_gradients(model, "eager", *arguments)
    model.composer.merge.gradient_checkpointing = True
    assert_agrees(states_and_gradients(model, backend, *arguments, DEVICE[backend]), expected, 1e-5)


@pytest.mark.parametrize("every_prefix", [True, False], ids=["scan", "reduce"])
def test_checkpointing_a_long_row_in_bfloat16_keeps_its_digits(every_prefix, monkeypatch):
    """The weights' gradients are sums of hundreds of parts."""
    monkeypatch.setattr("modeling_prlstm.tree_function.CHECKPOINT_TOKENS", 8)
    model, reference = model_of(torch.bfloat16).train(), model_of()
    reference.load_state_dict(model.state_dict())
    expected = states_and_gradients(reference, "eager", batch_of(2000, batch=2), None, every_prefix)
    model.composer.merge.gradient_checkpointing = True
    actual = states_and_gradients(model, "fused", batch_of(2000, batch=2), None, every_prefix)
    assert_agrees(actual, expected, 2e-2)


def test_ids_that_change_before_the_backward_are_noticed():
    model = model_of(backend="fused")
    tokens = batch_of(9)
    states = model.composer(tokens, None, False)[1]
    tokens += 0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        states.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_backward_and_run_to_run(backend):
    model = model_of().to(DEVICE[backend])
    model.config.backend = backend
    tokens = batch_of(13).to(DEVICE[backend])
    states = model.composer(tokens, None, True)[1]
    parameters = [*model.parameters()]
    first = torch.autograd.grad(states.sum(), parameters, retain_graph=True)
    again = torch.autograd.grad(states.sum(), parameters)
    repeated = torch.autograd.grad(model.composer(tokens, None, True)[1].sum(), parameters)
    for one, two, three in zip(first, again, repeated, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
        assert torch.equal(one, three)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast(backend):
    model = model_of(hidden_size=16)
    with torch.autocast(DEVICE[backend], dtype=torch.bfloat16):
        actual = states_and_gradients(model, backend, batch_of(9), None, False, DEVICE[backend])
    assert actual["states"].dtype == torch.bfloat16
    assert actual["composer.merge.binary.weight"].dtype == torch.float32
    expected = states_and_gradients(model.cpu(), "eager", batch_of(9), None, False)
    assert_agrees(actual, expected, 2e-2)


def test_automatic_choice():
    hidden = torch.device("cpu"), torch.float32
    assert choose_backend(PRLSTMConfig(), *hidden) == "fused"
    assert choose_backend(PRLSTMConfig(cell_type="rnn"), *hidden) == "eager"


@pytest.mark.parametrize("way", ["Python", "transformers"])
def test_the_choice_is_logged_once(way):
    """As Python's own logging shows it, or as transformers' verbosity does, which in CI also passes it on."""
    composer._chosen.cache_clear()
    transformers.logging.get_logger(composer.__name__).info_once.cache_clear()
    logger = logging.getLogger("transformers" if way == "transformers" else composer.__name__)
    level, handler = logger.level, BufferingHandler(capacity=10)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        for dtype in (torch.float32, torch.float64):
            choose_backend(PRLSTMConfig(), torch.device("cpu"), dtype)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert [record.getMessage() for record in handler.buffer] == ["PR-LSTM runs its 'fused' backend on cpu."]


def test_a_gpu_that_runs_the_plain_tree_is_warned_of(caplog):
    composer._chosen.cache_clear()
    assert choose_backend(PRLSTMConfig(), torch.device("cuda"), torch.float64) == "eager"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "'eager' backend on cuda ('triton': " in record.getMessage()


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("every_prefix", [False, True])
def test_forward_mode_is_refused(backend, every_prefix):
    """It would be lost where no gradients are recorded."""
    model, inputs = model_of(backend=backend).to(DEVICE[backend]), torch.randn(2, 7, 5, device=DEVICE[backend])
    with torch.no_grad(), forward_ad.dual_level(), pytest.raises(RuntimeError, match="Use `backend='eager'`"):
        model(inputs_embeds=forward_ad.make_dual(inputs, inputs), pool_only=not every_prefix)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"backend": "fused", "cell_type": "rnn"}, "`backend='fused'` cannot run: it has LSTM cells alone"),
        ({"backend": "triton", "dtype": torch.float64}, "`backend='triton'` cannot run"),
        ({"backend": "fused", "device": "meta"}, "`backend='fused'` cannot run: .* tensors on meta have no memory"),
    ],
)
def test_what_cannot_run_is_refused(config, message):
    dtype, device = config.pop("dtype", torch.float32), config.pop("device", "cpu")
    model = model_of(dtype, **config).to(device)
    with pytest.raises(RuntimeError, match=message):
        model.composer(batch_of(3).to(device))
