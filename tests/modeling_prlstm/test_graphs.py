"""Models as CUDA graphs: what a user sees is what the model gives without them.

Where there is no GPU a stand-in computes what a graph would replay, from buffers of its own as a graph does: this
tests who gets which graph when, and the way of the values and gradients to it and back.
"""

import contextlib
import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from modeling_prlstm import (
    PRLSTMConfig,
    PRLSTMForSequenceClassification,
    PRLSTMForTokenClassification,
    PRLSTMModel,
    composer,
    graphs,
    model_graph,
)

from .reference import HAS_TRITON

CHECKPOINTING = "activation_checkpointing"
if not hasattr(PRLSTMModel, f"{CHECKPOINTING}_enable"):
    CHECKPOINTING = "gradient_checkpointing"
HEADS = [PRLSTMForSequenceClassification, PRLSTMForTokenClassification]
LENGTH = 6


def gpu_of(memory):
    return lambda device=None: SimpleNamespace(total_memory=memory, major=9, minor=0)


class StandIn:
    """Does again what a graph would replay."""

    def __init__(self, work):
        with graphs._within(graphs._rehearsed):
            self.work, self.results = work, work()
        self.state = torch.is_grad_enabled()

    def pool(self):
        return None

    def replay(self):
        with torch.set_grad_enabled(self.state), graphs.paused(), graphs._apart(), graphs._within(graphs._rehearsed):
            results = self.work()
        with torch.no_grad():
            for own, new in zip(self.results, results, strict=True):
                own.copy_(new)


def stand_in(work, stream, pool=None):
    graph = StandIn(work)
    return graph.results, graph


class Nothing:
    """A stream, or an event, where there is no GPU."""

    def __init__(self, *arguments, **options):
        pass

    def synchronize(self):
        pass

    def record(self):
        pass


@pytest.fixture
def device(monkeypatch):
    if torch.cuda.is_available():
        return "cuda"
    monkeypatch.setattr(graphs, "capture", stand_in)
    monkeypatch.setattr(graphs, "_rehearsal", lambda stream: contextlib.nullcontext())
    for name in ("Stream", "Event"):
        monkeypatch.setattr(torch.cuda, name, Nothing)
    own = Nothing()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: own)
    for module in (graphs, composer, model_graph):
        monkeypatch.setattr(module, "can_capture", lambda device: not graphs._paused.get())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", gpu_of(2**30))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**30, 2**30))
    return "cpu"


def model_of(head, device, **config):
    torch.manual_seed(0)
    config = {"vocab_size": 5, "hidden_size": 4, "num_labels": 3} | config
    return head(PRLSTMConfig(**config)).to(device).train()


def batch_of(head, device, seed=0, mask=None, length=LENGTH):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, (4, length), generator=generator)
    batch = {"input_ids": ids, "labels": ids % 3 if head is PRLSTMForTokenClassification else ids.sum(1) % 3}
    if mask is not None:
        lengths = torch.full((4, 1), length) if mask == "full" else length - (torch.arange(4)[:, None] + seed) % 3
        places = torch.arange(length)
        batch["attention_mask"] = (places < lengths if mask != "left" else places >= length - lengths).long()
    return {name: part.to(device) for name, part in batch.items()}


def found_by(model, batch, weight=0.0):
    """Loss, logits and gradients, of a loss to which the logits may add."""
    model.zero_grad()
    output = model(**batch)
    loss = output.loss + weight * output.logits.square().sum() if weight else output.loss
    loss.backward()
    gradients = {name: part.grad.clone() for name, part in model.named_parameters()}
    return {"loss": output.loss.detach(), "logits": output.logits.detach()} | gradients


def check_same(found, expected, tolerance=1e-5):
    for name, value in expected.items():
        torch.testing.assert_close(found[name].cpu(), value.cpu(), rtol=tolerance, atol=tolerance, msg=name)


