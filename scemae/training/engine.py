"""One training loop for both stages, on `accelerate`: any number of processes, resumable at every step.

What happens at a step is a function of (config, step) alone: the recipe draws the images, crops and masks of the whole
batch from the seed and the step's number, and each process takes its part. So nothing but the step, the weights, the
optimizer's state and the losses that are not logged yet has to be kept, and two processes see just what one with the
same batch sees.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from scemae.errors import RunError
from scemae.output import atomic_folder
from scemae.training.acceleration import add_bias_after, compiles, fastest_precision, fuse_attention
from scemae.training.processes import accelerator, by_main, check_same, interruptible
from scemae.training.run_config import Precision, RunConfig, RunOptions
from scemae.training.run_folder import MODEL, RunFolder


class Recipe(Protocol):
    """What the engine trains."""

    config: RunConfig
    module: nn.Module
    origin: str  # SHA-256 of the model that the run needs beside its checkpoint; "": none

    @property
    def report_every(self) -> int:
        """Steps between two reports, each a picture and what `measure` finds."""

    def load(self, step: int, part: slice) -> tuple[Tensor, ...]:
        """Part of the batch of a step, on the CPU, from nothing but the step; called ahead, in another thread."""

    def inputs(self, loaded: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What the module is called with, from what `load` gave, by now on the module's device."""

    def picture(self) -> Image.Image:
        """What a person should see of the present weights; asked for on the first process only, like `measure`."""

    def measure(self) -> dict[str, float]:
        """What the log should say of the present weights beside the loss."""

    def export(self, folder: Path, history: History) -> None:
        """Write the model folder; it is empty."""


@dataclass(frozen=True)
class History:
    """What a run was: the lines of its log, hours of work, where it ran."""

    lines: list[dict[str, float]]
    step: int
    hours: float
    hardware: str


def train(recipe: Recipe, out: Path, options: RunOptions) -> History:
    """Train to the end of the schedule, `max_hours` or Ctrl-C, then export `out`/model.

    Ctrl-C and SIGTERM end in KeyboardInterrupt when everything is written; `max_hours` counts from this call, and at
    least one step is made. Raises RunError where another process writes to `out`, where what lies there cannot be gone
    on with, and where the loss or the gradient is no number any more; OutputError where something cannot be written.
    The last good checkpoint is kept whatever happens.
    """
    here = accelerator()
    folder = RunFolder(out)
    try:
        by_main(folder.lock)
        by_main(partial(folder.begin, options.resume, options.overwrite))
        with interruptible() as signals:
            return _Run(recipe, folder, options, here, signals).go()
    finally:
        folder.release()


