"""Trainer with `TrainingStep`: for models whose steps take less time than Python needs to start them."""

import copy
import inspect
from typing import Any

from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from .training_step import TrainingStep


class StepTrainer(Trainer):
    """transformers' Trainer whose training steps are those of `TrainingStep`, on a GPU one CUDA graph each.

    Everything else is Trainer's: data, schedule, logging (without the gradients' norm), evaluation, checkpoints,
    resuming. Batches are tensors, and of few shapes: each makes a graph of its own.

    Args:
        model: as Trainer's.
        args: as Trainer's. In the copy that this object keeps `max_grad_norm` is 0: the step clips, Trainer does not.
        **kwargs: Trainer's other arguments.

    Raises:
        ValueError: for arguments that need to come between backward and optimizer, or into the loss; and, at the
            first step, as `TrainingStep` does.
    """

    def __init__(self, model: nn.Module | None = None, args: TrainingArguments | None = None, **kwargs: Any):
        args = TrainingArguments() if args is None else copy.copy(args)
        own, trainers = type(self).compute_loss, Trainer.compute_loss
        for name, value, allowed in (
            ("gradient_accumulation_steps", args.gradient_accumulation_steps, 1),
            ("label_smoothing_factor", args.label_smoothing_factor, 0),
            ("fp16", args.fp16, False),
            ("compute_loss_func", kwargs.get("compute_loss_func"), None),
            ("compute_loss", f"{own.__module__}.{own.__qualname__}", f"{trainers.__module__}.{trainers.__qualname__}"),
        ):
            if value != allowed:
                raise ValueError(
                    f"`{name}` must be {allowed} with StepTrainer, got {value}: a step is one graph of the model's "
                    "own loss, its backward and the optimizer. Use Trainer."
                )
        self.whole_step: TrainingStep | None = None
        self.max_grad_norm = args.max_grad_norm if (args.max_grad_norm or 0) > 0 else None  # as Trainer asks
        args.max_grad_norm = 0.0
        super().__init__(model, args, **kwargs)

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: TrainingArguments, model: Any = None) -> tuple[Any, Any]:
        """As Trainer's, with `capturable=True` where the optimizer has that option and there is a GPU."""
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if args.device.type == "cuda" and "capturable" in inspect.signature(kind).parameters:
            options["capturable"] = True
        return kind, options

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As Trainer's, without the norm of gradients that it finds none of."""
        super().log({name: value for name, value in logs.items() if name != "grad_norm"}, *args, **kwargs)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Take the whole step; Trainer's own optimizer step then finds no gradients.

        Returns:
            The loss before the step, a scalar without a gradient.
        """
        optimizer: Any = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate's wraps it
        if self.whole_step is None or self.whole_step.optimizer is not optimizer:
            self.whole_step = TrainingStep(model, optimizer, self.max_grad_norm)
        model.train()
        loss = self.whole_step(**self._prepare_inputs(inputs))
        model.zero_grad(set_to_none=True)
        return loss


__all__ = ["StepTrainer"]