def held(model):
    return len(model.prlstm.composer.graphs.graphs)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("mask", [None, "full", "right", "left"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training(device, head, mask, checkpointing):
    """The weights change from batch to batch, the batches too; a gradient of the logits comes and goes."""
    model = model_of(head, device)
    if checkpointing:
        getattr(model, f"{CHECKPOINTING}_enable")()
    reference = model_of(head, "cpu", backend="eager")
    optimizers = [torch.optim.SGD(one.parameters(), lr=0.1) for one in (model, reference)]
    for seed, weight in enumerate([0.0, 0.0, 0.5, 0.0, 0.5]):
        expected = found_by(reference, batch_of(head, "cpu", seed, mask), weight)
        check_same(found_by(model, batch_of(head, device, seed, mask), weight), expected)
        assert held(model) == min(seed, 1)  # none for the first batch, one for all others
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("mask", [None, "right"])
@pytest.mark.parametrize("vocab_size", [5, 2000])
def test_parts_of_a_batch_share_graphs(device, head, mask, vocab_size, monkeypatch):
    """Under activation checkpointing, from the first batch on."""
    monkeypatch.setattr("modeling_prlstm.tree_function.CHECKPOINT_TOKENS", LENGTH)
    model = model_of(head, device, vocab_size=vocab_size)
    reference = model_of(head, "cpu", backend="eager", vocab_size=vocab_size)
    getattr(model, f"{CHECKPOINTING}_enable")()
    for seed in range(3):
        expected = found_by(reference, batch_of(head, "cpu", seed, mask), weight=0.5)
        check_same(found_by(model, batch_of(head, device, seed, mask), weight=0.5), expected)
        assert [graph.inputs[-1].shape for graph in model.prlstm.composer.graphs.graphs.values()] == [(16,), (16,)]


def test_parts_of_another_precision_have_graphs_of_their_own(device, monkeypatch):
    """The kernels of the backward are those of the forward's precision, whatever it is by then."""
    monkeypatch.setattr("modeling_prlstm.tree_function.CHECKPOINT_TOKENS", LENGTH)
    head = PRLSTMForSequenceClassification
    model = model_of(head, device)
    getattr(model, f"{CHECKPOINTING}_enable")()
    matmul = torch.backends.cuda.matmul
    own = matmul.fp32_precision
    losses = {}
    for forward in (own, "tf32", own):
        try:
            matmul.fp32_precision = forward
            loss = model(**batch_of(head, device)).loss
        finally:
            matmul.fp32_precision = own
        losses.setdefault(forward, []).append(torch.autograd.grad(loss, [*model.parameters()]))
    assert held(model) == 4
    for first, again in zip(*losses[own], strict=True):
        assert torch.equal(first, again)


def test_each_kind_of_batch_has_its_graph(device):
    head = PRLSTMForSequenceClassification
    model, reference = model_of(head, device), model_of(head, "cpu", backend="eager")
    for seed in range(3):
        for mode in ("train", "eval", "no_grad", "inference_mode", "autocast")[: 5 if device == "cuda" else 4]:
            batch = {**batch_of(head, device, seed)}
            expected = reference(**batch_of(head, "cpu", seed)).logits
            model.train(mode == "train")
            with {
                "no_grad": torch.no_grad(),
                "inference_mode": torch.inference_mode(),
                "autocast": torch.autocast(device, torch.bfloat16),
            }.get(mode, torch.enable_grad()):
                output = model(**batch)
            tolerance = 2e-2 if mode == "autocast" else 1e-5
            torch.testing.assert_close(output.logits.float().cpu(), expected.detach(), rtol=tolerance, atol=tolerance)
            assert output.loss.requires_grad == (mode in ("train", "eval", "autocast"))
            if output.loss.requires_grad:
                output.loss.backward()
    assert held(model) == (4 if device == "cuda" else 3)  # without gradients and in inference mode it is one


def test_much_padding(device):
    """The tree's graph, which is made after a look at the mask, has the length of the longest row."""
    head = PRLSTMForSequenceClassification
    model, reference = model_of(head, device), model_of(head, "cpu", backend="eager")
    for seed in range(3):
        found, expected = (
            found_by(
                one,
                {
                    name: nn.functional.pad(part, (0, 9)) if part.dim() > 1 else part
                    for name, part in batch_of(head, one.device, seed, "right").items()
                },
            )
            for one in (model, reference)
        )
        check_same(found, expected)
    (graph,) = model.prlstm.composer.graphs.graphs.values()
    assert graph.inputs[0].shape == (4, LENGTH)


@pytest.mark.parametrize("head", HEADS)
def test_forwards_before_backwards(device, head):
    """While one batch waits for its backward, the next one of its shape does without the graph."""
    model, reference = model_of(head, device), model_of(head, "cpu", backend="eager")
    found_by(model, batch_of(head, device))
    model.zero_grad()
    losses = [model(**batch_of(head, device, seed)).loss for seed in range(3)]
    sum(losses).backward()
    sum(reference(**batch_of(head, "cpu", seed)).loss for seed in range(3)).backward()
    found, expected = ({n: p.grad for n, p in one.named_parameters()} for one in (model, reference))
    check_same(found, expected)
    # A forward without a backward gives its claim back.
    model(**batch_of(head, device))
    assert not next(iter(model.prlstm.composer.graphs.graphs.values())).busy


@pytest.mark.parametrize("misuse", ["no backward", "of the logits", "of both"])
def test_loss_without_its_backward(device, misuse):
    """A graph that makes the gradients with the loss is made again in two parts where something else is wanted."""
    head = PRLSTMForSequenceClassification
    model, reference = model_of(head, device), model_of(head, "cpu", backend="eager")

    def graph():
        (graph,) = model.prlstm.composer.graphs.graphs.values()
        return graph

    def gradients(one, seed):
        one.zero_grad()
        output = one(**batch_of(head, one.device, seed))
        loss = 0.5 * output.loss
        if seed > 2 and misuse != "no backward":
            loss = output.logits.square().sum() + (loss if misuse == "of both" else 0)
        if seed != 3 or misuse != "no backward":
            loss.backward()
        return {name: part.grad for name, part in one.named_parameters() if part.grad is not None}

    for seed in range(6):
        check_same(gradients(model, seed), gradients(reference, seed))
        if seed in (1, 2):
            assert graph().joined
    assert not graph().joined
    with torch.no_grad():
        model(**batch_of(head, device))
    model.eval()
    for _ in range(3):
        model(**batch_of(head, device)).loss.backward()
    assert not any(graph.joined for graph in model.prlstm.composer.graphs.graphs.values())


def test_second_backward(device):
    head = PRLSTMForSequenceClassification
    model = model_of(head, device)
    batch = batch_of(head, device)
    found_by(model, batch)
    loss = model(**batch).loss
    first = torch.autograd.grad(loss, [*model.parameters()], retain_graph=True)
    found_by(model, batch_of(head, device, seed=1))  # the graph has other values now
    second = torch.autograd.grad(loss, [*model.parameters()], retain_graph=True)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    with torch.no_grad():
        model.classifier.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, [*model.parameters()])


@pytest.mark.parametrize("head", [*HEADS, PRLSTMModel])
def test_second_derivatives_are_refused(device, head):
    """By the first batch, without a graph, and by a graph; of a constant gradient autograd itself would not do it."""
    model = model_of(head, device)
    for seed in range(3):
        batch = batch_of(head, device, seed)
        value = model(batch["input_ids"]).last_hidden_state.sum() if head is PRLSTMModel else model(**batch).loss
        with pytest.raises(RuntimeError, match="no second derivatives"):
            torch.autograd.grad(value, [*model.base_model.parameters()], create_graph=True)


def test_embeddings_have_gradients(device):
    head = PRLSTMForSequenceClassification
    model, reference = model_of(head, device), model_of(head, "cpu", backend="eager")
    for seed in range(3):
        embeds = torch.randn(4, LENGTH, 5, generator=torch.Generator().manual_seed(seed))
        gradients = []
        for one in (model, reference):
            given = embeds.to(one.device).requires_grad_()
            one(inputs_embeds=given, labels=torch.tensor([0, 1, 2, 0], device=one.device)).loss.backward()
            gradients.append(given.grad.cpu())
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["auto", *(["triton"] if HAS_TRITON else [])])
@pytest.mark.parametrize("mask", [None, "right"])
@pytest.mark.parametrize("head", HEADS)
def test_values_are_checked(device, head, mask, backend):
    """Without a mask the kernels' graph does it, and is none the worse for what is wrong."""
    model, reference = model_of(head, device, backend=backend), model_of(head, "cpu", backend="eager")
    for seed in range(2):
        found_by(model, batch_of(head, device, seed, mask))
    (graph,) = model.prlstm.composer.graphs.graphs.values()
    for name, values, message in (
        ("input_ids", (5, -1), "`input_ids` must be from 0 to 4"),
        ("labels", (3, -1, 10**9), "`labels` must be from 0 to 2"),
        ("attention_mask", (2,), "`attention_mask` must hold 1 at tokens and 0 at padding"),
    ):
        for value in values if mask or name != "attention_mask" else ():
            batch = batch_of(head, device, 0, mask)
            batch[name].flatten()[0] = value
            if device == "cuda":
                torch.cuda._sleep(10**8)  # the graph is not to be judged by its last batch
            with pytest.raises(ValueError, match=message):
                model(**batch)
    batch = batch_of(head, device, 3, mask)
    batch["labels"].flatten()[0] = -100
    check_same(found_by(model, batch), found_by(reference, {name: part.cpu() for name, part in batch.items()}))
    assert [*model.prlstm.composer.graphs.graphs.values()] == [graph]
    assert graph.joined


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("dtype", "count"), [(torch.uint8, 256), (torch.int8, 200), (torch.uint8, 3)])
def test_labels_of_narrow_dtypes(device, head, dtype, count):
    backend = "triton" if HAS_TRITON else "auto"
    model = model_of(head, device, num_labels=count, backend=backend)
    reference = model_of(head, "cpu", num_labels=count, backend="eager")
    for seed in range(3):
        batches = [batch_of(head, one.device, seed) for one in (model, reference)]
        for batch in batches:
            batch["labels"] = batch["labels"].to(dtype)
        check_same(*(found_by(one, batch) for one, batch in zip((model, reference), batches, strict=True)))
    for wrong in (count, 156) if count == 3 else ():
        batches[0]["labels"].flatten()[0] = wrong
        with pytest.raises(ValueError, match="`labels` must be from 0 to"):
            model(**batches[0])


