"""TrainingStep is the plain loop's step: on a CPU as it is, on a GPU as a graph."""

import copy
import threading

import pytest
import torch

from modeling_prlstm import PRLSTMConfig, PRLSTMForSequenceClassification, PRLSTMModel, TrainingStep
from modeling_prlstm.fused import Tree
from modeling_prlstm.graphs import paused

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpu)]


def model_on(device, vocab_size=5):
    torch.manual_seed(0)
    config = PRLSTMConfig(vocab_size=vocab_size, hidden_size=16, num_labels=2)
    return PRLSTMForSequenceClassification(config).to(device).train()


def batches_on(device, lengths=(9, 12, 9, 12, 9), **more):
    for seed, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(5, (6, length), generator=generator)
        batch = {"input_ids": ids, "labels": ids.sum(1) % 2}
        if more.get("masked"):
            real = torch.randint(1, length + 1, (6, 1), generator=generator)
            batch["attention_mask"] = (torch.arange(length) < real).long()
        yield {name: tensor.to(device) for name, tensor in batch.items()}


def adam(model, **options):
    return torch.optim.Adam(model.parameters(), lr=1e-2, **options)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_same_as_a_loop(device, masked, autocast):
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        check_same_as_a_loop(device, masked)


def check_same_as_a_loop(device, masked):
    plain = model_on(device)
    captured = copy.deepcopy(plain)
    optimizer = adam(plain)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    losses = []
    for batch in batches_on(device, masked=masked):
        optimizer.zero_grad()
        loss = plain(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        optimizer.step()
        scheduler.step()
        losses.append(loss.detach())
    optimizer = adam(captured, capturable=device == "cuda")
    step = TrainingStep(captured, optimizer, max_grad_norm=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for batch, expected in zip(batches_on(device, masked=masked), losses, strict=True):
        loss = step(**batch)
        scheduler.step()
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
        assert not loss.requires_grad
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(captured.get_parameter(name), parameter, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_of_what_is_not_the_optimizers_do_not_add_up(device):
    model = model_on(device)
    step = TrainingStep(model, torch.optim.SGD(model.classifier.parameters(), lr=0.0, fused=True), max_grad_norm=None)
    batch = next(batches_on(device))
    norms = []
    for _ in range(3):
        step(**batch)
        gradient = model.prlstm.composer.leaf.weight.grad
        norms.append(None if gradient is None else gradient.norm().item())
    assert norms[0] == norms[1] == norms[2]


def test_nothing_to_train_is_refused():
    model = model_on("cpu").requires_grad_(False)
    with pytest.raises(ValueError, match="`model` has no parameter that requires a gradient"):
        TrainingStep(model, adam(model))


@pytest.mark.parametrize("device", DEVICES)
def test_a_batch_without_a_loss_is_refused(device):
    model = model_on(device)
    step = TrainingStep(model, adam(model, capturable=device == "cuda"))
    with pytest.raises(ValueError, match=r"`batch` must have what makes a `loss` .* got \['input_ids'\]"):
        step(input_ids=next(batches_on(device))["input_ids"])


def test_a_model_without_a_head_is_refused():
    model = PRLSTMModel(PRLSTMConfig(vocab_size=5, hidden_size=4))
    with pytest.raises(ValueError, match="`batch` must have what makes a `loss`"):
        TrainingStep(model, adam(model))(input_ids=torch.zeros(1, 2, dtype=torch.int64))


@pytest.mark.parametrize("norm", [0, -1.0, float("nan")])
def test_a_norm_that_is_none_is_refused(norm):
    model = model_on("cpu")
    with pytest.raises(ValueError, match=f"`max_grad_norm` must be above 0, got {norm}"):
        TrainingStep(model, adam(model), norm)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda model: None, TypeError, "`optimizer` must be a torch.optim.Optimizer, got NoneType"),
        (lambda model: torch.optim.LBFGS(model.parameters()), ValueError, "got LBFGS"),
        (lambda model: adam(model_on("cpu")), ValueError, "`optimizer` has none of the model's parameters"),
    ],
)
def test_what_is_no_optimizer_of_the_model_is_refused(make, error, message):
    model = model_on("cpu")
    with pytest.raises(error, match=message):
        TrainingStep(model, make(model))


