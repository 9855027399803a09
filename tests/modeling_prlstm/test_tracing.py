"""One graph serves every length: torch.compile, torch.export and ONNX, right at lengths that were not traced."""

import pytest
import torch

from modeling_prlstm import PRLSTMForSequenceClassification, PRLSTMForTokenClassification

from .reference import small_config

MODELS = {"reduce": PRLSTMForSequenceClassification, "scan": PRLSTMForTokenClassification}
SHAPES = [(1, 1), (3, 2), (4, 100), (2, 127), (5, 37), (1, 64)]
LONG = (2, 1000)


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param](small_config(num_refinements=1)).eval()


@pytest.fixture
def few_levels(monkeypatch):
    """As many as the longest row of SHAPES needs: tracing takes as long as there are levels."""
    monkeypatch.setattr("modeling_prlstm.composer.TRACED_LEVELS", 6)


def batch(rows, length):
    """Ids and a mask of scattered padding."""
    generator = torch.Generator().manual_seed(length)
    mask = (torch.rand(rows, length, generator=generator) < 0.7).long()
    mask[:, length // 2] = 1
    return {"input_ids": torch.randint(5, (rows, length), generator=generator), "attention_mask": mask}


@pytest.mark.pinned
@pytest.mark.usefixtures("few_levels")
def test_compiled_graphs_are_few(model):
    torch.compiler.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=count)
    shapes = [(8, length) for length in range(1, 41)] + [(rows, 24) for rows in range(1, 65)]
    with torch.no_grad():
        for rows, length in shapes:
            ids = batch(rows, length)["input_ids"]
            torch.testing.assert_close(compiled(ids).logits, model(ids).logits)
    assert len(graphs) <= 3


@pytest.mark.pinned
@pytest.mark.usefixtures("few_levels")
def test_longer_rows_than_compiled_levels_are_refused(model):
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    for length in (9, 127):
        compiled(batch(2, length)["input_ids"])
    with pytest.raises(Exception, match="A compiled model takes up to 127 tokens a row"):
        compiled(batch(2, 128)["input_ids"])


@pytest.mark.pinned
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_exported_for_any_length(model, request):
    all_levels = model.__class__ is MODELS["reduce"]  # of one model are enough
    if not all_levels:
        request.getfixturevalue("few_levels")
    rows, length = torch.export.Dim("rows"), torch.export.Dim("length")
    axes = {0: rows, 1: length}
    program = torch.export.export(
        model, (), batch(2, 9), dynamic_shapes={"input_ids": axes, "attention_mask": axes}
    ).module()
    for shape in [*SHAPES, LONG] if all_levels else SHAPES:
        inputs = batch(*shape)
        torch.testing.assert_close(program(**inputs).logits, model(**inputs).logits)


@pytest.mark.usefixtures("few_levels")
@pytest.mark.filterwarnings("ignore")  # of the exporter's own dependencies
def test_onnx_for_any_length():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from transformers.exporters import OnnxConfig, OnnxExporter

    torch.manual_seed(0)
    model = PRLSTMForSequenceClassification(small_config(num_refinements=0)).eval()
    axes = {0: torch.export.Dim("rows"), 1: torch.export.Dim("length")}
    config = OnnxConfig(dynamic=True, dynamic_shapes={"input_ids": axes, "attention_mask": axes})
    exported = OnnxExporter().export(model, batch(2, 9), config)
    for shape in SHAPES:
        inputs = batch(*shape)
        logits = exported(**inputs)[0]  # on ONNX Runtime
        torch.testing.assert_close(logits, model(**inputs).logits)