@pytest.mark.parametrize("what", ["hook", "dropout", "loss", "hidden states", "packed", "int items", "parametrized"])
def test_what_no_graph_of_all_can_hold(device, what):
    """Then the tree alone is a graph, and the rest is called each time."""
    head = PRLSTMForTokenClassification
    model = model_of(head, device, classifier_dropout=0.5 if what == "dropout" else 0.0)
    called, more = [], {}
    if what == "hook":
        model.classifier.register_forward_hook(lambda *arguments: called.append(1))
    elif what == "loss":
        own = model.loss_function
        model.loss_function = lambda *arguments, **options: called.append(1) or own(*arguments, **options)
    elif what == "hidden states":
        more["output_hidden_states"] = True
    elif what == "packed":
        more["position_ids"] = (torch.arange(LENGTH) % 3).expand(4, -1).to(device)
    elif what == "int items":
        more["num_items_in_batch"] = 7
    elif what == "parametrized":
        nn.utils.parametrizations.weight_norm(model.classifier)
    for seed in range(4):
        found_by(model, batch_of(head, device, seed) | more)
    assert len(called) == (4 if what in ("hook", "loss") else 0)
    (graph,) = model.prlstm.composer.graphs.graphs.values()
    assert len(graph.inputs) == 7  # ids, products, lengths and the merge's weights


