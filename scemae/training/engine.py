"""One trainer for both stages, on `accelerate`: any number of processes, resumable at every step.

A step is a function of (config, step) alone: the recipe draws the images, crops and masks of the whole batch from the
seed and the step's number, and each process takes its part. So a checkpoint is the step, the weights, the optimizer's
state and the losses not yet logged, and two processes see exactly what one process with the same batch sees. Sums over
processes are rounded differently, so the hardware of each part of a run is recorded.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from scemae.errors import RunError, warn_user
from scemae.output import atomic_folder
from scemae.training.acceleration import add_bias_after, can_compile, choose_precision, fuse_attention
from scemae.training.processes import catch_signals, check_same, make_accelerator, run_on_main
from scemae.training.recipe import History, Recipe
from scemae.training.run_config import Precision, RunConfig, RunOptions
from scemae.training.run_folder import MODEL, RunFolder


def train(recipe: Recipe, out: Path, options: RunOptions) -> History:
    """Train to the end of the schedule, `max_hours` or Ctrl-C, then export `out`/model.

    Ctrl-C and SIGTERM end in KeyboardInterrupt once everything is written; `max_hours` counts from this call, and at
    least one step is made. Raises RunError where another process writes to `out`, where the run there cannot be
    continued, and where the loss or the gradient is not finite; OutputError where something cannot be written. The last
    good checkpoint is kept in any case.
    """
    accelerator = make_accelerator()
    folder = RunFolder(out)
    try:
        run_on_main(folder.lock)
        run_on_main(partial(folder.begin, options.resume, options.overwrite))
        with catch_signals() as signals:
            return _Run(recipe, folder, options, accelerator, signals).train()
    finally:
        folder.release()


class _Run:
    def __init__(
        self, recipe: Recipe, folder: RunFolder, options: RunOptions, accelerator: Accelerator, signals: list[int]
    ) -> None:
        self.recipe, self.folder, self.options, self.signals = recipe, folder, options, signals
        self.accelerator, self.device, self.processes = accelerator, accelerator.device, accelerator.num_processes
        self.config = recipe.config
        self.pass_size, rest = divmod(self.config.batch_size, self.processes * self.config.accumulate)
        if rest:
            raise RunError(
                f"batch_size {self.config.batch_size} cannot be shared among {self.processes} processes and "
                f"{self.config.accumulate} passes each."
            )
        on_gpu = self.device.type != "cpu"
        fuse_attention(recipe.module, on_gpu)
        self.optimizer = _make_optimizer(recipe.module, self.config)
        self.step, self.seconds, self.losses = 0, 0.0, list[float]()
        self.hardware = list[str]()
        saved = folder.read_checkpoint()
        if saved is not None:
            self._restore(saved)
        self.precision: Precision = run_on_main(partial(_choose_precision, options, saved, self.device))
        recipe.keep_on(self.device, self.precision)
        present = describe_hardware(self.device, self.processes, self.precision)
        if not self.hardware or (present != self.hardware[-1] and self.step < self.config.steps):
            self.hardware.append(present)
        check_same(
            (self.step, self._hash_next_image()), f"The processes do not all see the same {folder.path} and images."
        )
        self.parallel, self.prepared = accelerator.prepare(recipe.module, self.optimizer)
        compiled = (recipe.compiles and not on_gpu and can_compile()) if options.compile is None else options.compile
        if compiled and not on_gpu:
            add_bias_after(recipe.module)
        self.module = torch.compile(self.parallel) if compiled else self.parallel
        self.stop = self.interrupted = self.due = False

    def train(self) -> History:
        run_on_main(partial(self.folder.cut_log, self.step))
        self.started = self.checkpointed = self.logged = time.monotonic()
        self.logged_step = self.step
        silent = None if self.accelerator.is_main_process else True  # None: unless on a terminal
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
                self._log_and_save()
        history = run_on_main(self._finish)
        if self.interrupted:
            raise KeyboardInterrupt(
                f"Stopped at step {self.step}; {self.folder.path} holds everything. Continue with --resume."
            )
        return history

    @property
    def log_every(self) -> int:
        return max(1, min(50, self.config.steps // 100))

    def _load(self, step: int) -> list[tuple[Tensor, ...]]:
        """This process's part of a step, one entry for each pass."""
        first = self.accelerator.process_index * self.config.accumulate
        starts = [(first + number) * self.pass_size for number in range(self.config.accumulate)]
        return [self.recipe.load(step, slice(start, start + self.pass_size)) for start in starts]

    def _advance(self, passes: list[tuple[Tensor, ...]]) -> None:
        """Update the weights once; also collect the loss, and whether to stop or save, from all processes."""
        rate = learning_rate(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(_step_seed(self.config.seed, self.step, self.accelerator.process_index))  # of dropout
        own_loss = self._backward(passes)
        max_norm = self.config.clip_norm or math.inf
        norm = float(nn.utils.clip_grad_norm_(self.parallel.parameters(), max_norm))
        now = time.monotonic()
        late = now - self.started > 3600 * self.options.max_hours
        due = now - self.checkpointed > 60 * self.options.checkpoint_minutes
        own = (own_loss / self.processes, float(late), float(due), float(len(self.signals)))
        loss, late_ones, due_ones, signals = self._sum_over_processes(own)
        if not math.isfinite(loss + norm):
            self._raise_not_finite(passes, loss, norm)
        self.prepared.step()
        self.prepared.zero_grad()
        self.step += 1
        self.losses.append(loss)
        self.interrupted, self.due = signals > 0, due_ones > 0
        self.stop = self.interrupted or late_ones > 0

    def _backward(self, passes: list[tuple[Tensor, ...]]) -> float:
        """Compute the gradients of the mean loss of this process's passes; returns that loss."""
        total = torch.zeros((), device=self.device)
        for number, loaded in enumerate(passes):
            inputs = self.recipe.prepare(tuple(part.to(self.device, non_blocking=True) for part in loaded))
            last = number == len(passes) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.parallel):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    loss = self.module(*inputs)["loss"] / len(passes)
                loss.backward()
            total += loss.detach()
        return float(total)

    def _sum_over_processes(self, own: Sequence[float]) -> list[float]:
        if self.processes == 1:
            return list(own)
        sums = self.accelerator.reduce(torch.tensor(own, dtype=torch.float64, device=self.device), "sum")
        return [float(value) for value in sums]

    def _raise_not_finite(self, passes: list[tuple[Tensor, ...]], loss: float, norm: float) -> NoReturn:
        where = self.folder.write_bad_batch(self.accelerator.process_index, passes)
        raise RunError(
            f"At step {self.step} the loss is {loss} and the norm of its gradient {norm}. The batch is in {where}; "
            "the checkpoint of an earlier step is kept, but --resume ends here again unless the machine was at fault. "
            "Start again with a lower --learning-rate, a --clip-norm, or --precision float32."
        )

    def _log_and_save(self) -> None:
        """Log, report and save when it is time to."""
        report = self.step % self.recipe.report_every == 0 or self.step == self.config.steps
        if report or self.step % self.log_every == 0:
            run_on_main(partial(self._log, report))
            self.losses, self.logged, self.logged_step = [], time.monotonic(), self.step
        if self.due:
            run_on_main(self._save)
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
            self.folder.write_picture(self.step, self.recipe.draw_report())
            line |= self.recipe.measure()
        self.folder.log(line)

    def _finish(self) -> History:
        self._save()
        if self.step < self.config.steps:  # the last step has been reported already
            self.folder.write_picture(self.step, self.recipe.draw_report())
        history = History(
            lines=self.folder.read_log(),
            step=self.step,
            hours=self._seconds_of_work() / 3600,
            hardware=", then ".join(self.hardware),
        )
        with atomic_folder(self.folder.path / MODEL) as model:
            self.recipe.export(model, history)
        return history

    def _seconds_of_work(self) -> float:
        """Including those before a resume."""
        return self.seconds + time.monotonic() - self.started

    def _save(self) -> None:
        self.folder.write_checkpoint(
            {
                "config": self.config.to_json(),
                "precision": self.precision,
                "hardware": self.hardware,
                "processes": self.processes,
                "step": self.step,
                "seconds": self._seconds_of_work(),
                "losses": self.losses,
                "images": self._hash_next_image(),
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
        if self._hash_next_image() != saved["images"]:
            raise RunError(
                f"The images differ from those that {self.folder.path} was started with; pass the same --data."
            )
        if saved["origin"] != self.recipe.origin:
            raise RunError(
                f"{self.folder.path} was started from another model; pass the same --model or --continue-from."
            )
        self.hardware = list(saved.get("hardware", ["unknown hardware"]))
        count = saved.get("processes", self.processes)
        if count != self.processes and self.step < self.config.steps and self.accelerator.is_main_process:
            warn_user(
                f"The number of processes of {self.folder.path} changes from {count} to {self.processes} at step "
                f"{self.step}: the result will not be exactly that of a run in one piece. The model's card will name "
                f"both. To keep the result, stop before the next checkpoint, and resume with {count}."
            )
        self.recipe.module.load_state_dict(saved["module"])
        self.optimizer.load_state_dict(saved["optimizer"])

    def _hash_next_image(self) -> str:
        """SHA-256 of the next step's first image: other --data at the same (config, step) have another."""
        digest = hashlib.sha256()
        for part in self.recipe.load(self.step, slice(0, 1)):
            digest.update(part.cpu().numpy().tobytes())
        return digest.hexdigest()


def learning_rate(config: RunConfig, step: int) -> float:
    """The learning rate of step number `step`, from 0: linear over the warm-up, then as the schedule says."""
    warmup = config.warmup * config.steps
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (config.steps - warmup)))


def _make_optimizer(module: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """AdamW, or Adam; weight decay on matrices only."""
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in learned if sum(side > 1 for side in parameter.shape) > 1]
    others = [parameter for parameter in learned if sum(side > 1 for side in parameter.shape) <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def _choose_precision(options: RunOptions, saved: dict[str, Any] | None, device: torch.device) -> Precision:
    """The one in the options, or that of the run so far, or the fastest here."""
    if options.precision != "auto":
        return options.precision
    return saved["precision"] if saved else choose_precision(device)


def _step_seed(seed: int, step: int, process: int) -> int:
    return int(np.random.SeedSequence((seed, step, process)).generate_state(1)[0])


def describe_hardware(device: torch.device, processes: int, precision: str) -> str:
    """What a card says of the hardware of a run."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    return f"{processes} x {name}, {precision}"
