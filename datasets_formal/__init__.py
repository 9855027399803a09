"""Formal-language tasks for sequence models, loaded with `load_dataset("datasets_formal", task)`."""

from pathlib import Path

from .loading import register
from .registry import TASKS, get_task
from .scoring import formal_accuracy
from .task import Task
from .tokenizer import build_tokenizer

__all__ = ["FORMAL_ACCURACY", "TASKS", "Task", "build_tokenizer", "formal_accuracy", "get_task"]

FORMAL_ACCURACY = str(Path(__file__).parent / "formal_accuracy")
"""What to give `evaluate.load` for the metric."""

register()
