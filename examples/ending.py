"""How a run of several processes ends: without hanging, and without threads that outlive the interpreter."""

import atexit
import gc

import torch
from torch.distributed import ProcessGroup
from transformers import Trainer


def end_training(trainer: Trainer) -> None:
    """End the process group of `trainer` after its last collective, and its threads when the program ends.

    What lets go of the group last waits for its threads, and these may wait for the GIL to let go of their tensors.
    Python's own reference releases the GIL meanwhile. DDP's reducer, which lives as long as the trainer, does not: as
    the last it would wait for ever. A group that is left to the interpreter's end would abort it.
    """
    group = torch.distributed.group.WORLD
    trainer.accelerator.end_training()
    atexit.register(_collect, group)


def _collect(group: ProcessGroup | None) -> None:
    """Free the trainer, which nothing but its cycles holds by now, while the caller's `group` outlives it."""
    gc.collect()
