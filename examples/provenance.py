"""What stands beside every measured figure: the command, the commit, the versions and the hardware."""

import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("prlstm", "torch", "triton", "transformers", "datasets", "accelerate", "evaluate", "safetensors", "numpy")


def provenance(on_gpu: bool | None = None) -> dict[str, Any]:
    """How, by what and on what this process measures, as plain JSON values. `on_gpu` None: where there is one."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | _versions(),
        "hardware": _hardware(torch.cuda.is_available() if on_gpu is None else on_gpu),
    }


def _versions() -> dict[str, str]:
    """Of the packages that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _hardware(on_gpu: bool) -> str:
    if on_gpu:
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU ({platform.machine()}), {torch.get_num_threads()} threads"


def _commit() -> str | None:
    """The commit of this file's repository, "-dirty" where files were changed; None outside one."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