class _Run:
    def __init__(
        self, recipe: Recipe, folder: RunFolder, options: RunOptions, here: Accelerator, signals: list[int]
    ) -> None:
        self.recipe, self.folder, self.options, self.here, self.signals = recipe, folder, options, here, signals
        self.config = recipe.config
        self.share, rest = divmod(self.config.batch_size, here.num_processes * self.config.accumulate)
        if rest:
            raise RunError(
                f"batch_size {self.config.batch_size} cannot be shared among {here.num_processes} processes and "
                f"{self.config.accumulate} passes each."
            )
        on_gpu = here.device.type != "cpu"
        fuse_attention(recipe.module, on_gpu)
        self.optimizer = _optimizer(recipe.module, self.config)
        self.step, self.seconds, self.losses = 0, 0.0, list[float]()
        saved = folder.read_checkpoint()
        if saved is not None:
            self._restore(saved)
        self.precision: Precision = by_main(partial(_precision, options, saved, here.device))
        check_same((self.step, self._next_image()), f"The processes do not all see the same {folder.path} and images.")
        self.parallel, self.prepared = here.prepare(recipe.module, self.optimizer)
        compiled = (not on_gpu and compiles()) if options.compile is None else options.compile
        if compiled and not on_gpu:
            add_bias_after(recipe.module)
        self.trained = torch.compile(self.parallel) if compiled else self.parallel
        self.stop = self.interrupted = self.due = False

    def go(self) -> History:
        by_main(partial(self.folder.cut_log, self.step))
        self.started = self.checkpointed = self.logged = time.monotonic()
        self.logged_step = self.step
        silent = None if self.here.is_main_process else True  # None: unless on a terminal
        with (
            tqdm(total=self.config.steps, initial=self.step, unit="step", disable=silent) as bar,
            ThreadPoolExecutor(1) as ahead,
        ):
            coming = ahead.submit(self._load, self.step)
            while self.step < self.config.steps and not self.stop:
                passes, coming = coming.result(), ahead.submit(self._load, self.step + 1)
                self._advance(passes)
                bar.set_postfix(loss=f"{self.losses[-1]:.4f}", refresh=False)
                bar.update()
                self._keep()
        history = by_main(self._finish)
        if self.interrupted:
            raise KeyboardInterrupt(
                f"Stopped at step {self.step}; {self.folder.path} holds all of it. Go on with --resume."
            )
        return history

    @property
    def log_every(self) -> int:
        return max(1, min(50, self.config.steps // 100))

    def _load(self, step: int) -> list[tuple[Tensor, ...]]:
        """This process's part of a step, one entry for each pass."""
        first = self.here.process_index * self.config.accumulate
        starts = [(first + number) * self.share for number in range(self.config.accumulate)]
        return [self.recipe.load(step, slice(start, start + self.share)) for start in starts]

    def _advance(self, passes: list[tuple[Tensor, ...]]) -> None:
        """One update of the weights; also learn the loss of all processes, and what any of them wishes."""
        rate = learning_rate(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(_seed(self.config.seed, self.step, self.here.process_index))  # of dropout
        own_loss = self._backward(passes)
        longest = self.config.clip_norm or math.inf
        norm = float(nn.utils.clip_grad_norm_(self.parallel.parameters(), longest))
        now = time.monotonic()
        late = now - self.started > 3600 * self.options.max_hours
        due = now - self.checkpointed > 60 * self.options.checkpoint_minutes
        own = (own_loss / self.here.num_processes, float(late), float(due), float(len(self.signals)))
        loss, late_ones, due_ones, signals = self._sums(own)
        if not math.isfinite(loss + norm):
            self._refuse(passes, loss, norm)
        self.prepared.step()
        self.prepared.zero_grad()
        self.step += 1
        self.losses.append(loss)
        self.interrupted, self.due = signals > 0, due_ones > 0
        self.stop = self.interrupted or late_ones > 0

    def _backward(self, passes: list[tuple[Tensor, ...]]) -> float:
        """Gradients of the mean loss; returns it, of this process."""
        total = torch.zeros((), device=self.here.device)
        for number, loaded in enumerate(passes):
            inputs = self.recipe.inputs(tuple(part.to(self.here.device, non_blocking=True) for part in loaded))
            last = number == len(passes) - 1
            with nullcontext() if last else self.here.no_sync(self.parallel):
                with torch.autocast(self.here.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    loss = self.trained(*inputs)["loss"] / len(passes)
                loss.backward()
            total += loss.detach()
        return float(total)

    def _sums(self, own: Sequence[float]) -> list[float]:
        """Over all processes."""
        if self.here.num_processes == 1:
            return list(own)
        sums = self.here.reduce(torch.tensor(own, dtype=torch.float64, device=self.here.device), "sum")
        return [float(value) for value in sums]

    def _refuse(self, passes: list[tuple[Tensor, ...]], loss: float, norm: float) -> NoReturn:
        where = self.folder.write_bad_batch(self.here.process_index, passes)
        raise RunError(
            f"At step {self.step} the loss is {loss} and the length of its gradient {norm}. The batch is in {where}, "
            "the checkpoint of an earlier step is kept; --resume comes to the same end, unless the machine was at "
            "fault. Start anew with a lower --learning-rate, a --clip-norm, or --precision float32."
        )

    def _keep(self) -> None:
        """Log, report and save where it is time for that."""
        report = self.step % self.recipe.report_every == 0 or self.step == self.config.steps
        if report or self.step % self.log_every == 0:
            by_main(partial(self._log, report))
            self.losses, self.logged, self.logged_step = [], time.monotonic(), self.step
        if self.due:
            by_main(self._save)
            self.checkpointed = time.monotonic()

    def _log(self, report: bool) -> None:
        steps_per_second = (self.step - self.logged_step) / (time.monotonic() - self.logged)
        line = {
            "step": self.step,
            "loss": sum(self.losses) / len(self.losses),
            "learning_rate": learning_rate(self.config, self.step - 1),
            "images_per_second": steps_per_second * self.config.batch_size,
        }
        if report:
            self.folder.write_picture(self.step, self.recipe.picture())
            line |= self.recipe.measure()
        self.folder.log(line)

    def _finish(self) -> History:
        self._save()
        if self.step < self.config.steps:  # at the end there is one already
            self.folder.write_picture(self.step, self.recipe.picture())
        where = hardware(self.here.device, self.here.num_processes, self.precision)
        history = History(self.folder.lines(), self.step, self._worked() / 3600, where)
        with atomic_folder(self.folder.path / MODEL) as model:
            self.recipe.export(model, history)
        return history

    def _worked(self) -> float:
        """Seconds, those before a resume too."""
        return self.seconds + time.monotonic() - self.started

    def _save(self) -> None:
        self.folder.write_checkpoint(
            {
                "config": self.config.to_json(),
                "precision": self.precision,
                "step": self.step,
                "seconds": self._worked(),
                "losses": self.losses,
                "images": self._next_image(),
                "origin": self.recipe.origin,
                "module": self.recipe.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            }
        )

    def _restore(self, saved: dict[str, Any]) -> None:
        try:
            before = type(self.config).from_json(saved["config"])
        except TypeError as error:
            raise RunError(f"{self.folder.path} was started by another version of scemae: {error}.") from error
        if changed := before.difference(self.config):
            raise RunError(f"{self.folder.path} was started with another configuration: {'; '.join(changed)}.")
        self.step, self.seconds, self.losses = saved["step"], saved["seconds"], saved["losses"]
        if self._next_image() != saved["images"]:
            raise RunError(f"The images are not those that {self.folder.path} was started with; give the same --data.")
        if saved["origin"] != self.recipe.origin:
            raise RunError(
                f"{self.folder.path} was started from another model; give the same --model or --continue-from."
            )
        self.recipe.module.load_state_dict(saved["module"])
        self.optimizer.load_state_dict(saved["optimizer"])

    def _next_image(self) -> str:
        """A fingerprint of what comes next: the same (config, step) on other images has another."""
        digest = hashlib.sha256()
        for part in self.recipe.load(self.step, slice(0, 1)):
            digest.update(part.numpy().tobytes())
        return digest.hexdigest()


def learning_rate(config: RunConfig, step: int) -> float:
    """Of step number `step`, from 0: linear from 0 over the warm-up, then half a cosine to 0."""
    warmup = config.warmup * config.steps
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (config.steps - warmup)))


def _optimizer(module: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if sum(side > 1 for side in parameter.shape) > 1]
    others = [parameter for parameter in trained if sum(side > 1 for side in parameter.shape) <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def _precision(options: RunOptions, saved: dict[str, Any] | None, device: torch.device) -> Precision:
    """What was asked for, or what the run began with, or what is fastest here."""
    if options.precision != "auto":
        return options.precision
    return saved["precision"] if saved else fastest_precision(device)


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def hardware(device: torch.device, processes: int, precision: str) -> str:
    """What a card says of where a run took place."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    return f"{processes} x {name}, {precision}"
