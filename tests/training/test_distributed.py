"""Two processes train the model that one process trains with twice the batch: torchrun, accelerate launch, FSDP2."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from modeling_prlstm import PRLSTMForSequenceClassification

from .train import CHECKPOINTING, NUM_ROWS, build_model, build_rows

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "examples" / "accelerate"
BIN = Path(sys.executable).parent
BATCH = 6
ARGUMENTS = (
    *("--report_to", "none", "--disable_tqdm", "true", "--logging_steps", "1", "--save_strategy", "epoch"),
    *("--num_train_epochs", "2", "--learning_rate", "1e-2", "--remove_unused_columns", "false"),
    *("--dataloader_pin_memory", "false", "--train_sampling_strategy", "sequential"),
)
ACCELERATE = (str(BIN / "accelerate"), "launch", "--config_file")


def train(folder, *launcher, program=(str(HERE / "train.py"),), batch=BATCH, arguments=("--use_cpu",), **environment):
    """Runs `program` under each of the commands `launcher` (nodes); gives the reports of its processes, by rank.

    When one node fails, or not all have ended in time, all are killed with their processes.
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | environment
    options = ("--output_dir", str(folder), "--per_device_train_batch_size", str(batch), *ARGUMENTS, *arguments)
    logs = [folder / f"node-{number}.txt" for number in range(len(launcher))]  # no pipes: a full one stops its node
    nodes = []
    deadline = time.monotonic() + 120
    try:
        for node, log in zip(launcher, logs, strict=True):
            with log.open("w") as errors:
                nodes.append(subprocess.Popen([*node, *program, *options], stderr=errors, env=environment))
        while None in (codes := [node.poll() for node in nodes]) and not any(codes) and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        for node in nodes:
            if node.poll() is None:
                for process in (node, *psutil.Process(node.pid).children(recursive=True)):
                    process.kill()
                node.wait()
    assert set(codes) == {0}, "\n".join(
        f"{log.stem} ended with {code}:\n{log.read_text()[-4000:]}" for log, code in zip(logs, codes, strict=True)
    )
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return folder, train(folder, (sys.executable,), batch=2 * BATCH)[0]


def check_same_training(folder, reports, one_process):
    """The same loss curve and model, every row once an epoch, and files from rank 0 alone."""
    expected_folder, expected = one_process
    assert len(reports) == 2
    torch.testing.assert_close(reports[0]["losses"], expected["losses"], rtol=0, atol=1e-5)
    assert reports[1]["losses"] == reports[0]["losses"]
    assert reports[0]["losses"][4] < reports[0]["losses"][0]  # the same rows, an epoch later
    per_epoch = NUM_ROWS // 2
    for epoch in range(2):
        rows = [row for report in reports for row in report["rows"][epoch * per_epoch : (epoch + 1) * per_epoch]]
        assert sorted(rows) == list(range(NUM_ROWS))
    assert reports[0]["wrote"] == expected["wrote"]
    assert reports[1]["wrote"] == []
    model, expected_model = (load_file(path / "model.safetensors") for path in (folder, expected_folder))
    torch.testing.assert_close(model, expected_model, rtol=0, atol=1e-5)


def test_torchrun(one_process, tmp_path):
    torchrun = (str(BIN / "torchrun"), "--standalone", "--nproc_per_node", "2")
    check_same_training(tmp_path, train(tmp_path, torchrun), one_process)


def test_accelerate_launch(one_process, tmp_path):
    launcher = (*ACCELERATE, str(CONFIGS / "several_gpus.yaml"), "--num_processes", "2")
    check_same_training(tmp_path, train(tmp_path, launcher), one_process)


def test_several_nodes(one_process, tmp_path):
    with socket.socket() as taken:  # until the end: nobody else is given the port, and node 0 may listen there
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 0))
        options = ("--num_processes", "2", "--main_process_port", str(taken.getsockname()[1]))
        launcher = (*ACCELERATE, str(CONFIGS / "several_nodes.yaml"), *options)
        reports = train(tmp_path, *((*launcher, "--machine_rank", rank) for rank in "01"))
    check_same_training(tmp_path, reports, one_process)


def test_activation_checkpointing_with_a_process_that_merges_nothing(one_process, tmp_path):
    """Half of the first batch has length 1: its process needs no merge, and the gradients still meet."""
    torchrun = (str(BIN / "torchrun"), "--standalone", "--nproc_per_node", "2")
    reports = train(tmp_path, torchrun, arguments=("--use_cpu", f"--{CHECKPOINTING}", "true"))
    check_same_training(tmp_path, reports, one_process)


def fsdp(folder, *arguments):
    """FSDP2 of two CPU processes, as in examples/accelerate/fsdp.yaml."""
    launcher = (*ACCELERATE, str(CONFIGS / "fsdp.yaml"), "--num_processes", "2")
    program = (str(HERE / "fsdp_on_cpu.py"), str(HERE / "train.py"))
    return train(folder, launcher, program=program, arguments=arguments, ACCELERATE_TORCH_DEVICE="cpu")


def test_fsdp2(one_process, tmp_path):
    reports = fsdp(tmp_path)
    assert reports[0]["wrapped"] == ["PRLSTMComposer", "PRLSTMForSequenceClassification"]
    check_same_training(tmp_path, reports, one_process)
    loaded = PRLSTMForSequenceClassification.from_pretrained(tmp_path)
    batch = torch.tensor([build_rows()[7]["input_ids"]])
    assert loaded(batch).logits.isfinite().all()
    saved, plain = (json.loads((path / "config.json").read_text()) for path in (tmp_path, one_process[0]))
    assert saved == plain
    modules = [{path.name for path in folder.glob("*.py")} for folder in (tmp_path, one_process[0])]
    assert modules[0] == modules[1]


def test_fsdp2_with_an_embedding_table_and_activation_checkpointing(tmp_path):
    reports = fsdp(tmp_path, "--embedding_size", "4", f"--{CHECKPOINTING}", "true")
    assert reports[0]["wrapped"] == ["Embedding", "PRLSTMComposer", "PRLSTMForSequenceClassification"]
    assert reports[0]["losses"][4] < reports[0]["losses"][0]
    loaded = PRLSTMForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == build_model(embedding_size=4).state_dict().keys()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize(
    "launcher",
    [
        (str(BIN / "torchrun"), "--standalone", "--nproc_per_node", "2"),
        (*ACCELERATE, str(CONFIGS / "several_gpus.yaml"), "--num_processes", "2"),
        (*ACCELERATE, str(CONFIGS / "fsdp.yaml"), "--num_processes", "2"),
    ],
    ids=["torchrun", "accelerate", "fsdp2"],
)
def test_two_gpus(launcher, tmp_path):
    """From the second epoch on by CUDA graphs, whose gradients the processes share as any others."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    alone = train(tmp_path / "one", (sys.executable,), batch=2 * BATCH, arguments=(), CUDA_VISIBLE_DEVICES="0")[0]
    reports = train(tmp_path / "two", launcher, arguments=())
    check_same_training(tmp_path / "two", reports, (tmp_path / "one", alone))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_are_read_by_this_accelerate_and_explained(path):
    load_config_from_file(str(path))
    assert path.name in (CONFIGS / "README.md").read_text()
