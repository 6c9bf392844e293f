"""What the tests of training share: a toy that the engine trains, and other processes that train it."""

import json
import multiprocessing
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from scemae.errors import ScemaeError
from scemae.training.engine import train
from scemae.training.run_config import RunConfig, RunOptions
from scemae.training.run_folder import CHECKPOINT, LOG

os.fsync = lambda _file: None  # it takes most of the time of a toy's run, and no test loses power
TOY = RunConfig(batch_size=8, steps=30, learning_rate=0.01, patch_size=32)


class ToyModule(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.first, self.dropout, self.last = nn.Linear(6, 16), nn.Dropout(dropout), nn.Linear(16, 6)

    def forward(self, numbers):
        self.inner = self.first(numbers)
        found = self.last(self.dropout(self.inner.relu()))
        return {"loss": ((found.float() - 2 * numbers.flip(1)) ** 2).mean()}


class Toy:
    """Learns to double and flip rows of random numbers. `at`: step -> what is done, once, amid it."""

    origin = ""

    def __init__(self, config=TOY, *, dropout=0.0, report_every=1000, data_seed=0, at=None):
        torch.manual_seed(config.seed)
        self.config, self.module, self.report_every = config, ToyModule(dropout), report_every
        self.data_seed, self.at = data_seed, dict(at or {})

    def load(self, step, part):
        rows = np.random.default_rng([self.data_seed, step]).normal(size=(self.config.batch_size, 6))
        return torch.from_numpy(rows.astype(np.float32)[part]), torch.full((len(rows[part]),), step)

    def inputs(self, loaded):
        numbers, steps = loaded
        action = self.at.pop(int(steps[0]), None)
        return (numbers if action is None else action(numbers),)

    def picture(self):
        return Image.new("RGB", (4, 4))

    def measure(self):
        return {"length": self.module.first.weight.norm().item()}

    def export(self, folder, history):
        (folder / "model.json").write_text(json.dumps({"step": history.step, "lines": len(history.lines)}))


def signal_self(number, numbers):
    """An action of a toy, with `partial`: this process gets a signal, before it does anything else."""
    signal.raise_signal(number)
    return numbers


def plain(**settings):
    """RunOptions that leave nothing to the machine."""
    return RunOptions(**{"precision": "float32", "compile": False} | settings)


def state_of(run):
    return torch.load(run / CHECKPOINT, weights_only=True)


def log_of(run):
    """The log without its clocks."""
    lines = [json.loads(line) for line in (run / LOG).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def same_tensors(first, second):
    """Whether two nested states hold the same bits."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same_tensors(first[name], second[name]) for name in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same_tensors, first, second))
    return first == second


def assert_same_run(first, second):
    """Weights, optimizer and log, to the bit."""
    one, other = state_of(first), state_of(second)
    assert one["step"] == other["step"]
    for part in ("module", "optimizer", "losses", "images"):
        assert same_tensors(one[part], other[part]), part
    assert log_of(first) == log_of(second)


# ---- other processes: forked from one that has imported everything and done nothing, so that they start at once

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["scemae.training.stage1", "scemae.cli.main", "training_runs"])


class Other:
    """A process that calls a function; `end` waits for its exit code, `error` is what it raised of scemae's errors."""

    def __init__(self, note, function, *arguments, **environment):
        self.note = Path(note)
        self.process = _forks.Process(target=_called, args=(self.note, function, arguments, environment))
        self.process.start()

    def end(self, seconds=60):
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"the process still ran after {seconds} s")
        return self.process.exitcode

    @property
    def error(self):
        return self.note.read_text() if self.note.exists() else ""


def several(folder, count, function, *arguments):
    """`count` processes that train together."""
    port = str(_free_port())
    environment = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": port} for rank in range(count)]
    return [
        Other(folder / f"note-{port}-{number}", function, *arguments, **environment, **rank)
        for number, rank in enumerate(ranks)
    ]


def train_toy(run, options, changes=None, **settings):
    """Train a toy; the one function that most of the other processes call."""
    return train(Toy(replace(TOY, **(changes or {})), **settings), run, options)


def _called(note, function, arguments, environment):
    os.environ |= {"OMP_NUM_THREADS": "1"} | environment
    torch.set_num_threads(1)
    try:
        function(*arguments)
    except ScemaeError as error:
        note.write_text(f"{type(error).__name__}: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _free_port():
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# ---- stage 1 in no time


def drawn_faces(folder, count=8, size=112):
    """A pack of smooth pictures, each another, the same each time."""
    from scemae.training.pack import pack_faces

    images = folder / "drawn"
    images.mkdir(parents=True)
    rows, columns = np.mgrid[:size, :size] / size
    for number in range(count):
        phases = np.random.default_rng(number).uniform(0, 6, (3, 1, 1))
        waves = np.sin(3 * columns + phases) + np.cos(4 * rows - phases) + np.sin(6 * columns * rows + 2 * phases)
        pixels = ((waves + 3) / 6 * 255).astype(np.uint8)
        Image.fromarray(np.moveaxis(pixels, 0, -1)).save(images / f"{number}.png")
    return pack_faces(images, folder / "pack", size=size)
