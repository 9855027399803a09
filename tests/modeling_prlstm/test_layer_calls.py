"""What acts when a layer is called takes effect: adapters in its place, hooks, pruning, offloading, noise."""

import copy

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from torch import nn
from torch.nn.utils import prune

from modeling_prlstm import (
    PRLSTMForSequenceClassification,
    PRLSTMForTokenClassification,
    PRLSTMModel,
    TrainingStep,
    composer,
)
from modeling_prlstm.cells import CELLS

from .reference import small_config

HEADS = [PRLSTMForSequenceClassification, PRLSTMForTokenClassification]
IDS = torch.randint(5, (3, 11), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(11) < torch.tensor([[11], [4], [7]])).long()


class LoRA(nn.Module):
    """An adapter that shows its base layer's weight, as peft's do."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        self.to(base.weight.dtype)

    @property
    def weight(self):
        return self.base.weight

    @property
    def bias(self):
        return self.base.bias

    def forward(self, inputs):
        return self.base(inputs) + self.up(self.down(inputs))


def build(model_class=PRLSTMModel, cell_type="lstm", **kwargs):
    torch.manual_seed(0)
    model = model_class(small_config(cell_type, **kwargs)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return model


def adapt(model):
    """Put adapters in place of all layers of the tree; they, by the names of the layers, and the model merged."""
    merged, adapters = copy.deepcopy(model), {}
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and "composer" in name:
            adapters[name] = adapter = LoRA(layer)
            model.set_submodule(name, adapter)
            merged.get_submodule(name).weight.data += (adapter.up.weight @ adapter.down.weight).data
    return adapters, merged


@pytest.mark.parametrize("model_class", HEADS)
@pytest.mark.parametrize("cell_type", CELLS)
@pytest.mark.parametrize("sizes", [{}, {"embedding_size": 4}, {"vocab_size": 1100}, {"num_refinements": 0}], ids=str)
def test_adapters_give_what_their_merged_weights_give(model_class, cell_type, sizes):
    model = build(model_class, cell_type, **sizes).double().train()
    adapters, merged = adapt(model)
    logits, expected = model(IDS, MASK).logits, merged(IDS, MASK).logits
    torch.testing.assert_close(logits, expected)
    logits.square().sum().backward()
    expected.square().sum().backward()
    for name, adapter in adapters.items():
        of_weight = merged.get_submodule(name).weight.grad
        torch.testing.assert_close(adapter.up.weight.grad, of_weight @ adapter.down.weight.T)
        torch.testing.assert_close(adapter.down.weight.grad, adapter.up.weight.T @ of_weight)


@pytest.mark.parametrize("model_class", HEADS)
@pytest.mark.parametrize("autocast", [False, True])
def test_adapters_in_bfloat16(model_class, autocast):
    model = build(model_class).to(torch.float32 if autocast else torch.bfloat16)
    _, merged = adapt(model)
    expected = merged.float()(IDS, MASK).logits
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(IDS, MASK).logits
    torch.testing.assert_close(logits.float(), expected, rtol=0, atol=0.1)


def test_adapters_of_the_embedding_see_every_token():
    model = build(embedding_size=4)
    table = model.get_input_embeddings()
    model.set_input_embeddings(nn.Sequential(table, nn.Linear(4, 4)))
    expected = model(inputs_embeds=model.get_input_embeddings()(IDS), attention_mask=MASK)
    torch.testing.assert_close(model(IDS, MASK).pooler_output, expected.pooler_output)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("model_class", HEADS)
def test_adapters_on_a_gpu(model_class):
    """In plain steps and in a graph of the whole step."""
    model = build(model_class).train()
    adapt(model)
    logits = model(IDS, MASK).logits
    model.cuda()
    torch.testing.assert_close(model(IDS.cuda(), MASK.cuda()).logits.cpu(), logits, rtol=0, atol=1e-5)
    captured = copy.deepcopy(model)
    batch = {"input_ids": IDS.cuda(), "labels": torch.zeros(logits.shape[:-1], dtype=torch.int64, device="cuda")}
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    step = TrainingStep(captured, torch.optim.Adam(captured.parameters(), 1e-2, capturable=True), max_grad_norm=None)
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(step(**batch), loss.detach(), rtol=1e-4, atol=1e-5)


def test_compiled_adapters(monkeypatch):
    monkeypatch.setattr(composer, "TRACED_LEVELS", composer.TRACED_STAGE)  # those that short rows need, for speed
    model = build(PRLSTMForSequenceClassification, num_refinements=0)
    adapt(model)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(IDS).logits, model(IDS).logits)


HOOKS = {
    "forward": lambda layer, note: layer.register_forward_hook(lambda *_: note()),
    "always called": lambda layer, note: layer.register_forward_hook(lambda *_: note(), always_call=True),
    "before": lambda layer, note: layer.register_forward_pre_hook(lambda *_: note()),
    "before, with keywords": lambda layer, note: layer.register_forward_pre_hook(lambda *_: note(), with_kwargs=True),
    "backward": lambda layer, note: layer.register_full_backward_hook(lambda *_: note()),
    "before backward": lambda layer, note: layer.register_full_backward_pre_hook(lambda *_: note()),
}


@pytest.mark.filterwarnings("ignore:Full backward hook is firing.*no inputs require gradients:UserWarning")
@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("name", ["leaf", "one-hot leaf", "merge", "merge.binary", "merge.refine.0", "embed_tokens"])
def test_hooks_are_called_and_change_nothing(name, kind):
    model = build(embedding_size=None if name == "one-hot leaf" else 4).train()
    name = name.removeprefix("one-hot ")
    expected, calls = model(IDS, MASK).pooler_output, []
    handle = HOOKS[kind](model.composer.get_submodule(name), lambda: calls.append(kind))
    states = model(IDS, MASK).pooler_output
    states.sum().backward()
    assert calls
    torch.testing.assert_close(states, expected)
    handle.remove()
    assert torch.equal(model(IDS, MASK).pooler_output, expected)


def test_hooks_that_replace_results():
    model, expected = build(), build()
    binary = expected.composer.merge.binary
    binary.weight.data *= 2
    binary.bias.data *= 2
    model.composer.merge.binary.register_forward_hook(lambda layer, inputs, output: 2 * output)
    torch.testing.assert_close(model(IDS, MASK).pooler_output, expected(IDS, MASK).pooler_output)


def test_hooks_see_the_states_of_all_merges():
    model, rows = build(), []
    model.composer.merge.binary.register_forward_hook(lambda layer, inputs, output: rows.append(inputs[0].shape))
    model(IDS, pool_only=True)
    assert {shape[-1] for shape in rows} == {12}
    assert sum(shape[:-1].numel() for shape in rows) == len(IDS) * (IDS.shape[1] - 1)


def test_pruned_weights_follow_their_originals():
    model, expected = build(), build()
    layer, plain = model.composer.merge.binary, expected.composer.merge.binary
    prune.random_unstructured(layer, "weight", 0.5)
    for _ in range(2):
        plain.weight.data = (layer.weight_orig * layer.weight_mask).detach()
        torch.testing.assert_close(model(IDS, MASK).pooler_output, expected(IDS, MASK).pooler_output)
        layer.weight_orig.data += 0.5


@pytest.mark.parametrize("backend", ["fused", "triton"])
def test_a_backend_that_makes_no_calls_is_refused(backend):
    model = build(backend=backend)
    adapt(model)
    with pytest.raises(RuntimeError, match=rf"`backend='{backend}'` cannot run: .* an adapter, a hook or offloading"):
        model(IDS)


OFFLOADS = {
    "cpu_offload": lambda model, folder: cpu_offload(model, execution_device="cpu"),
    "disk_offload": lambda model, folder: disk_offload(model, folder, execution_device="cpu"),
    "dispatch_model": lambda model, folder: dispatch_model(
        model, {"prlstm": "disk", "classifier": "cpu"}, main_device="cpu", offload_dir=folder
    ),
}


@pytest.mark.parametrize("offload", OFFLOADS)
@pytest.mark.parametrize("model_class", HEADS)
@pytest.mark.parametrize("sizes", [{}, {"embedding_size": 4}, {"cell_type": "rnn"}], ids=str)
@torch.no_grad()
def test_offloaded_weights(offload, model_class, sizes, tmp_path):
    plain = build(model_class, **sizes)
    offloaded = OFFLOADS[offload](copy.deepcopy(plain), str(tmp_path))
    assert any(parameter.is_meta for parameter in offloaded.prlstm.parameters())
    logits = offloaded(IDS, MASK).logits
    torch.testing.assert_close(logits, plain(IDS, MASK).logits)
    plain.config.backend = "eager"  # what calls the layers, as the offloaded model does
    assert torch.equal(logits, plain(IDS, MASK).logits)


@torch.no_grad()
def test_weights_loaded_for_offloading(tmp_path):
    plain = build(PRLSTMForSequenceClassification)
    plain.save_pretrained(tmp_path)
    loaded = PRLSTMForSequenceClassification.from_pretrained(
        tmp_path, device_map={"prlstm": "disk", "classifier": "cpu"}, offload_folder=str(tmp_path / "offload")
    )
    torch.testing.assert_close(loaded(IDS, MASK).logits, plain(IDS, MASK).logits)


@pytest.mark.parametrize("cell_type", CELLS)
@pytest.mark.parametrize("name", ["leaf", "merge.binary", "merge.refine"])
def test_layers_without_bias(name, cell_type):
    """As ones whose biases are zeros, which is what there is to compare them with."""
    model, expected = build(cell_type=cell_type), build(cell_type=cell_type)
    for layer in expected.composer.get_submodule(name).modules():
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)
    for layer in model.composer.get_submodule(name).modules():
        if isinstance(layer, nn.Linear):
            layer.bias = None
    torch.testing.assert_close(model(IDS, MASK).pooler_output, expected(IDS, MASK).pooler_output)
    for one in (model, expected):
        one(IDS, MASK).pooler_output.square().sum().backward()
    gradients = {own: parameter.grad for own, parameter in expected.named_parameters()}
    for own, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[own])


def test_noise_is_each_tokens_own():
    """As NEFTune's, which comes by a hook."""
    model = build(embedding_size=4)
    model.get_input_embeddings().register_forward_hook(lambda layer, inputs, output: output + torch.rand_like(output))
    leaves = model(torch.ones(1, 9, dtype=torch.int64), output_hidden_states=True).hidden_states[0][0]
    assert len(leaves.unique(dim=0)) == 9