@pytest.mark.parametrize("device", DEVICES)
def test_parameters_that_are_set_free_are_clipped(device):
    model = model_on(device)
    model.prlstm.requires_grad_(False)
    step = TrainingStep(model, torch.optim.SGD(model.parameters(), lr=1.0, fused=True), max_grad_norm=0.01)
    batch = next(batches_on(device))
    for _ in range(2):
        step(**batch)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model.requires_grad_(True)
    step(**batch)
    moved = torch.stack([(parameter - before[name]).norm() for name, parameter in model.named_parameters()])
    assert moved[:2].any(), "the tree is trained"
    assert 0.009 < moved.norm() < 0.0101


def test_a_model_that_is_spread_is_refused():
    model = model_on("cpu")
    with pytest.raises(ValueError, match="`model` is spread over processes or devices"):
        TrainingStep(torch.nn.DataParallel(model), adam(model))


@needs_gpu
def test_changes_of_the_optimizer_between_steps_take_effect():
    """A learning rate set by hand, and a state that is loaded."""
    plain, captured = (model_on("cuda") for _ in range(2))
    optimizers = adam(plain), adam(captured, capturable=True)
    step = TrainingStep(captured, optimizers[1], max_grad_norm=None)
    for number, batch in enumerate(batches_on("cuda", lengths=[9] * 6)):
        for optimizer in optimizers:
            if number == 4:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            optimizer.param_groups[0]["lr"] = 1e-2 / (1 + number)
        optimizers[0].zero_grad()
        plain(**batch).loss.backward()
        optimizers[0].step()
        step(**batch)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(captured.get_parameter(name), parameter, rtol=1e-3, atol=1e-4)


@needs_gpu
def test_one_graph_a_shape():
    model = model_on("cuda")
    step = TrainingStep(model, adam(model, capturable=True))
    for batch in batches_on("cuda"):
        step(**batch)
    assert len(step.graphs) == 2


@needs_gpu
def test_an_error_while_a_graph_is_made(monkeypatch):
    """It is the one that is raised, though ids are being sorted on another stream, and the stream is as before."""
    model = model_on("cuda", vocab_size=200)
    start = Tree._start_gradients

    def fail(self):
        if torch.cuda.is_current_stream_capturing():
            raise torch.OutOfMemoryError("none left")
        start(self)

    monkeypatch.setattr(Tree, "_start_gradients", fail)
    stream = torch.cuda.current_stream()
    with pytest.raises(torch.OutOfMemoryError, match="none left"):
        TrainingStep(model, adam(model, capturable=True))(**next(batches_on("cuda")))
    assert torch.cuda.current_stream() == stream


@needs_gpu
def test_a_backward_while_another_thread_makes_a_graph():
    """Of ids that both sort: until a capture ends, the streams that took part are closed to other work."""
    model, other = (model_on("cuda", vocab_size=200) for _ in range(2))
    optimizer = adam(model, capturable=True)
    step = TrainingStep(model, optimizer)
    batch = next(batches_on("cuda"))
    begun, done = threading.Event(), threading.Event()
    update = optimizer.step

    def wait():
        if torch.cuda.is_current_stream_capturing():
            begun.set()
            done.wait(60)
        update()

    optimizer.step = wait
    with paused():
        loss = other(**batch).loss
    another = TrainingStep(other, adam(other, capturable=True))
    thread = threading.Thread(target=step, kwargs=batch)
    thread.start()
    try:
        assert begun.wait(60)
        loss.backward()
        assert another(**batch).isfinite()
        assert not another.graphs, "a process makes one graph at a time"
    finally:
        done.set()
        thread.join()
    for _ in range(2):
        assert step(**batch).isfinite()
    assert len(step.graphs) == 1


@needs_gpu
def test_ids_out_of_range_do_not_pass_unseen():
    model = model_on("cuda")
    step = TrainingStep(model, adam(model, capturable=True))
    batch = next(batches_on("cuda"))
    step(**batch)
    batch["input_ids"][1, 2] = 5
    assert step(**batch).isnan()


@needs_gpu
@pytest.mark.parametrize(("optimizer", "option"), [(torch.optim.Adam, "capturable"), (torch.optim.SGD, "fused")])
def test_an_optimizer_that_cannot_be_captured_is_refused(optimizer, option):
    model = model_on("cuda")
    with pytest.raises(ValueError, match=f"`optimizer` must be made with `{option}=True`"):
        TrainingStep(model, optimizer(model.parameters(), lr=1e-2))


def test_a_model_on_several_devices_is_refused():
    model = model_on("cpu")
    model.classifier.to("meta")
    with pytest.raises(ValueError, match="`model` is spread over processes or devices"):
        TrainingStep(model, adam(model))
