"""Trainer in one process: accumulation, smoothing, precision, checkpointing, compilation, sampling, resuming."""

import sys

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from transformers import Trainer, TrainingArguments

from modeling_prlstm import PRLSTMConfig, PRLSTMForSequenceClassification, PRLSTMModel
from modeling_prlstm.step_trainer import StepTrainer

from .train import CHECKPOINTING, NUM_ROWS, Collator, build_model, build_rows

HEADS = ("rows", "tokens")


def train(folder, head="rows", resume=None, sizes=None, trainer_class=Trainer, **arguments):
    settings = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "num_train_epochs": 1,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 12,
        "train_sampling_strategy": "sequential",
    }
    trainer = trainer_class(
        model=build_model(head, **(sizes or {})),
        args=TrainingArguments(**settings | arguments),
        data_collator=Collator(),
        train_dataset=build_rows(head),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def check_same(trainer, expected, tolerance=1e-5):
    torch.testing.assert_close(losses(trainer), losses(expected), rtol=0, atol=tolerance)
    torch.testing.assert_close(trainer.model.state_dict(), expected.model.state_dict(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_accumulated_batches_train_as_one(head, smoothing, tmp_path):
    """With rows of many lengths: the labels of all accumulated batches count alike."""
    whole = train(tmp_path, head, label_smoothing_factor=smoothing)
    parts = train(
        tmp_path,
        head,
        label_smoothing_factor=smoothing,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=4,
    )
    check_same(parts, whole)


@pytest.mark.parametrize("head", HEADS)
def test_label_smoothing(head, tmp_path):
    trainer = train(tmp_path, head, label_smoothing_factor=0.2, max_steps=1)
    rows = build_rows(head)
    batch = Collator()([rows[index] for index in range(12)])
    labels = batch.pop("labels")
    logits = build_model(head)(**batch).logits
    smooth = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), label_smoothing=0.2)
    assert losses(trainer)[0] == pytest.approx(smooth.item(), rel=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_bf16(head, tmp_path):
    trainer, expected = train(tmp_path, head, bf16=True), train(tmp_path, head)
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    torch.testing.assert_close(losses(trainer), losses(expected), rtol=0, atol=0.02)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("bf16", [False, True])
def test_whole_steps_train_as_trainer_does(head, bf16, tmp_path):
    """With a schedule of the learning rate, weight decay, clipping and two epochs; on a GPU too."""
    settings = {"num_train_epochs": 2, "weight_decay": 0.1, "max_grad_norm": 0.05, "bf16": bf16}
    settings["use_cpu"] = not torch.cuda.is_available()
    expected = train(tmp_path / "plain", head, **settings)
    check_same(
        train(tmp_path / "whole", head, trainer_class=StepTrainer, **settings), expected, 1e-3 if bf16 else 1e-5
    )


def test_whole_steps_log_no_norm(tmp_path):
    """Trainer finds no gradients, and would log the norm 0."""
    trainer = train(tmp_path, trainer_class=StepTrainer)
    assert trainer.state.log_history
    assert not any("grad_norm" in logs for logs in trainer.state.log_history)


def test_whole_steps_clip_where_trainer_does(tmp_path):
    plain, whole = (train(tmp_path, trainer_class=kind, max_grad_norm=-1.0) for kind in (Trainer, StepTrainer))
    check_same(whole, plain)


def test_whole_steps_resume(tmp_path):
    settings = {"trainer_class": StepTrainer, "save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2}
    whole = train(tmp_path / "whole", **settings)
    resumed = train(tmp_path / "again", resume=str(tmp_path / "whole" / "checkpoint-4"), **settings)
    check_same(resumed, whole, 0)


@pytest.mark.parametrize(("name", "value"), [("gradient_accumulation_steps", 2), ("label_smoothing_factor", 0.1)])
def test_what_whole_steps_cannot_do_is_refused(name, value, tmp_path):
    with pytest.raises(ValueError, match=f"`{name}` must be . with StepTrainer, got {value}"):
        train(tmp_path, trainer_class=StepTrainer, **{name: value})


def test_a_loss_of_a_users_own_is_refused(tmp_path):
    class Weighted(StepTrainer):
        def compute_loss(self, *args, **kwargs):
            return 2 * super().compute_loss(*args, **kwargs)

    with pytest.raises(ValueError, match=r"`compute_loss` must be .* with StepTrainer"):
        train(tmp_path, trainer_class=Weighted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="fp16 in Trainer needs a GPU")
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("setting", ["fp16", "bf16"])
def test_mixed_precision_on_a_gpu(head, setting, tmp_path):
    """With fp16's scaler, which skips steps whose gradients overflow until its scale fits."""
    exact = train(tmp_path, head, use_cpu=False)
    mixed = train(tmp_path, head, use_cpu=False, **{setting: True})
    torch.testing.assert_close(losses(mixed), losses(exact), rtol=0, atol=0.02)
    assert all(torch.isfinite(weight).all() for weight in mixed.model.state_dict().values())


@pytest.mark.parametrize("every_prefix", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_stays_finite_at_length_65536(dtype, every_prefix):
    """With all gates open the cell state counts the merges: past the 65,504 where float16 ends."""
    length = 65_536
    model = PRLSTMModel(PRLSTMConfig(hidden_size=4, num_refinements=0))
    with torch.no_grad():
        for layer in (model.composer.leaf, model.composer.merge.binary):
            layer.weight.mul_(0.01)
            layer.bias.fill_(8)
    ids = torch.randint(3, (1, length), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=dtype):
        states = model(ids, pool_only=not every_prefix)
    assert states.pooler_output.isfinite().all()
    states.pooler_output.float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    # o is open and tanh(c) is 1: only a cell state that is neither Inf nor NaN gives it
    torch.testing.assert_close(states.pooler_output.float(), torch.ones(1, 4), rtol=0, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_of_a_long_row_is_near_float32(dtype):
    torch.manual_seed(0)
    model = PRLSTMModel(PRLSTMConfig(hidden_size=8))
    ids = torch.randint(3, (1, 65_536))
    with torch.no_grad():
        expected = model(ids, pool_only=True).pooler_output
        with torch.autocast("cpu", dtype=dtype):
            pooled = model(ids, pool_only=True).pooler_output
    torch.testing.assert_close(pooled.float(), expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("cell_type", ["lstm", "rnn"])
@pytest.mark.parametrize("head", HEADS)
def test_activation_checkpointing_trains_alike(head, cell_type, tmp_path):
    sizes = {"cell_type": cell_type}
    check_same(train(tmp_path, head, sizes=sizes, **{CHECKPOINTING: True}), train(tmp_path, head, sizes=sizes))


def test_activation_checkpointing_keeps_less(capsys):
    """Memory that the forward pass of a training step leaves allocated for the backward pass."""
    model = PRLSTMForSequenceClassification(PRLSTMConfig(vocab_size=1000, hidden_size=64)).train()
    batch = {"input_ids": torch.randint(1000, (8, 512)), "labels": torch.zeros(8, dtype=torch.int64)}
    kept, gradients = [], []
    for checkpointing in (False, True):
        if checkpointing:
            getattr(model, f"{CHECKPOINTING}_enable")()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as forward:
            loss = model(**batch).loss
        kept.append(sum(event.self_cpu_memory_usage for event in forward.key_averages()) / 2**20)
        loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        model.zero_grad()
    with capsys.disabled():
        sys.stdout.write(f"\nkept for the backward pass: {kept[0]:.1f} MiB, with checkpointing {kept[1]:.1f} MiB\n")
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)
    assert kept[1] < kept[0] / 2


def test_noise_of_embeddings(tmp_path):
    settings = {"sizes": {"embedding_size": 4}, "max_steps": 2}
    trainer = train(tmp_path, neftune_noise_alpha=5.0, **settings)
    assert losses(trainer)[0] != losses(train(tmp_path, **settings))[0]
    assert not trainer.model.get_input_embeddings()._forward_hooks


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own
def test_torch_compile(tmp_path, monkeypatch):
    """Forward and backward graphs, without the C++ of the default backend, which takes minutes to build."""
    monkeypatch.setattr("modeling_prlstm.composer.TRACED_LEVELS", 4)  # enough for these rows, and quick to trace
    settings = {"sizes": {"num_refinements": 0}, "max_steps": 2}
    compiled = train(tmp_path, torch_compile=True, torch_compile_backend="aot_eager", **settings)
    check_same(compiled, train(tmp_path, **settings))


def test_group_by_length(tmp_path):
    trainer = train(tmp_path, train_sampling_strategy="group_by_length", per_device_train_batch_size=3)
    batches = trainer.data_collator.batches
    assert sorted(row for batch in batches for row in batch) == list(range(NUM_ROWS))
    lengths = trainer.train_dataset["length"]

    def padding(batches):
        return sum(max(lengths[row] for row in batch) - lengths[other] for batch in batches for other in batch)

    in_order = [range(start, start + 3) for start in range(0, NUM_ROWS, 3)]
    assert padding(batches) < padding(in_order) / 2


@pytest.mark.parametrize("head", HEADS)
def test_resumed_training_is_the_uninterrupted_one(head, tmp_path):
    """To the bit, in the middle of a shuffled epoch, with dropout and accumulation."""
    settings = {
        "sizes": {"classifier_dropout": 0.3},
        "num_train_epochs": 3,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "train_sampling_strategy": "random",
        "save_strategy": "steps",
        "save_steps": 8,
    }
    whole = train(tmp_path / "whole", head, **settings)
    resumed = train(tmp_path / "resumed", head, resume=str(tmp_path / "whole" / "checkpoint-8"), **settings)
    assert losses(resumed) == losses(whole)
    last = f"checkpoint-{whole.state.global_step}"
    weights = [load_file(tmp_path / run / last / "model.safetensors") for run in ("whole", "resumed")]
    optimizers = [torch.load(tmp_path / run / last / "optimizer.pt") for run in ("whole", "resumed")]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    torch.testing.assert_close(*optimizers, rtol=0, atol=0)