def test_items_of_the_batch_and_labels_of_one_kind(device):
    """What Trainer gives with the batch is taken in; the problem type that the first labels show is not mixed up."""
    head = PRLSTMForSequenceClassification
    model, reference = model_of(head, device), model_of(head, "cpu", backend="eager")
    for items in (4, 4, 8, 16):
        losses = [
            one(**batch_of(head, one.device), num_items_in_batch=torch.tensor(items, device=one.device)).loss
            for one in (model, reference)
        ]
        torch.testing.assert_close(losses[0].cpu(), losses[1])
        losses[0].backward()
    assert model.config.problem_type == "single_label_classification"
    assert held(model) == 1


@pytest.fixture
def replays(monkeypatch):
    """What was replayed."""
    replays, forward = [], graphs.Graph.forward
    monkeypatch.setattr(graphs.Graph, "forward", lambda self, *inputs: replays.append(self) or forward(self, *inputs))
    return replays


def change_backend(model):
    model.config.backend = "eager" if model.config.backend == "auto" else "auto"


def change_weight(model):
    weight = model.prlstm.composer.merge.refine[0].weight
    weight.data = 2 * weight.data


def change_strides(model):
    model.classifier.weight.data = model.classifier.weight.data.t().clone().t()


def exchange_head(model):
    torch.manual_seed(1)
    model.classifier = nn.Linear(4, 3).to(model.device)


