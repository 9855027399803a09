"""Runs a program and kills it in the middle of saving: `python killed.py PART CHECKPOINT PROGRAM [ARGUMENTS ...]`.

PART is "weights", "optimizer" or "state". When the program has written half of that part of the folder CHECKPOINT, it
gets SIGKILL.
"""

import os
import runpy
import signal
import sys
from pathlib import Path

import torch
from transformers import TrainerState, modeling_utils

PARTS = {
    "weights": (modeling_utils, "safe_save_file", "model.safetensors"),
    "optimizer": (torch, "save", "optimizer.pt"),
    "state": (TrainerState, "save_to_json", "trainer_state.json"),
}


def main():
    part, checkpoint, *sys.argv = sys.argv[1:]
    owner, name, file_name = PARTS[part]
    save = getattr(owner, name)

    def save_half(*args, **kwargs):
        save(*args, **kwargs)
        path = next(Path(arg) for arg in args if isinstance(arg, str | os.PathLike))
        if path.parent.name == checkpoint and path.name == file_name:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, save_half)
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
