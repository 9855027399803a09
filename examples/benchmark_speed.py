"""Time, memory and the share of the machine's own speed, of PR-LSTM's backends and of its peers.

One run on one machine at one precision. A backend is timed only after its results and gradients agreed with the eager
backend's. Writes JSON and two figures. The models are:

- triton, fused, eager: PR-LSTM's backends, in the loop that everyone writes: forward, backward, clip, Adam; where TF32
  is allowed, triton's products are in float16 with units, as exact, and the share is that of the rate in TF32;
- triton+step: the same by `TrainingStep`, one CUDA graph a batch shape;
- triton+checkpoint: the loop with activation checkpointing;
- lstm: `torch.nn.LSTM`, on a GPU cuDNN's; transformer: the paper's encoder.

"Padded" batches have rows of their own lengths, from half of the longest on, and a mask; the peers read no masks.

Last, the steps a second of Trainer, with batches of 128 rows of up to 40 tokens: of the backends, of `StepTrainer`
("+step"), and of a model of two numbers, "nothing": what Trainer itself takes. All in turns, as a host's speed changes
by the minute; the medians.

    python examples/benchmark_speed.py --precision tf32 --output examples/benchmarks/h100
"""

import argparse
import contextlib
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from provenance import provenance
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer, TrainerCallback, TrainingArguments

from modeling_prlstm import PRLSTMConfig, PRLSTMForSequenceClassification, PRLSTMForTokenClassification, TrainingStep
from modeling_prlstm.graphs import paused
from modeling_prlstm.step_trainer import StepTrainer

HIDDEN, LABELS = 256, 2
TOLERANCE = {"fp32": 1e-5, "tf32": 2e-3, "bf16": 2e-2}
PEERS = ("lstm", "transformer")


