"""One training loop for both stages, on `accelerate`: any number of processes, resumable at every step.

What happens at a step is a function of (config, step) alone: the recipe draws the images, crops and masks of the whole
batch from the seed and the step's number, and each process takes its part. So nothing but the step, the weights and
the optimizer's state has to be kept, and two processes see just what one with the same batch sees.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator
from PIL import Image
from timm.layers.attention import Attention
from torch import Tensor, nn
from tqdm.auto import tqdm

from scemae.errors import OutputError, RunError
from scemae.output import written_whole
from scemae.training.config import RunConfig
from scemae.training.speed import compiles, fastest_precision

CHECKPOINT, LOG, LOCK, BAD_BATCH = "checkpoint.pt", "log.jsonl", "lock", "bad_batch.pt"


class Recipe(Protocol):
    """What the engine trains."""

    config: RunConfig
    module: nn.Module

    def load(self, step: int, part: slice) -> tuple[Tensor, ...]:
        """Part of the batch of a step, on the CPU; called ahead, in another thread."""

    def inputs(self, loaded: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What the module is called with, from what `load` gave, by now on the module's device."""

    def picture(self) -> Image.Image:
        """What a person should see of the present weights."""

    def export(self, folder: Path, history: History) -> None:
        """Write the model folder."""


@dataclass(frozen=True)
class Options:
    """How a run goes, not what comes out."""

    resume: bool = False
    max_hours: float = math.inf
    precision: Literal["auto", "float32", "bf16"] = "auto"
    compile: bool | None = None  # None: on a CPU that has a compiler
    checkpoint_minutes: float = 5.0


@dataclass(frozen=True)
class History:
    """What a run was: the lines of its log, hours of work, where it ran."""

    lines: list[dict[str, float]]
    step: int
    hours: float
    hardware: str


def train(recipe: Recipe, out: Path, options: Options) -> History:
    """Train to the end of the schedule, `max_hours` or Ctrl-C, then export `out`/model.

    `out` gets checkpoint.pt, log.jsonl, pictures/ and model/. Raises RunError where another process writes there,
    where a checkpoint of another configuration lies there, or where the gradient is no number any more.
    """
    accelerator = _accelerator(options)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out) if accelerator.is_main_process else nullcontext(), _interruptible() as interrupted:
        return _Run(recipe, out, options, accelerator).go(interrupted)


