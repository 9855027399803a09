"""Bad calls and bad checkpoints: each has its error, which names the argument, the value and the mend.

Bad configurations are in test_configuration.py, bad boundaries of packed rows in test_packing.py.
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from modeling_prlstm import (
    PRLSTMConfig,
    PRLSTMForSequenceClassification,
    PRLSTMForTokenClassification,
    PRLSTMModel,
)

from .reference import small_config

IDS = torch.ones(2, 3, dtype=torch.int64)
MASK = torch.ones(2, 3, dtype=torch.int64)
NAN, INF = float("nan"), float("inf")


def ids(*rows, dtype=torch.int64):
    return torch.tensor(rows, dtype=dtype)


def embeds(*shape, fill=1.0):
    tensor = torch.ones(shape)
    tensor.view(-1)[-1] = fill
    return tensor


def build(model_class, **kwargs):
    torch.manual_seed(0)
    return model_class(small_config(**kwargs)).eval()


CALLS = {
    "nothing": ({}, "either `input_ids` or `inputs_embeds`; got neither"),
    "both": ({"input_ids": IDS, "inputs_embeds": embeds(2, 3, 5)}, "got both"),
    "one dimension": ({"input_ids": IDS[0]}, r"shape \(batch, length\), got torch.int64 of shape \(3,\)"),
    "three dimensions": ({"input_ids": IDS[None]}, r"of shape \(1, 2, 3\)"),
    "floating ids": ({"input_ids": IDS.float()}, "must be int64 or int32 ids .* got torch.float32"),
    "boolean ids": ({"input_ids": IDS.bool()}, "got torch.bool"),
    "short ids": ({"input_ids": IDS.to(torch.uint8)}, "got torch.uint8"),
    "too large": ({"input_ids": ids([0, 1], [4, 5])}, "from 0 to 4 .* got 5 in row 1 at position 1"),
    "negative": ({"input_ids": ids([0, -1])}, "got -1 in row 0 at position 1. Mark padding"),
    "negative int32": ({"input_ids": ids([-2], dtype=torch.int32)}, "got -2 in row 0 at position 0"),
    "no position": ({"input_ids": ids([])}, "has no tokens"),
    "no row": ({"input_ids": torch.ones(0, 3, dtype=torch.int64)}, "has no tokens"),
    "no position, vectors": ({"inputs_embeds": torch.ones(1, 0, 5)}, "has no tokens"),
    "narrow vectors": ({"inputs_embeds": embeds(2, 3, 4)}, r"\(batch, length, vocab_size = 5\)"),
    "flat vectors": ({"inputs_embeds": embeds(2, 5)}, r"got torch.float32 of shape \(2, 5\)"),
    "integer vectors": ({"inputs_embeds": embeds(2, 3, 5).long()}, "floating-point vectors .* got torch.int64"),
    "half vectors": (
        {"inputs_embeds": embeds(2, 3, 5).half()},
        "must have the dtype of the model's weights, torch.float32",
    ),
    "NaN": ({"inputs_embeds": embeds(2, 3, 5, fill=NAN)}, "must be finite, got NaN .* row 1 at position 2"),
    "infinity": ({"inputs_embeds": embeds(2, 3, 5, fill=-INF)}, "must be finite"),
    "empty row": ({"input_ids": IDS, "attention_mask": ids([1, 1, 0], [0, 0, 0])}, r"0 everywhere in row\(s\) \[1\]"),
    "long mask": ({"input_ids": IDS, "attention_mask": torch.ones(2, 4)}, r"\(2, 3\), got \(2, 4\)"),
    "mask of one row": ({"input_ids": IDS, "attention_mask": MASK[:1]}, r"got \(1, 3\)"),
    "mask of heads": ({"input_ids": IDS, "attention_mask": MASK[:, None, None]}, r"got \(2, 1, 1, 3\)"),
    "additive mask": ({"input_ids": IDS, "attention_mask": torch.tensor([[0.0, 0, -1e9]] * 2)}, "1 at tokens"),
    "complex mask": ({"input_ids": IDS, "attention_mask": MASK * 1j}, "1 at tokens and 0 at padding, got torch.comp"),
    "numbered mask": ({"input_ids": IDS, "attention_mask": MASK * 2}, r"got \[2\]"),
}

NO_TENSORS = {
    "list of ids": ({"input_ids": [[0, 1]]}, "`input_ids` must be a tensor, got list: use `torch.tensor"),
    "text": ({"input_ids": "0110"}, "`input_ids` must be a tensor, got str"),
    "array of ids": ({"input_ids": IDS.numpy()}, "`input_ids` must be a tensor, got ndarray"),
    "list of vectors": ({"inputs_embeds": [[[0.0] * 5]]}, "`inputs_embeds` must be a tensor, got list"),
    "list as a mask": ({"input_ids": IDS, "attention_mask": [[1, 1, 1]] * 2}, "`attention_mask` must be a tensor"),
    "switch as a mask": ({"input_ids": IDS, "attention_mask": True}, "`attention_mask` must be a tensor, got bool"),
    "list of labels": ({"input_ids": IDS, "labels": [0, 1]}, "`labels` must be a tensor, got list"),
    "number as a label": ({"input_ids": IDS, "labels": 1}, "`labels` must be a tensor, got int"),
}

ROW_LABELS = {
    "too many": (torch.ones(3).long(), r"integer classes of shape \(2,\), got torch.int64 of shape \(3,\)"),
    "boolean": (torch.ones(2).bool(), "got torch.bool"),
    "too large": (ids(0, 3), r"from 0 to 2 \(`num_labels` is 3\), or -100 .* got \[3\]"),
    "negative": (ids(-1, 0), r"got \[-1\]"),
    "floats of one label": (torch.rand(2), r"one target for each of the logits \(2, 3\) for multi_label"),
    "of all tokens": (torch.ones(2, 3).long(), r"integer classes of shape \(2,\), got torch.int64 of shape \(2, 3\)"),
    "transposed targets": (torch.rand(3, 2), r"one target for each of the logits \(2, 3\) .* got the shape \(3, 2\)"),
    "scores for classes": (torch.tensor([[0.0, 2, 1]] * 2), r"from 0 to 1 for multi_label.* got \[0.0, 1.0, 2.0\]"),
    "NaN for a class": (torch.tensor([[0.0, NAN, 1]] * 2), "from 0 to 1 for multi_label"),
}

TOKEN_LABELS = {
    "of rows": (torch.ones(2).long(), r"integer classes of shape \(2, 3\), got torch.int64 of shape \(2,\)"),
    "transposed": (torch.ones(3, 2).long(), r"integer classes of shape \(2, 3\), got torch.int64 of shape \(3, 2\)"),
    "flat": (torch.ones(6).long(), r"of shape \(2, 3\), got torch.int64 of shape \(6,\)"),
    "one hot": (torch.ones(2, 3, 3).long(), r"of shape \(2, 3\), got torch.int64 of shape \(2, 3, 3\)"),
    "floating": (torch.ones(2, 3), "got torch.float32"),
    "bytes too large": (torch.full((2, 3), 156, dtype=torch.uint8), r"got \[156\]"),
    "too large": (ids([0, 1, 2], [3, 4, 0]), r"got \[3, 4\]"),
    "negative": (ids([0, 1, 2], [-7, -100, 0]), r"got \[-7\]"),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("model_class", [PRLSTMForSequenceClassification, PRLSTMForTokenClassification])
def test_calls(model_class, name):
    inputs, message = CALLS[name]
    with pytest.raises(ValueError, match=message):
        build(model_class)(**inputs)


@pytest.mark.parametrize("name", NO_TENSORS)
@pytest.mark.parametrize("model_class", [PRLSTMForSequenceClassification, PRLSTMForTokenClassification])
def test_no_tensors(model_class, name):
    inputs, message = NO_TENSORS[name]
    with pytest.raises(TypeError, match=message):
        build(model_class)(**inputs)


def test_vectors_of_the_wrong_width_name_the_embedding_size():
    with pytest.raises(ValueError, match=r"\(batch, length, embedding_size = 4\)"):
        build(PRLSTMForSequenceClassification, embedding_size=4)(inputs_embeds=embeds(2, 3, 5))


@pytest.mark.parametrize("name", ROW_LABELS)
def test_labels_of_rows(name):
    labels, message = ROW_LABELS[name]
    with pytest.raises(ValueError, match=message):
        build(PRLSTMForSequenceClassification)(IDS, labels=labels)


def test_targets_of_a_regression():
    model = build(PRLSTMForSequenceClassification, num_labels=1)
    with pytest.raises(ValueError, match=r"one target for each of the logits \(2, 1\) for regression"):
        model(IDS, labels=torch.rand(3))
    for wrong in (NAN, INF):
        with pytest.raises(ValueError, match="must be finite for regression, got NaN or infinity"):
            model(IDS, labels=torch.tensor([0, wrong]))


@pytest.mark.parametrize("name", TOKEN_LABELS)
def test_labels_of_tokens(name):
    labels, message = TOKEN_LABELS[name]
    with pytest.raises(ValueError, match=message):
        build(PRLSTMForTokenClassification)(IDS, labels=labels)


def test_one_hot_tokens_have_no_table_to_resize():
    with pytest.raises(ValueError, match="there is no embedding table to resize"):
        build(PRLSTMForSequenceClassification).resize_token_embeddings(7)


class TestCheckpoints:
    @pytest.fixture
    def folder(self, tmp_path):
        build(PRLSTMForSequenceClassification).save_pretrained(tmp_path)
        return tmp_path

    def test_truncated_weights(self, folder):
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(Exception, match=r"(?i)incomplete|invalid|header|buffer"):
            AutoModelForSequenceClassification.from_pretrained(folder)

    def test_no_weights(self, folder):
        (folder / "model.safetensors").unlink()
        with pytest.raises(OSError, match=r"model\.safetensors"):
            AutoModelForSequenceClassification.from_pretrained(folder)

    def test_no_configuration(self, folder):
        (folder / "config.json").unlink()
        with pytest.raises((OSError, ValueError), match=r"config\.json|model_type|Unrecognized model"):
            AutoModelForSequenceClassification.from_pretrained(folder)

    def test_configuration_of_another_size(self, folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 7}))
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            AutoModelForSequenceClassification.from_pretrained(folder)

    def test_invalid_configuration(self, folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"cell_type": "tree"}))
        with pytest.raises(Exception, match="cell_type"):
            AutoModelForSequenceClassification.from_pretrained(folder)

    def test_wrong_dtype_is_cast_to_the_one_asked_for(self, folder):
        weights = folder / "model.safetensors"
        save_file({name: t.half() for name, t in load_file(weights).items()}, weights, {"format": "pt"})
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
    def test_pickled_weights_are_not_read(self, folder, name, monkeypatch):
        monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled"))
        (folder / "model.safetensors").rename(folder / name)
        with pytest.raises(OSError, match=r"model\.safetensors") as error:
            AutoModelForSequenceClassification.from_pretrained(folder)
        assert "`use_safetensors=False` unpickles those of a source that you trust" in error.value.__notes__[0]

    def test_pickled_weights_are_read_if_asked_for(self, folder):
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        expected = AutoModelForSequenceClassification.from_pretrained(folder)
        (folder / "model.safetensors").unlink()
        model = AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=False)
        assert torch.equal(model.classifier.weight, expected.classifier.weight)


def test_a_table_of_too_few_rows():
    model = PRLSTMModel(PRLSTMConfig(vocab_size=5, embedding_size=4, hidden_size=4))
    model.set_input_embeddings(torch.nn.Embedding(3, 4))
    with pytest.raises(ValueError, match=r"has 3 rows for a `vocab_size` of 5. .*`resize_token_embeddings`"):
        model(IDS)


def test_complex_targets():
    model = PRLSTMForSequenceClassification(small_config(problem_type="regression"))
    with pytest.raises(ValueError, match=r"`labels` must be real numbers for regression, got torch.complex64"):
        model(IDS, labels=1j * torch.rand(2, model.config.num_labels))
