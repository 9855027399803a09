"""Checkpoints of every dtype, and where this package is not installed."""

import json
import os
import subprocess
import sys
import sysconfig
import textwrap
import venv
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

import modeling_prlstm
from modeling_prlstm import PRLSTMForSequenceClassification, PRLSTMForTokenClassification, PRLSTMModel

from .reference import small_config

PACKAGE = Path(modeling_prlstm.__file__).parent
CODE = {path.name for path in PACKAGE.glob("*.py")} - {
    "__init__.py",
    "training_step.py",
    "step_trainer.py",
}  # no model needs these
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def build(**kwargs):
    torch.manual_seed(0)
    return PRLSTMForSequenceClassification(small_config(**kwargs)).eval()


def same_weights(one, other):
    return one.state_dict().keys() == other.state_dict().keys() and all(
        torch.equal(tensor, other.state_dict()[name].to(tensor.dtype)) for name, tensor in one.state_dict().items()
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("embedding_size", [None, 4])
def test_round_trip_in_every_dtype(dtype, embedding_size, tmp_path):
    model = build(embedding_size=embedding_size).to(dtype)
    model.save_pretrained(tmp_path)
    ids = torch.randint(5, (3, 9))
    for arguments in ({}, {"dtype": dtype}, {"dtype": "auto"}, {"device_map": "auto"}, {"device_map": "cpu"}):
        loaded, report = AutoModelForSequenceClassification.from_pretrained(
            tmp_path, output_loading_info=True, **arguments
        )
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
        assert same_weights(model, loaded)
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_dtype_asked_for(tmp_path):
    build().save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


def test_only_safetensors_are_written_beside_the_code(tmp_path):
    build().save_pretrained(tmp_path)
    written = {path.name for path in tmp_path.iterdir()}
    assert CODE | {"config.json", "model.safetensors"} <= written
    assert not [name for name in written if name.endswith((".bin", ".pt", ".pth", ".pkl"))]


def test_other_number_of_labels(tmp_path):
    build().save_pretrained(tmp_path)
    arguments = {"num_labels": 7, "ignore_mismatched_sizes": True, "output_loading_info": True}
    loaded, report = AutoModelForSequenceClassification.from_pretrained(tmp_path, **arguments)
    assert {key for key, *_ in report["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}
    assert same_weights(loaded.prlstm, build().prlstm)
    assert loaded(torch.randint(5, (3, 9))).logits.shape == (3, 7)


def test_other_head_reports_what_is_missing(tmp_path):
    build().prlstm.save_pretrained(tmp_path)
    loaded, report = AutoModelForTokenClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert same_weights(loaded.prlstm, build().prlstm)


def test_shards(tmp_path):
    model = build()
    model.save_pretrained(tmp_path, max_shard_size=500)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert same_weights(model, AutoModelForSequenceClassification.from_pretrained(tmp_path))


def test_weights_that_are_given():
    model = build()
    loaded = PRLSTMForSequenceClassification.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    assert same_weights(model, loaded)


MINE = """
from modeling_prlstm import PRLSTMForSequenceClassification

class Mine(PRLSTMForSequenceClassification):
    pass
"""


@pytest.fixture
def derived(tmp_path, monkeypatch):
    """A class derived in another module."""
    (tmp_path / "module").mkdir()
    (tmp_path / "module" / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path / "module")
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    import mine

    return mine.Mine


@pytest.mark.parametrize("registered", [False, True])
def test_class_derived_elsewhere(derived, registered, tmp_path):
    build().save_pretrained(tmp_path / "base")
    model = derived.from_pretrained(tmp_path / "base")
    if registered:
        derived.register_for_auto_class("AutoModelForSequenceClassification")
    model.save_pretrained(tmp_path / "saved")
    heads = {"AutoModelForSequenceClassification": "mine.Mine"} if registered else {}
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["auto_map"] == {"AutoConfig": "configuration_prlstm.PRLSTMConfig"} | heads
    assert config["architectures"] == ["Mine"]
    assert (tmp_path / "saved" / "mine.py").exists() == registered
    assert same_weights(model, derived.from_pretrained(tmp_path / "saved"))


def test_every_head_is_named_whichever_is_saved(tmp_path):
    for model_class in (PRLSTMModel, PRLSTMForSequenceClassification, PRLSTMForTokenClassification):
        model_class(small_config()).save_pretrained(tmp_path)
        auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
        assert auto_map == {
            "AutoConfig": "configuration_prlstm.PRLSTMConfig",
            "AutoModel": "modeling_prlstm.PRLSTMModel",
            "AutoModelForSequenceClassification": "modeling_prlstm.PRLSTMForSequenceClassification",
            "AutoModelForTokenClassification": "modeling_prlstm.PRLSTMForTokenClassification",
        }


def test_meta_device():
    with torch.device("meta"):
        model = PRLSTMForSequenceClassification(small_config())
        ids = torch.zeros(2, 5, dtype=torch.int64)
    assert all(parameter.is_meta for parameter in model.parameters())
    outputs = model(ids, attention_mask=ids + 1, output_hidden_states=True)
    assert outputs.logits.shape == (2, model.config.num_labels)
    assert outputs.hidden_states[1].shape == (2, 5, model.config.hidden_size)


@pytest.fixture(scope="module")
def python_without_package(tmp_path_factory):
    """The interpreter of a virtual environment that sees what is installed here except this package."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    packages = sysconfig.get_path("purelib", vars={"base": folder, "platbase": folder})
    # A path that a .pth file adds has no .pth files read in turn: an editable install there stays out.
    with open(os.path.join(packages, "dependencies.pth"), "w") as file:
        file.write(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def run(python, folder, code):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [python, "-c", textwrap.dedent(code)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_where_the_package_is_not_installed(python_without_package, tmp_path):
    model, ids = build(), torch.randint(5, (3, 9))
    model.save_pretrained(tmp_path / "saved")
    torch.save({"ids": ids, "logits": model(ids).logits.detach()}, tmp_path / "expected.pt")
    done = run(
        python_without_package,
        tmp_path,
        """
        import importlib.util
        import torch
        from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
        from transformers import AutoModelForTokenClassification

        assert importlib.util.find_spec("modeling_prlstm") is None
        expected = torch.load("expected.pt")
        remote = {"trust_remote_code": True}
        assert AutoConfig.from_pretrained("saved", **remote).hidden_size == 6
        AutoModel.from_pretrained("saved", **remote)
        AutoModelForTokenClassification.from_pretrained("saved", **remote)
        model = AutoModelForSequenceClassification.from_pretrained("saved", **remote)
        assert torch.equal(model(expected["ids"]).logits, expected["logits"])
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        model(expected["ids"], labels=torch.tensor([0, 1, 2])).loss.backward()
        optimizer.step()
        assert not torch.equal(model(expected["ids"]).logits, expected["logits"])
        model.save_pretrained("again")
        again = AutoModelForSequenceClassification.from_pretrained("again", **remote)
        assert torch.equal(again(expected["ids"]).logits, model(expected["ids"]).logits)
        """,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path.name for path in (tmp_path / "again").iterdir()} >= CODE


def test_from_inside_a_checkpoint(python_without_package, tmp_path):
    """Its files must not hide packages that transformers looks for, as `kernels`."""
    build().save_pretrained(tmp_path)
    code = """
        from transformers import AutoModelForSequenceClassification

        AutoModelForSequenceClassification.from_pretrained(".", trust_remote_code=True)
        """
    done = run(python_without_package, tmp_path, code)
    assert done.returncode == 0, done.stderr[-3000:]


def test_neither_package_nor_trust(python_without_package, tmp_path):
    build().save_pretrained(tmp_path / "saved")
    code = "from transformers import AutoModel; AutoModel.from_pretrained('saved', trust_remote_code=False)"
    done = run(python_without_package, tmp_path, code)
    assert done.returncode != 0
    assert "trust_remote_code" in done.stderr