def use_plain_tensors(model):
    weight = model.classifier.weight.detach().clone().requires_grad_()
    del model.classifier.weight
    model.classifier.weight = weight


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.eval(),
        lambda model: model.eval().dropout.train(),
        lambda model: model.prlstm.requires_grad_(False),
        lambda model: setattr(model, "loss_function", lambda *arguments, **options: 0 * arguments[0].sum()),
        lambda model: model.classifier.register_forward_hook(lambda *arguments: None),
        lambda model: model.register_forward_hook(lambda *arguments: None),
        lambda model: getattr(model, f"{CHECKPOINTING}_enable")(),
        lambda model: setattr(model, "classifier", nn.Sequential(model.classifier)),
        change_backend,
        change_weight,
        change_strides,
        exchange_head,
        use_plain_tensors,
    ],
)
def test_no_graph_outlives_a_change(device, change, replays):
    head = PRLSTMForSequenceClassification
    model, reference = model_of(head, device, classifier_dropout=0.0), model_of(head, "cpu", backend="eager")
    batches = batch_of(head, device), batch_of(head, "cpu")
    for _ in range(3):
        found_by(model, batches[0])
    assert len(replays) == 2
    for one in (model, reference):
        one.dropout.p = 0.9 if "dropout" in change.__code__.co_names else 0.0
        torch.manual_seed(0)
        change(one)
    reference.config.backend = "eager"
    for number in range(3):
        found = []
        for one, batch in zip((model, reference), batches, strict=True):
            one.zero_grad()
            output = one(**batch)
            output.loss.backward()
            found.append({"logits": output.logits.detach()})
            found[-1] |= {name: part.grad for name, part in one.named_parameters() if part.grad is not None}
        if not model.dropout.p:
            check_same(*found)
        if number == 0:
            assert len(replays) == 2, "an old graph was replayed"


def test_heads_that_share_a_tree(device):
    tokens = model_of(PRLSTMForTokenClassification, device)
    rows = model_of(PRLSTMForSequenceClassification, device)
    tokens.prlstm, tokens.classifier = rows.prlstm, rows.classifier
    ids = batch_of(PRLSTMForSequenceClassification, device)["input_ids"]
    for _ in range(3):
        assert rows(ids).logits.shape == (4, 3)
        torch.testing.assert_close(tokens(ids).logits[:, -1], rows(ids).logits, rtol=1e-5, atol=1e-6)


def test_replicas(device):
    """Those of DataParallel have no parameters of their own: gradients go to the model's."""
    head = PRLSTMForSequenceClassification
    model = model_of(head, device)
    batch = batch_of(head, device)
    expected = found_by(model, batch)
    for _ in range(3):
        replica = copy.copy(model)
        for module, name in ((replica, "prlstm"), (replica, "classifier")):
            module._modules = dict(module._modules)
            layer = copy.copy(getattr(module, name))
            module._modules[name] = layer
        layer._parameters = {}
        layer.weight, layer.bias = (part * 1 for part in (model.classifier.weight, model.classifier.bias))
        model.zero_grad()
        replica(**batch).loss.backward()
        torch.testing.assert_close(model.classifier.weight.grad, expected["classifier.weight"])