class Work(NamedTuple):
    """One thing to time: a batch of `batch` x `length`, trained or inferred, labelled at the end or everywhere."""

    batch: int
    length: int
    training: bool
    every: bool = False
    padded: bool = False

    @property
    def name(self) -> str:
        """As in the tables."""
        form = ("scan" if self.every else "reduce") + (" padded" if self.padded else "")
        return f"{'training' if self.training else 'inference'} {self.batch} x {self.length} {form}"

    @property
    def flops(self) -> float:
        """What PR-LSTM's products cost: 28 H^2 operations a merge (one refinement), three times that in training.

        Of all merges: repeated blocks of tokens, which some backends merge once, and padding count every time.
        """
        levels = self.length.bit_length() - 1
        merges = self.length - 1
        if self.every:
            merges = sum(self.length >> k for k in range(1, levels + 1))
            merges += sum(((self.length >> k) - 1) // 2 for k in range(levels))
        return self.batch * merges * 28 * HIDDEN**2 * (3 if self.training else 1)


WORKS = {
    "cuda": [
        Work(128, 41, True),
        Work(128, 512, True),
        Work(32, 2048, True),
        Work(128, 512, True, every=True),
        Work(128, 41, True, padded=True),
        Work(128, 512, True, padded=True),
        Work(1024, 100, False),
        Work(1024, 500, False),
        Work(64, 8192, False),
    ],
    "cpu": [Work(32, 41, True), Work(16, 512, True), Work(32, 41, True, padded=True), Work(64, 100, False)],
}


class LSTMClassifier(nn.Module):
    """torch.nn.LSTM on one-hot tokens with the paper's head."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.lstm = nn.LSTM(vocab_size, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, LABELS)

    def forward(self, tokens: Tensor, every: bool) -> Tensor:
        """Logits of `tokens` [B, T]."""
        states, _ = self.lstm(F.one_hot(tokens, self.lstm.input_size).to(self.head.weight.dtype))
        return self.head((states if every else states[:, -1]).relu())


class TransformerClassifier(nn.Module):
    """The paper's Transformer encoder: 5 layers, 8 heads, width 64, post-norm, sine positions; by PyTorch's SDPA."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, 64)
        layer = nn.TransformerEncoderLayer(64, 8, 256, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 5, enable_nested_tensor=False)
        self.head = nn.Linear(64, LABELS)

    def forward(self, tokens: Tensor, every: bool) -> Tensor:
        """Logits of `tokens` [B, T]."""
        place = torch.arange(tokens.shape[1], device=tokens.device)[:, None]
        angle = place / 10000 ** (torch.arange(0, 64, 2, device=tokens.device) / 64)
        states = self.embedding(tokens)
        states = self.encoder(states + torch.cat((angle.sin(), angle.cos()), 1).to(states.dtype))
        return self.head(states if every else states[:, -1])


class Bench:
    """Models of one precision on one device, and their times."""

    def __init__(self, device: str, precision: str, seconds: float, vocab_size: int):
        self.device, self.precision, self.seconds, self.vocab_size = device, precision, seconds, vocab_size
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = precision == "tf32"

    def model(self, name: str, every: bool) -> nn.Module:
        """A peer, or PR-LSTM with the backend before the "+" of `name`."""
        torch.manual_seed(0)
        if name in PEERS:
            model: nn.Module = (LSTMClassifier if name == "lstm" else TransformerClassifier)(self.vocab_size)
        else:
            config = PRLSTMConfig(
                vocab_size=self.vocab_size, hidden_size=HIDDEN, num_labels=LABELS, backend=name.split("+")[0]
            )
            model = (PRLSTMForTokenClassification if every else PRLSTMForSequenceClassification)(config)
            model.prlstm.composer.merge.gradient_checkpointing = name.endswith("+checkpoint")
        return model.to(self.device, self.dtype)

    def batch(self, work: Work) -> tuple[dict[str, Tensor], Tensor]:
        """Tokens, with a mask if they are padded, and labels."""
        generator = torch.Generator().manual_seed(work.length)
        tokens = torch.randint(self.vocab_size, (work.batch, work.length), generator=generator)
        labels = torch.randint(LABELS, tokens.shape if work.every else tokens.shape[:1], generator=generator)
        inputs = {"input_ids": tokens}
        if work.padded:
            lengths = torch.randint(work.length // 2, work.length + 1, (work.batch, 1), generator=generator)
            lengths[0] = work.length
            inputs["attention_mask"] = (torch.arange(work.length) < lengths).long()
        return {name: part.to(self.device) for name, part in inputs.items()}, labels.to(self.device)

    def step(self, name: str, work: Work, model: nn.Module | None = None) -> Callable[[], Tensor]:
        """A function that does the work once. Training: forward, backward, clip to norm 1, Adam."""
        model = self.model(name, work.every) if model is None else model
        inputs, labels = self.batch(work)
        tokens = inputs["input_ids"]
        is_peer = name in PEERS
        if not work.training:
            model.eval()
            return torch.no_grad()(lambda: model(tokens, work.every) if is_peer else model(**inputs).logits)
        model.train()
        if name.endswith("+step"):
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True, capturable=True)
            training_step = TrainingStep(model, optimizer, max_grad_norm=1.0)
            return lambda: training_step(**inputs, labels=labels)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

        def train() -> Tensor:
            if is_peer:
                loss = F.cross_entropy(model(tokens, work.every).flatten(0, -2).float(), labels.flatten())
            else:
                loss = model(**inputs, labels=labels).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.detach()

        return train

    def wait(self) -> None:
        """Until the device has done its work."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def once(self, function: Callable[[], object]) -> float:
        """Seconds that `function` takes."""
        self.wait()
        start = time.perf_counter()
        function()
        self.wait()
        return time.perf_counter() - start

    def median(self, function: Callable[[], object]) -> float:
        """Its median, after three calls that don't count: the second of a shape makes a CUDA graph."""
        self.once(function)
        self.once(function)
        again = min(50, max(3, int(self.seconds / self.once(function))))
        return statistics.median(self.once(function) for _ in range(again))

    def product_rate(self, dtype: torch.dtype | None = None) -> float:
        """Operations a second of a product in `dtype` (None: this bench's), in the shape of a level's gates."""
        rows = 65536 if self.device == "cuda" else 8192
        left = torch.randn(rows, 2 * HIDDEN, device=self.device).to(dtype or self.dtype)
        right = torch.randn(2 * HIDDEN, 5 * HIDDEN, device=self.device).to(dtype or self.dtype)
        return 2 * rows * 10 * HIDDEN**2 / self.median(lambda: left @ right)

    def error(self, name: str, work: Work) -> float:
        """The largest relative difference, of states and (training) gradients, to the eager backend in float64.

        Of states and not of logits: a state near zero can be on either side of the head's relu.
        """
        found = []
        for backend in (name, "eager"):
            model = self.model(backend, work.every).prlstm
            if backend == "eager":
                model = model.double()
            inputs, _ = self.batch(work)
            model.train(work.training)
            with torch.set_grad_enabled(work.training):
                outputs = model(**inputs, pool_only=not work.every)
            states = outputs.last_hidden_state if work.every else outputs.pooler_output
            tensors = [states.detach()]
            if work.training:
                weighting = torch.randn(states.shape, generator=torch.Generator().manual_seed(0)).to(states)
                (states * weighting).sum().backward()
                tensors += [parameter.grad for parameter in model.parameters()]
            found.append([tensor.double() for tensor in tensors])
        return max(((ours - exact).norm() / exact.norm()).item() for ours, exact in zip(*found, strict=True))

    def graph_error(self, name: str, work: Work) -> float:
        """The largest relative difference to the same kernels without graphs, of what three steps or calls leave.

        By then there is a graph. Of training steps the parameters, of inference the last logits.
        """
        found = []
        for own, graphs in ((name, contextlib.nullcontext), (name.removesuffix("+step"), paused)):
            model = self.model(own, work.every)
            step = self.step(own, work, model)
            with graphs():
                *_, last = [step() for _ in range(3)]
            found.append([part.detach().double() for part in (model.parameters() if work.training else [last])])
        return max(((ours - plain).norm() / plain.norm()).item() for ours, plain in zip(*found, strict=True))

    def measure(self, name: str, work: Work) -> dict[str, float | str | None]:
        """Check, then time and weigh one model at one work."""
        result: dict[str, float | str | None] = {"model": name, "work": work.name, "vocab_size": self.vocab_size}
        result["error"] = None
        if name not in (*PEERS, "eager"):
            result["error"] = error = max(
                self.graph_error(name, work) if self.device == "cuda" else 0.0,
                0.0 if name.endswith("+step") else self.error(name, work),
            )
            if not error <= TOLERANCE[self.precision]:
                raise SystemExit(
                    f"{name} differs from what it is compared with by {error:.1e} at {work.name}: not timed."
                )
        on_gpu = self.device == "cuda"
        if on_gpu:  # from before the first step, since CUDA graphs keep what they took then
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        model = self.model(name, work.every)
        step = self.step(name, work, model)
        result["seconds"] = seconds = self.median(step)
        result["memory"] = torch.cuda.max_memory_allocated() - before if on_gpu else None
        never_seen = self.step(name, work._replace(length=work.length - 3), model)
        result["first_call"] = max(0.0, self.once(never_seen) - seconds)
        result["second_call"] = max(0.0, self.once(never_seen) - seconds)  # which makes a graph
        return result


class Clock(TrainerCallback):
    """The steps a second of a training run, from its step `first` on."""

    def __init__(self, first: int):
        self.first = first

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Start at step `first`, and stop at the last."""
        if state.global_step in (self.first, state.max_steps):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            now = time.perf_counter()
            if state.global_step == self.first:
                self.start = now
            else:
                self.rate = (state.max_steps - self.first) / (now - self.start)


class Nothing(nn.Module):
    """A model that costs nothing."""

    def __init__(self):
        super().__init__()
        self.numbers = nn.Parameter(torch.ones(2))

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """A loss."""
        return {"loss": self.numbers.square().sum()}


def trainer_rate(name: str, bench: Bench, steps: int) -> float:
    """Steps a second of Trainer, of a model of `Bench.model` or "nothing", after two rounds of all lengths."""
    lengths = [(7 * step) % 40 + 1 for step in range(40)] * (2 + steps // 40)
    generator = torch.Generator().manual_seed(0)
    tokens = [
        torch.randint(bench.vocab_size, (length,), generator=generator) for length in lengths for _ in range(128)
    ]
    rows = [{"input_ids": row, "labels": row.sum() % LABELS} for row in tokens]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            learning_rate=1e-3,
            per_device_train_batch_size=128,
            train_sampling_strategy="sequential",
            lr_scheduler_type="constant",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=bench.device == "cpu",
            **{"tf32": True} if bench.precision == "tf32" else {},
        )
        trainer = (StepTrainer if name.endswith("+step") else Trainer)(
            model=Nothing() if name == "nothing" else bench.model(name, every=False).float(),
            args=arguments,
            train_dataset=rows,
        )
        clock = Clock(first=80)
        trainer.add_callback(clock)
        trainer.train()
    return clock.rate


def draw(path: Path, title: str, points: list[dict]) -> None:
    """Time and peak memory against length, log-log, a line for each model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for axis, quantity, unit, scale in zip(axes, ("seconds", "memory"), ("ms", "MiB"), (1e3, 2**-20), strict=True):
        for name in dict.fromkeys(point["model"] for point in points):
            line = [(p["length"], p[quantity] * scale) for p in points if p["model"] == name and p[quantity]]
            if line:
                axis.loglog(*zip(*line, strict=True), marker=".", label=name)
        axis.set(xlabel="length", ylabel=f"{'time' if quantity == 'seconds' else 'peak memory'} ({unit})")
        axis.grid(alpha=0.3)
    if axes[0].lines:
        axes[0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    parser.add_argument("--precision", default=None, choices=TOLERANCE, help="default: tf32 on a GPU, else fp32")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark_speed"), help="a folder")
    parser.add_argument(
        "--vocab_sizes",
        type=int,
        nargs="+",
        default=[3, 512],
        help="few ids repeat in blocks, which are merged once; the peers and the curves have the first",
    )
    parser.add_argument("--seconds", type=float, default=0.5, help="about how long to repeat each measurement")
    parser.add_argument("--curves", action=argparse.BooleanOptionalAction, default=True, help="time against length")
    arguments = parser.parse_args()
    precision = arguments.precision or ("tf32" if arguments.device == "cuda" else "fp32")
    benches = [Bench(arguments.device, precision, arguments.seconds, size) for size in arguments.vocab_sizes]
    bench = benches[0]
    ours = "triton" if arguments.device == "cuda" else "fused"
    facts = provenance(on_gpu=arguments.device == "cuda")
    rate = bench.product_rate()
    machine = facts["hardware"]
    print(f"{machine}, torch {torch.__version__}, {precision}: matrix products {rate / 1e12:.3g} TFLOP/s")
    if precision == "tf32":  # whose digits PR-LSTM's kernels have from float16
        facts["float16_rate"] = bench.product_rate(torch.float16)
        print(f"float16: matrix products {facts['float16_rate'] / 1e12:.3g} TFLOP/s")
    print(
        f"\n{'work':34}{'ids':>4} {'model':20}{'ms':>9}{'ours is':>9}{'of rate':>9}{'MiB':>8}"
        f"{'new length':>12}{'again':>12}{'error':>9}"
    )
    rows = []
    for work, own in itertools.product(WORKS[arguments.device], benches):
        names = [ours]
        if work.training:
            names += [f"{ours}+step", f"{ours}+checkpoint"] if arguments.device == "cuda" else [f"{ours}+checkpoint"]
        if own is bench:
            names += [*(["fused"] if arguments.device == "cuda" else []), "eager", *(() if work.padded else PEERS)]
        here = {name: own.measure(name, work) | {"product_rate": own.product_rate()} for name in names}
        for name, row in here.items():
            row["fraction"] = None if name in PEERS else work.flops / row["seconds"] / row["product_rate"]
            row["ours_is_faster"] = row["seconds"] / here[ours]["seconds"]
            rows.append(row)
            print(
                f"{work.name:34}{own.vocab_size:4} {name:20}{row['seconds'] * 1e3:9.2f}{row['ours_is_faster']:8.1f}x"
                f"{'' if row['fraction'] is None else format(row['fraction'], '.0%'):>9}"
                f"{'' if row['memory'] is None else format(row['memory'] / 2**20, '.0f'):>8}"
                f"{row['first_call'] * 1e3:9.1f} ms{row['second_call'] * 1e3:9.1f} ms"
                f"{'' if row['error'] is None else format(row['error'], '.0e'):>9}",
                flush=True,
            )
    rates: dict[str, list[float]] = {}
    if precision != "bf16":
        on_gpu = arguments.device == "cuda"
        names = ["nothing", *([f"{ours}+step"] if on_gpu else []), ours, "eager"]
        for name in names * (5 if on_gpu else 1):
            rates.setdefault(name, []).append(trainer_rate(name, bench, steps=160 if on_gpu else 40))
        for name, found in rates.items():
            print(f"Trainer, {name:20}{statistics.median(found):9.1f} steps/s", flush=True)
    result = facts | {"precision": precision, "rate": rate, "rows": rows, "trainer_steps_per_second": rates}
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"{precision}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.curves:
        tokens, longest, batch = (2**17, 17, 1024) if arguments.device == "cuda" else (2**12, 12, 64)
        by_length, inference = [], []
        steps = [f"{ours}+step"] if arguments.device == "cuda" else []  # of which the host takes little
        for name in (ours, *steps, "eager", *PEERS):
            for power in range(4, longest + 1):
                work = Work(tokens >> power, 1 << power, True)
                if power <= 11 or name in (ours, *steps):
                    by_length.append(bench.measure(name, work) | {"length": work.length})
            for length in (4, 10, 30, 100, 250, 500):
                if name not in steps:
                    inference.append(bench.measure(name, Work(batch, length, False)) | {"length": length})
        result |= {"training_by_length": by_length, "inference_by_length": inference}
        draw(arguments.output / f"training_{precision}.png", f"Training, {tokens} tokens, {machine}", by_length)
        draw(arguments.output / f"inference_{precision}.png", f"Inference, batch {batch}, {machine}", inference)
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