class _Run:
    def __init__(self, recipe: Recipe, out: Path, options: Options, accelerator: Accelerator) -> None:
        self.recipe, self.out, self.options, self.accelerator = recipe, out, options, accelerator
        self.config = recipe.config
        processes = accelerator.num_processes
        self.share, rest = divmod(self.config.batch_size, processes * self.config.accumulate)
        if rest:
            raise RunError(
                f"batch_size {self.config.batch_size} cannot be shared among {processes} processes and "
                f"{self.config.accumulate} passes each."
            )
        fuse_attention(recipe.module, accelerator.device.type != "cpu")
        self.optimizer = _optimizer(recipe.module, self.config)
        self.step, self.seconds = self._restored()
        self.trained, self.prepared = accelerator.prepare(recipe.module, self.optimizer)

    def go(self, interrupted: list[int]) -> History:
        start = saved = logged = time.monotonic()
        logged_step, losses = self.step, []
        bar = tqdm(total=self.config.steps, initial=self.step, unit="step", disable=self._silent())
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(self._load, self.step)
            while self.step < self.config.steps and not self._stop(interrupted, start):
                loaded, coming = coming.result(), ahead.submit(self._load, self.step + 1)
                losses.append(self._update(loaded))
                self.step += 1
                bar.update()
                now = time.monotonic()
                if self.step % self.log_every == 0 or self.step == self.config.steps:
                    self._log(losses, (self.step - logged_step) / (now - logged))
                    bar.set_postfix(loss=f"{losses[-1]:.4f}")
                    logged, logged_step, losses = now, self.step, []
                if now - saved > 60 * self.options.checkpoint_minutes:
                    self._save(self.seconds + now - start)
                    saved = time.monotonic()
        bar.close()
        self.seconds += time.monotonic() - start
        self._save(self.seconds)
        history = History(
            self._lines(),
            self.step,
            self.seconds / 3600,
            hardware(self.accelerator.device, self.accelerator.num_processes, self.accelerator.mixed_precision),
        )
        if self.accelerator.is_main_process:
            self.recipe.export(self.out / "model", history)
        self.accelerator.wait_for_everyone()
        if interrupted:
            raise KeyboardInterrupt
        return history

    @property
    def log_every(self) -> int:
        return max(1, min(50, self.config.steps // 100))

    def _load(self, step: int) -> list[tuple[Tensor, ...]]:
        """This process's part of a step, one entry for each pass."""
        first = self.accelerator.process_index * self.config.accumulate
        starts = [(first + number) * self.share for number in range(self.config.accumulate)]
        return [self.recipe.load(step, slice(start, start + self.share)) for start in starts]

    def _update(self, passes: list[tuple[Tensor, ...]]) -> float:
        """One step of the optimizer; returns the mean loss of this process."""
        rate = learning_rate(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total = 0.0
        for number, loaded in enumerate(passes):
            device = self.accelerator.device
            inputs = self.recipe.inputs(tuple(part.to(device, non_blocking=True) for part in loaded))
            last = number == len(passes) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.trained):
                loss = self.trained(*inputs)["loss"] / len(passes)
                self.accelerator.backward(loss)
            total += loss.item()
        norm = self.accelerator.clip_grad_norm_(self.trained.parameters(), self.config.clip_norm or math.inf)
        if not math.isfinite(float(norm)):
            torch.save(passes, self.out / f"{self.accelerator.process_index}-{BAD_BATCH}")
            raise RunError(
                f"At step {self.step} the gradient is {float(norm)} (loss {total}). The checkpoint of an earlier step "
                f"is kept, the batch is in {self.out}/*{BAD_BATCH}. Go on with --resume, or start again with a lower "
                "learning rate."
            )
        self.prepared.step()
        self.prepared.zero_grad()
        return total

    def _stop(self, interrupted: list[int], start: float) -> bool:
        """Whether any process wants to end here."""
        late = time.monotonic() - start > 3600 * self.options.max_hours
        wanted = torch.tensor(float(late or bool(interrupted)), device=self.accelerator.device)
        return bool(self.accelerator.reduce(wanted, "max") if self.accelerator.num_processes > 1 else wanted)

    def _log(self, losses: list[float], steps_per_second: float) -> None:
        mean = torch.tensor(losses, device=self.accelerator.device).mean()
        line = {
            "step": self.step,
            "loss": float(self.accelerator.reduce(mean, "mean")),
            "learning_rate": learning_rate(self.config, self.step - 1),
            "images_per_second": steps_per_second * self.config.batch_size,
        }
        if self.accelerator.is_main_process:
            with (self.out / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _lines(self) -> list[dict[str, float]]:
        path = self.out / LOG
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def _save(self, seconds: float) -> None:
        if self.accelerator.is_main_process:
            state = {
                "config": self.config.to_json(),
                "step": self.step,
                "seconds": seconds,
                "module": self.recipe.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            }
            try:
                with written_whole(self.out / CHECKPOINT) as temporary:
                    torch.save(state, temporary)
            except RuntimeError as error:  # torch's own words for a full disk
                raise OutputError(f"{self.out / CHECKPOINT} cannot be written: {error}. The last is kept.") from error
            pictures = self.out / "pictures"
            pictures.mkdir(exist_ok=True)
            self.recipe.picture().save(pictures / f"{self.step:07d}.png")
        self.accelerator.wait_for_everyone()

    def _restored(self) -> tuple[int, float]:
        """Step and seconds to go on from; weights and optimizer are filled from the checkpoint if there is one."""
        path = self.out / CHECKPOINT
        if not path.exists():
            return 0, 0.0
        if not self.options.resume:
            raise RunError(f"{self.out} holds a run already. Pass --resume to go on with it, or choose another --out.")
        state = torch.load(path, map_location="cpu", weights_only=True)
        changed = type(self.config).from_json(state["config"]).difference(self.config)
        if changed:
            raise RunError(f"{self.out} was started with another configuration: {'; '.join(changed)}.")
        self.recipe.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.is_main_process:
            kept = [line for line in self._lines() if line["step"] <= state["step"]]
            (self.out / LOG).write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        return int(state["step"]), float(state["seconds"])

    def _silent(self) -> bool | None:
        return None if self.accelerator.is_main_process else True


def learning_rate(config: RunConfig, step: int) -> float:
    """Of step number `step`, from 0: linear from 0 over the warm-up, then half a cosine to 0."""
    warmup = config.warmup * config.steps
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (config.steps - warmup)))


def fuse_attention(module: nn.Module, fused: bool) -> None:
    """PyTorch's fused attention or the plain one: on a CPU the backward of the fused one is half of a step."""
    for layer in module.modules():
        if isinstance(layer, Attention):
            layer.fused_attn = fused  # type: ignore[misc]  # a Final to TorchScript, which we do not use


def _optimizer(module: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if sum(side > 1 for side in parameter.shape) > 1]
    others = [parameter for parameter in trained if sum(side > 1 for side in parameter.shape) <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def _accelerator(options: Options) -> Accelerator:
    on_gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true", "yes")
    precision = (
        fastest_precision(torch.device("cuda" if on_gpu else "cpu"))
        if options.precision == "auto"
        else options.precision
    )
    compiled = (not on_gpu and compiles()) if options.compile is None else options.compile
    return Accelerator(
        mixed_precision="bf16" if precision == "bf16" else "no",
        dynamo_backend="inductor" if compiled else "no",
        cpu=not on_gpu,
    )


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the run's folder for this process; the system lets go of it whatever happens."""
    with (out / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"Another process is training in {out}; wait for it, or choose another --out.") from error
        yield


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Signals that ask to stop, collected instead of obeyed at once; a second one is obeyed."""
    received: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, _frame: Any) -> None:
        received.append(number)
        signal.signal(number, before[number])

    try:
        for asked in (signal.SIGINT, signal.SIGTERM):
            before[asked] = signal.signal(asked, note)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def hardware(device: torch.device, processes: int, precision: str) -> str:
    """What a card says of where a run took place."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    return f"{processes} x {name}, {precision}"
