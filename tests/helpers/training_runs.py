"""What the tests of training share: a toy that the engine trains, and other processes that train it."""

import json
import multiprocessing
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from scemae.errors import ScemaeError
from scemae.model.backbone import Backbone
from scemae.model.config import ModelConfig
from scemae.training.engine import train
from scemae.training.pack import pack_faces, write_pack
from scemae.training.run_config import RunConfig, RunOptions
from scemae.training.run_folder import CHECKPOINT, LOG
from scemae.weights.model_folder import save_model

TOY = RunConfig(batch_size=8, steps=30, learning_rate=0.01)


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    """Import it where toys are trained: fsync takes most of the time of their runs, and no test loses power."""
    monkeypatch.setattr(os, "fsync", lambda _file: None)


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

    def keep_on(self, device, precision):
        pass

    def load(self, step, part):
        rows = np.random.default_rng([self.data_seed, step]).normal(size=(self.config.batch_size, 6))
        return torch.from_numpy(rows.astype(np.float32)[part]), torch.full((len(rows[part]),), step)

    def prepare(self, loaded):
        numbers, steps = loaded
        action = self.at.pop(int(steps[0]), None)
        return (numbers if action is None else action(numbers),)

    def draw_report(self):
        return Image.new("RGB", (4, 4))

    def measure(self):
        return {"length": self.module.first.weight.norm().item()}

    def export(self, folder, history):
        (folder / "model.json").write_text(json.dumps({"step": history.step, "lines": len(history.lines)}))


def signal_self(number, numbers):
    """An action of a toy, with `partial`: this process gets a signal."""
    signal.raise_signal(number)
    return numbers


def fixed_options(**settings):
    """RunOptions that do not depend on the machine."""
    return RunOptions(**{"precision": "float32", "compile": False} | settings)


def state_of(run):
    return torch.load(run / CHECKPOINT, weights_only=True)


def log_of(run):
    """The log without its clocks."""
    lines = [json.loads(line) for line in (run / LOG).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def equal_states(first, second):
    """Whether two nested states hold the same bits."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal_states(first[name], second[name]) for name in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(equal_states, first, second))
    return first == second


def assert_same_run(first, second):
    """Weights, optimizer and log, to the bit."""
    one, other = state_of(first), state_of(second)
    assert one["step"] == other["step"]
    for part in ("module", "optimizer", "losses", "images"):
        assert equal_states(one[part], other[part]), part
    assert log_of(first) == log_of(second)


# ---- other processes: forked from one that has imported everything and done nothing, so that they start at once

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["scemae.training.stage1", "scemae.cli.main", "training_runs"])


class TrainingProcess:
    """A process that calls a function; `wait` for its exit code; `error` is what it raised of scemae's errors."""

    def __init__(self, note, function, *arguments, **environment):
        self.note = Path(note)
        self.process = _forks.Process(target=_call, args=(self.note, function, arguments, environment))
        self.process.start()

    def wait(self, seconds=60):
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"the process still ran after {seconds} s")
        return self.process.exitcode

    @property
    def error(self):
        return self.note.read_text() if self.note.exists() else ""


def spawn_ranks(folder, count, function, *arguments):
    """Start `count` processes that train together."""
    port = str(_free_port())
    environment = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": port} for rank in range(count)]
    return [
        TrainingProcess(folder / f"note-{port}-{number}", function, *arguments, **environment, **rank)
        for number, rank in enumerate(ranks)
    ]


def train_toy(run, options, changes=None, **settings):
    """Train a toy; the one function that most of the other processes call."""
    return train(Toy(replace(TOY, **(changes or {})), **settings), run, options)


def _call(note, function, arguments, environment):
    os.environ |= {"OMP_NUM_THREADS": "1"} | environment
    torch.set_num_threads(1)
    os.fsync = lambda _file: None
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


# ---- packs and models


def pack_squares(folder, squares, **settings):
    """A pack of squares (N, size, size, 3), named by their numbers."""
    named = zip(map(str, range(len(squares))), squares, strict=True)
    return write_pack(folder, named, count=len(squares), size=squares[0].shape[0], source=folder.name, **settings)


def pack_noise(folder, count, size=112, **settings):
    """A pack of noise, the same in every call."""
    squares = np.random.default_rng(0).integers(0, 255, (count, size, size, 3), dtype=np.uint8)
    return pack_squares(folder, squares, **settings)


def save_random_model(folder, architecture, **fields):
    """A model of a random backbone, as `--model` names it."""
    torch.manual_seed(0)
    described = {"name": architecture, "architecture": architecture, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    config = ModelConfig(**described, images_seen=0, training_data="noise", description="random", **fields)
    backbone = Backbone(config.backbone, config.input_size, config.patch_size)
    tensors = {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
    save_model(folder, tensors, config, f"# {architecture}\n")
    return f"local-dir:{folder}"


def drawn_faces(folder, count=8, size=112):
    """A pack of smooth pictures, all different, the same in every call."""
    images = folder / "drawn"
    images.mkdir(parents=True)
    rows, columns = np.mgrid[:size, :size] / size
    for number in range(count):
        phases = np.random.default_rng(number).uniform(0, 6, (3, 1, 1))
        waves = np.sin(3 * columns + phases) + np.cos(4 * rows - phases) + np.sin(6 * columns * rows + 2 * phases)
        pixels = ((waves + 3) / 6 * 255).astype(np.uint8)
        Image.fromarray(np.moveaxis(pixels, 0, -1)).save(images / f"{number}.png")
    return pack_faces(images, folder / "pack", size=size)
