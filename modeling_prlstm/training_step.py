"""A whole optimizer step as one launch: for models whose kernels take less time than starting them."""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from .graphs import Copying, autocast_dtype, capture, capture_stream, casting_anew, paused, turn_to_make


class TrainingStep:
    """Forward, backward, clipping and optimizer; on a GPU a CUDA graph of all of it for each shape of batch.

    The first batch of a shape is a step like any other, with the checks of its values, after which the graph is made;
    the next ones are copied to the graph's inputs and run by one launch. Their values are not checked: token ids out
    of range make the loss NaN. With an `attention_mask` the work is that of the longest row, whatever the lengths.

        step = TrainingStep(model, torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True, capturable=True))
        for batch in batches:
            loss = step(**batch)

    The graphs, one for each shape for as long as this object lives, hold the parameters where they are, and the
    optimizer's options, but for the learning rate, and the model's (checkpointing, hooks) as they were: make another
    `TrainingStep` after a change. (Noticed are parameters that are frozen or set free, the optimizer's
    `load_state_dict`, and another precision of products, as TF32.) On a CPU it is the same step without graphs.

    Args:
        model: returns a `loss` for its keyword arguments, as every model of transformers with a head does.
        optimizer: of the model's parameters. On a GPU its learning rates become tensors, so that a scheduler's changes
            reach the graphs.
        max_grad_norm: to which the norm of all gradients is clipped, more than 0; None: they are not.

    Raises:
        TypeError: for an optimizer that is none, or none of PyTorch's.
        ValueError: for an optimizer that a graph cannot hold (Adam and others without `capturable=True`, SGD and
            others without `fused=True`, LBFGS) or that has none of the model's parameters, for a model that is spread
            over processes or devices, or without parameters to train, and for a `max_grad_norm` that is not above 0.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float | None = 1.0):
        self.model, self.optimizer, self.max_grad_norm = model, optimizer, max_grad_norm
        self.parameters = [*model.parameters()]
        self.graphs: dict[Hashable, Callable[[dict[str, Tensor]], Tensor]] = {}
        if _is_spread(model):
            raise ValueError(
                "`model` is spread over processes or devices, whose waiting for each other a graph cannot hold. Train "
                "it with Trainer or a loop of your own."
            )
        if not any(parameter.requires_grad for parameter in self.parameters):
            raise ValueError("`model` has no parameter that requires a gradient: there is nothing to train.")
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(f"`max_grad_norm` must be above 0, got {max_grad_norm}. None: gradients are not clipped.")
        self._check_optimizer()
        self.on_gpu = self.parameters[0].is_cuda
        if self.on_gpu:
            self._prepare()

    def __call__(self, **batch: Tensor) -> Tensor:
        """Take a step.

        Args:
            **batch: the model's arguments, tensors on its device.

        Returns:
            The loss before the step, a scalar without a gradient; it stays as it is when the next step is taken.

        Raises:
            ValueError: for a batch without a loss, and what the model itself raises.
        """
        if not self.on_gpu:
            return self._step(batch)
        self._keep_up()
        shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in sorted(batch.items()))
        dtype = autocast_dtype()
        trained = tuple(parameter.requires_grad for parameter in self.parameters)
        key = shapes, trained, self.model.training, dtype, torch.backends.cuda.matmul.fp32_precision
        graph = self.graphs.get(key)
        if graph is not None:
            return graph(batch)
        with paused(), casting_anew(dtype):
            loss = self._step(batch)
            with turn_to_make() as is_free:
                if is_free:  # else the next batch tries again
                    self.graphs[key] = self._capture(batch)
        return loss

    def _step(self, batch: dict[str, Tensor]) -> Tensor:
        self.model.zero_grad(set_to_none=True)  # of parameters that are not the optimizer's too
        loss = getattr(self.model(**batch), "loss", None)
        if loss is None:
            raise ValueError(
                f"`batch` must have what makes a `loss` of the model, as `labels`, got {sorted(batch)} without one."
            )
        loss.backward()
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimizer.step()
        return loss.detach()

    def _capture(self, batch: dict[str, Tensor]) -> Callable[[dict[str, Tensor]], Tensor]:
        """The step as a graph, of batches like `batch`. What it holds between its steps is the inputs and the loss."""
        inputs = {name: tensor.clone() for name, tensor in batch.items()}
        copy = Copying([*inputs.values()])
        torch.clear_autocast_cache()  # it may hold the weights as they were cast before this step
        stream = capture_stream(self.parameters[0].device)
        (loss,), graph = capture(lambda: [self._step(inputs)], stream, self.pool)
        self.model.zero_grad(set_to_none=True)  # the graph's own gradients

        def replay(batch: dict[str, Tensor]) -> Tensor:
            copy([batch[name] for name in inputs], [*inputs.values()])
            graph.replay()
            return loss.clone()

        return replay

    def _check_optimizer(self) -> None:
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            raise TypeError(f"`optimizer` must be a torch.optim.Optimizer, got {type(self.optimizer).__name__}.")
        if isinstance(self.optimizer, torch.optim.LBFGS):
            raise ValueError("`optimizer` must take its step of one backward, got LBFGS, which needs several.")
        own = {id(part) for group in self.optimizer.param_groups for part in group["params"]}
        if own.isdisjoint(map(id, self.parameters)):
            raise ValueError("`optimizer` has none of the model's parameters. Make it of `model.parameters()`.")

    def _prepare(self) -> None:
        """Raise for an optimizer that a graph cannot hold; make room for graphs, and it hold the learning rates."""
        self.pool = torch.cuda.graph_pool_handle()  # a pool that lost its graphs takes no others
        self.rates = []
        for group in self.optimizer.param_groups:
            option = "capturable" if "capturable" in group else "fused"  # what keeps it from reading the GPU's values
            if not group.get(option):
                raise ValueError(
                    f"`optimizer` must be made with `{option}=True` to become part of a CUDA graph, got "
                    f"{type(self.optimizer).__name__} without it."
                )
            rate = torch.as_tensor(group["lr"], dtype=torch.float32).to(self.parameters[0].device)
            group["lr"] = rate
            self.rates.append(rate)
        self.groups = self.optimizer.param_groups

    def _keep_up(self) -> None:
        """Take on what happened to the optimizer between steps: another state, another learning rate."""
        if self.optimizer.param_groups is not self.groups:
            self.graphs.clear()
            self._prepare()
        for group, rate in zip(self.groups, self.rates, strict=True):
            if group["lr"] is not rate:
                rate.fill_(group["lr"])
                group["lr"] = rate


def _is_spread(model: nn.Module) -> bool:
    """Whether processes or devices share the work on `model`."""
    several = len({parameter.device for parameter in model.parameters()}) > 1
    if several or isinstance(model, (DataParallel, DistributedDataParallel)):
        return True
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in model.parameters())