@pytest.mark.parametrize("shape", [(1,), (1, 1), (4,)])
def test_items_of_odd_shapes(device, shape):
    head = PRLSTMForSequenceClassification
    model, reference = model_of(head, device), model_of(head, "cpu", backend="eager")
    for seed in range(3):
        found = []
        for one in (model, reference):
            one.zero_grad()
            items = torch.full(shape, 4, device=one.device)
            one(**batch_of(head, one.device, seed), num_items_in_batch=items).loss.sum().backward()
            found.append({name: part.grad for name, part in one.named_parameters()})
        check_same(*found)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_merges_without_bias(device, head, checkpointing, monkeypatch):
    monkeypatch.setattr("modeling_prlstm.tree_function.CHECKPOINT_TOKENS", LENGTH)
    model, reference = model_of(head, device), model_of(head, "cpu", backend="eager")
    for one in (model, reference):
        for layer in (one.prlstm.composer.merge.binary, *one.prlstm.composer.merge.refine):
            layer.bias = None
    if checkpointing:
        getattr(model, f"{CHECKPOINTING}_enable")()
    for seed in range(3):
        expected = found_by(reference, batch_of(head, "cpu", seed))
        check_same(found_by(model, batch_of(head, device, seed)), expected)
    assert held(model) == (2 if checkpointing else 1)


def test_odd_models(device):
    """Parameters made in inference mode, none that needs a gradient, sparse gradients; a loss that no one wants."""
    head = PRLSTMForSequenceClassification
    batch = batch_of(head, device)
    with torch.inference_mode():
        model = model_of(head, device)
        logits = [model(batch["input_ids"]).logits for _ in range(3)]
    torch.testing.assert_close(logits[0], logits[2])
    model = model_of(head, device, embedding_size=4).requires_grad_(False)
    model.get_input_embeddings().requires_grad_(True)
    embeds = torch.randn(4, LENGTH, 4, device=device)
    for _ in range(3):
        assert not model(inputs_embeds=embeds).logits.requires_grad
    model = model_of(head, device, embedding_size=4)
    sparse = nn.Embedding(5, 4, sparse=True, device=device)
    model.set_input_embeddings(sparse)
    for _ in range(3):
        model(**batch).loss.backward()

    class Unwanted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, loss):
            return loss.clone()

        @staticmethod
        def backward(ctx, gradient):
            return None

    model = model_of(head, device)
    for _ in range(3):
        Unwanted.apply(model(**batch).loss).backward()


@pytest.mark.parametrize("head", [*HEADS, PRLSTMModel])
def test_checkpointing_around_the_model(device, head):
    """It wants the same tensors saved each time, be it with a graph or without."""
    model, reference = model_of(head, device), model_of(head, "cpu", backend="eager")

    def result(one, seed):
        batch = batch_of(head, one.device, seed)
        return one(**batch).loss if head in HEADS else one(batch["input_ids"]).last_hidden_state.sum()

    for seed in range(4):
        for one in (model, reference):
            one.zero_grad()
        torch.utils.checkpoint.checkpoint(result, model, seed, use_reentrant=False).backward()
        result(reference, seed).backward()
        found, expected = ({name: p.grad for name, p in one.named_parameters()} for one in (model, reference))
        check_same(found, expected)


def test_parameters_stay_in_place_while_a_graph_is_made(device, monkeypatch):
    """Other threads may use the model."""
    head = PRLSTMForSequenceClassification
    model = model_of(head, device)
    parameters, rehearsal, seen = [*model.parameters()], graphs._rehearsal, []

    @contextlib.contextmanager
    def look(stream):
        with rehearsal(stream):
            yield
            seen.append([id(part) for part in model.parameters()] == [id(part) for part in parameters])

    monkeypatch.setattr(graphs, "_rehearsal", look)
    for _ in range(2):
        found_by(model, batch_of(head, device))
    assert seen == [True]


