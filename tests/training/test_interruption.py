"""The main job, killed in the middle of saving, goes on from its last whole checkpoint and loses nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "run_formal.py"
ARGUMENTS = (
    *("--task", "parity_check", "--hidden_size", "8", "--per_device_train_batch_size", "8", "--max_steps", "8"),
    *("--save_steps", "2", "--save_total_limit", "1", "--train_max_length", "8", "--test_max_length", "9"),
    *("--test_examples_per_length", "4", "--disable_tqdm", "true"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Starts the main job on a folder, with one cache for all data."""
    cache = tmp_path_factory.mktemp("cache")
    environment = os.environ | {"HF_DATASETS_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}

    def start(folder, *arguments, killed_in=()):
        killer = [str(Path(__file__).parent / "killed.py"), *killed_in] if killed_in else []
        command = [sys.executable, *killer, str(SCRIPT), "--output_dir", str(folder), *ARGUMENTS, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cache, check=False)
        assert done.returncode == (-signal.SIGKILL if killed_in else 0), done.stderr[-3000:]

    return start


@pytest.fixture
def checkpointing(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import checkpointing

    return checkpointing


def test_killed_in_each_part_of_saving(run, tmp_path):
    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    run(whole)
    resume = ("--resume_from_checkpoint", "true")
    run(interrupted, *resume, killed_in=("weights", "checkpoint-2"))  # nothing to go on from: starts again
    run(interrupted, *resume, killed_in=("optimizer", "checkpoint-4"))
    run(interrupted, *resume, killed_in=("state", "checkpoint-6"))
    assert {path.name for path in interrupted.glob("checkpoint-*")} >= {"checkpoint-4", "checkpoint-6"}
    run(interrupted, *resume)
    for name in ("model.safetensors", "checkpoint-8/model.safetensors"):
        expected, resumed = load_file(whole / name), load_file(interrupted / name)
        assert all(torch.equal(expected[key], resumed[key]) for key in expected)
    optimizers = [torch.load(folder / "checkpoint-8" / "optimizer.pt") for folder in (whole, interrupted)]
    torch.testing.assert_close(*optimizers, rtol=0, atol=0)


def arguments(folder, resume):
    return SimpleNamespace(output_dir=str(folder), resume_from_checkpoint=resume)


def write_checkpoint(folder, step):
    from transformers import TrainerState

    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    TrainerState(global_step=step).save_to_json(str(checkpoint / "trainer_state.json"))
    torch.save({}, checkpoint / "rng_state_0.pth")
    return checkpoint


def test_an_earlier_runs_checkpoints_are_not_taken_for_this_runs(checkpointing, tmp_path):
    checkpoints = [write_checkpoint(tmp_path, step) for step in (2, 10, 4)]
    assert checkpointing.resume_point(arguments(tmp_path, "true")) == str(checkpoints[1])
    assert checkpointing.resume_point(arguments(tmp_path, str(checkpoints[2]))) == str(checkpoints[2])
    assert [checkpointing.is_whole(path) for path in checkpoints] == [True, False, True]
    assert checkpointing.resume_point(arguments(tmp_path, None)) is None
    assert checkpointing.resume_point(arguments(tmp_path, "true")) is None


def test_a_half_written_file_of_any_process_shows(checkpointing, tmp_path):
    checkpoint = write_checkpoint(tmp_path, 2)
    other = checkpoint / "rng_state_1.pth"
    torch.save({"cpu": torch.zeros(1000)}, other)
    assert checkpointing.is_whole(str(checkpoint))
    os.truncate(other, other.stat().st_size // 2)
    assert not checkpointing.is_whole(str(checkpoint))
    with pytest.raises(ValueError, match="is no checkpoint that was written to its end"):
        checkpointing.resume_point(arguments(tmp_path, str(checkpoint)))
