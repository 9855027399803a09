"""A whole optimizer step as one launch: for models whose kernels take less time than starting them."""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from .graphs import capture_stream, paused


class TrainingStep:
    """Forward, backward, clipping and optimizer; on a GPU a CUDA graph of all of it for each shape of batch.

    The first batch of a shape is a step like any other, with the checks of its values, after which the graph is made;
    the next ones are copied to the graph's inputs and run by one launch. Their values are not checked: token ids out
    of range make the loss NaN. With an `attention_mask` the work is that of the longest row, whatever the lengths.

        step = TrainingStep(model, torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True, capturable=True))
        for batch in batches:
            loss = step(**batch)

    The graphs hold the parameters where they are and the optimizer's options, but for the learning rate, as they were:
    make another `TrainingStep` after a change. On a CPU it is the same step without graphs.

    Args:
        model: returns a `loss` for its keyword arguments, as every model of transformers with a head does.
        optimizer: of the model's parameters. On a GPU its learning rates become tensors, so that a scheduler's changes
            reach the graphs.
        max_grad_norm: to which the norm of all gradients is clipped; None: they are not.

    Raises:
        ValueError: for an optimizer that a graph cannot hold (Adam and others without `capturable=True`, SGD and
            others without `fused=True`), and for a model that is spread over processes.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float | None = 1.0):
        self.model, self.optimizer, self.max_grad_norm = model, optimizer, max_grad_norm
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.graphs: dict[Hashable, Callable[[dict[str, Tensor]], Tensor]] = {}
        self.on_gpu = all(parameter.is_cuda for parameter in self.parameters)
        if self.on_gpu:
            self._prepare()

    def __call__(self, **batch: Tensor) -> Tensor:
        """Take a step.

        Args:
            **batch: the model's arguments, tensors on its device.

        Returns:
            The loss before the step, a scalar without a gradient; it stays as it is when the next step is taken.
        """
        if not self.on_gpu:
            return self._step(batch)
        shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in sorted(batch.items()))
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        key = shapes, self.model.training, dtype
        graph = self.graphs.get(key)
        if graph is not None:
            return graph(batch)
        # A graph must cast the weights anew each time.
        with paused(), torch.autocast("cuda", dtype, enabled=dtype is not None, cache_enabled=False):
            loss = self._step(batch)
            self.graphs[key] = self._capture(batch)
        return loss

    def _step(self, batch: dict[str, Tensor]) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.model(**batch).loss
        loss.backward()
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimizer.step()
        return loss.detach()

    def _capture(self, batch: dict[str, Tensor]) -> Callable[[dict[str, Tensor]], Tensor]:
        """The step as a graph, of batches like `batch`. What it holds between its steps is the inputs and the loss."""
        inputs = {name: tensor.clone() for name, tensor in batch.items()}
        graph = torch.cuda.CUDAGraph()
        stream = capture_stream(self.parameters[0].device)
        with torch.cuda.graph(graph, self.pool, stream, capture_error_mode="thread_local"):
            loss = self._step(inputs)
        self.optimizer.zero_grad(set_to_none=True)  # the graph's own gradients

        def replay(batch: dict[str, Tensor]) -> Tensor:
            for name, tensor in batch.items():
                inputs[name].copy_(tensor)
            graph.replay()
            return loss.clone()

        return replay

    def _prepare(self) -> None:
        """Raise for what a graph cannot hold, and make it hold the learning rate."""
        if isinstance(self.model, DistributedDataParallel) or any(isinstance(p, DTensor) for p in self.parameters):
            raise ValueError(
                "`model` is spread over processes, whose waiting for each other a graph cannot hold. Train it with "
                "Trainer or a loop of your own."
            )
        for group in self.optimizer.param_groups:
            option = "capturable" if "capturable" in group else "fused"  # what keeps it from reading the GPU's values
            if not group.get(option):
                raise ValueError(
                    f"`optimizer` must be made with `{option}=True` to become part of a CUDA graph, got "
                    f"{type(self.optimizer).__name__} without it."
                )
            if not isinstance(group["lr"], Tensor):
                group["lr"] = torch.tensor(group["lr"], device=self.parameters[0].device)
        self.pool = torch.cuda.graph_pool_handle()