def test_parameters_that_are_exchanged(device):
    head = PRLSTMForSequenceClassification
    model, reference = model_of(head, device), model_of(head, "cpu", backend="eager")
    batches = batch_of(head, device), batch_of(head, "cpu")
    for _ in range(2):
        found_by(model, batches[0])
    for factor in (2, 3):
        state = {name: factor * part for name, part in reference.state_dict().items()}
        reference.load_state_dict(state)
        model.load_state_dict({name: part.to(device) for name, part in state.items()}, assign=factor == 2)
        for _ in range(2):
            check_same(found_by(model, batches[0]), found_by(reference, batches[1]))
    model.requires_grad_(False)
    model.classifier.requires_grad_(True)
    for _ in range(3):
        model(**batches[0]).loss.backward()
    assert model.prlstm.composer.leaf.weight.grad is not None  # of before
    copied = copy.deepcopy(model)
    assert held(copied) == 0
    check_same({"logits": copied(**batches[0]).logits}, {"logits": reference(**batches[1]).logits.detach()})


def test_bare_models(device):
    model = model_of(PRLSTMModel, device)
    reference = model_of(PRLSTMModel, "cpu", backend="eager")
    for seed in range(3):
        outputs = []
        for one in (model, reference):
            batch = batch_of(PRLSTMForTokenClassification, one.device, seed, "right")
            one.zero_grad()
            output = one(batch["input_ids"], batch["attention_mask"])
            (output.last_hidden_state.square().sum() + output.pooler_output.sum()).backward()
            outputs.append({"states": output.last_hidden_state.detach()})
            outputs[-1] |= {name: part.grad for name, part in one.named_parameters()}
        check_same(*outputs)
    assert len(model.composer.graphs.graphs) == 1


def test_one_graph_is_made_at_a_time(device):
    """Of the whole process; who finds another thread at it goes without."""
    head = PRLSTMForSequenceClassification
    model, reference = model_of(head, device), model_of(head, "cpu", backend="eager")
    with graphs._making:
        for _ in range(3):
            check_same(found_by(model, batch_of(head, device)), found_by(reference, batch_of(head, "cpu")))
    assert held(model) == 0
    found_by(model, batch_of(head, device))
    assert held(model) == 1


def test_a_moved_model_frees_its_graphs(device):
    head = PRLSTMForSequenceClassification
    model = model_of(head, device)
    for _ in range(2):
        found_by(model, batch_of(head, device))
    assert held(model) == 1
    model.to(torch.float64)
    assert held(model) == 0


def test_no_graph_takes_the_last_memory(device, monkeypatch):
    head = PRLSTMForSequenceClassification
    model = model_of(head, device)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", torch.cuda.memory_allocated)
    for _ in range(3):
        found_by(model, batch_of(head, device))
    assert held(model) == 0


def test_room(device, monkeypatch):
    """A graph that batches still use is not given up for a new shape; one of long ago is."""
    head = PRLSTMForSequenceClassification
    model = model_of(head, device)
    monkeypatch.setattr(graphs, "IDLE", 5)
    arithmetic = composer.arithmetic_of("fused")
    size = model.prlstm.composer.composition(arithmetic, (4, LENGTH), 5, False, False).size(4, 1, True)
    memory = 1.5 * size / graphs.TOTAL_SHARE
    monkeypatch.setattr(graphs, "SHARE", graphs.TOTAL_SHARE)
    monkeypatch.setattr(torch.cuda, "get_device_properties", gpu_of(memory))
    for _ in range(2):
        found_by(model, batch_of(head, device))
    (first,) = model.prlstm.composer.graphs.graphs
    for _ in range(4):
        found_by(model, batch_of(head, device, length=LENGTH - 1))
    assert [*model.prlstm.composer.graphs.graphs] == [first]
    for _ in range(3):
        found_by(model, batch_of(head, device, length=LENGTH - 1))
    (second,) = model.prlstm.composer.graphs.graphs
    assert second != first
    found_by(model, batch_of(head, device, length=40))  # more than one graph may have
    found_by(model, batch_of(head, device, length=40))
    assert held(model) == 1
