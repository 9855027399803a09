"""Where a run goes on: the last checkpoint that was written to its end."""

import json
import zipfile
from pathlib import Path

from transformers import TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints


def resume_point(args: TrainingArguments) -> str | None:
    """The checkpoint that `--resume_from_checkpoint` asks for, for `Trainer.train`.

    `true` asks for the last whole one of the output folder. Where there is none the run starts from its beginning, so
    that one command both starts a run and takes it up again. The checkpoints of an earlier run that this one will
    write over lose their trainer state here, so that no mixture of the two is taken for whole. Call it in the main
    process first.

    Args:
        args: `output_dir` and `resume_from_checkpoint`: None or `false`, `true`, or the path of a checkpoint.

    Returns:
        The path of a checkpoint, or None to start from the beginning.

    Raises:
        ValueError: the checkpoint at a given path was not written to its end.
    """
    asked = args.resume_from_checkpoint
    checkpoints = sort_checkpoints(args.output_dir)
    if not asked or str(asked).lower() == "false":
        start = None
    elif str(asked).lower() == "true":
        start = next(filter(is_whole, reversed(checkpoints)), None)
    elif is_whole(asked):
        start = asked
    else:
        raise ValueError(
            f"--resume_from_checkpoint {asked} is no checkpoint that was written to its end. Give another, or `true` "
            f"for the last whole one of {args.output_dir}."
        )
    steps_done = 0 if start is None else _state(start).global_step
    for checkpoint in checkpoints:
        state = _state(checkpoint)
        written_over = state is not None and state.global_step > steps_done
        if written_over and Path(checkpoint).name == f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}":
            (Path(checkpoint) / TRAINER_STATE_NAME).unlink()
    return start


def is_whole(checkpoint: str) -> bool:
    """Whether `checkpoint` was written to its end.

    The main process writes the trainer state last, and removes older checkpoints only then. The others write nothing
    but the state of their random numbers, at any time: an archive that ends in its directory.
    """
    return _state(checkpoint) is not None and all(map(zipfile.is_zipfile, Path(checkpoint).glob("rng_state*.pth")))


def _state(checkpoint: str) -> TrainerState | None:
    """The trainer state in `checkpoint`; None where it is missing or breaks off."""
    try:
        return TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
