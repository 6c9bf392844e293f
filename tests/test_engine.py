import functools
import json
import math
import os
import random
import resource
import signal
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from damage import flip_bit
from PIL import Image
from torch import nn
from training_runs import (
    TOY,
    Toy,
    TrainingProcess,
    assert_same_run,
    equal_states,
    fixed_options,
    log_of,
    no_fsync,  # noqa: F401
    signal_self,
    spawn_ranks,
    state_of,
    train_toy,
)

from scemae.errors import DataError, OptionError, OutputError, RunError
from scemae.training import engine
from scemae.training.acceleration import can_compile
from scemae.training.engine import learning_rate, train
from scemae.training.processes import catch_signals
from scemae.training.run_config import RunOptions, Stage1Config
from scemae.training.run_folder import CHECKPOINT, LOG, RunFolder, lock_folder

INTERRUPT = functools.partial(signal_self, signal.SIGINT)
KILL = functools.partial(signal_self, signal.SIGKILL)


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


# ---- what a step is


@pytest.mark.parametrize(
    ("accumulate", "clip_norm", "optimizer"),
    [(1, None, "adamw"), (4, None, "adamw"), (2, 0.5, "adamw"), (1, None, "adam")],
)
def test_training_is_adamw_or_adam_by_hand(tmp_path, accumulate, clip_norm, optimizer):
    """AdamW shrinks the weights by rate times decay; Adam adds decay times the weights to the gradient (coupled)."""
    kind = optimizer
    config = replace(TOY, steps=12, accumulate=accumulate, clip_norm=clip_norm, weight_decay=0.3, warmup=0.25)
    config = replace(config, optimizer=kind)
    toy, reference = Toy(config), Toy(config)
    train(toy, tmp_path / "run", fixed_options())
    weights = [reference.module.first.weight, reference.module.last.weight]
    biases = [reference.module.first.bias, reference.module.last.bias]
    decay = 0.3 if kind == "adamw" else 0.0
    optimizer = torch.optim.AdamW([{"params": weights, "weight_decay": decay}, {"params": biases, "weight_decay": 0.0}])
    losses = []
    for step in range(12):
        for group in optimizer.param_groups:
            rise = (step + 1) / 4
            group["lr"] = 0.01 * (rise if step < 3 else 0.5 * (1 + math.cos(math.pi * (step - 3) / 9)))
            group["betas"] = (0.9, 0.95)
        loss = reference.module(*reference.prepare(reference.load(step, slice(None))))["loss"]
        optimizer.zero_grad()
        loss.backward()
        if kind == "adam":
            for weight in weights:
                weight.grad += 0.3 * weight.detach()
        if clip_norm:
            nn.utils.clip_grad_norm_(reference.module.parameters(), clip_norm)
        optimizer.step()
        losses.append(loss.item())
    for trained, by_hand in zip(toy.module.parameters(), reference.module.parameters(), strict=True):
        torch.testing.assert_close(trained, by_hand, rtol=1e-5, atol=1e-6)
    assert [line["loss"] for line in log_of(tmp_path / "run")] == pytest.approx(losses, rel=1e-5)


def test_the_schedule_by_hand():
    config = replace(TOY, steps=100, warmup=0.1, learning_rate=2.0)
    rates = [learning_rate(config, step) for step in (0, 4, 9, 10, 55, 99)]
    expected = [2 / 11, 10 / 11, 20 / 11, 2.0, 1.0, 1 + math.cos(math.pi * 89 / 90)]
    assert rates == pytest.approx(expected)
    assert learning_rate(replace(config, warmup=0.0), 0) == 2.0
    assert learning_rate(replace(config, warmup=1.0), 99) == pytest.approx(200 / 101)
    constant = replace(config, schedule="constant")
    assert [learning_rate(constant, step) for step in (4, 10, 99)] == pytest.approx([10 / 11, 2.0, 2.0])


@pytest.mark.parametrize(("epochs", "steps"), [(None, 9), (2.0, 25), (0.5, 6), (0.01, 1)])
def test_epochs_are_steps_of_so_many_faces(epochs, steps):
    """100 faces in batches of 8 are 12.5 steps."""
    assert replace(TOY, batch_size=8, steps=9, epochs=epochs).for_faces(100).steps == steps


def test_bf16_is_for_products_only_and_a_resume_keeps_it(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "choose_precision", lambda device: "bf16")
    toy = Toy(replace(TOY, clip_norm=0.1), at={4: INTERRUPT})
    with pytest.raises(KeyboardInterrupt):
        train(toy, tmp_path / "run", fixed_options(precision="auto"))
    assert toy.module.inner.dtype == torch.bfloat16
    monkeypatch.setattr(engine, "choose_precision", lambda device: "float32")
    toy = Toy(replace(TOY, clip_norm=0.1))
    history = train(toy, tmp_path / "run", fixed_options(precision="auto", resume=True))
    assert toy.module.inner.dtype == torch.bfloat16
    assert "bf16" in history.hardware
    assert all(parameter.grad is None or parameter.dtype == torch.float32 for parameter in toy.module.parameters())
    other = Toy()
    train(other, tmp_path / "other", fixed_options(precision="auto"))  # in one process after the other
    assert other.module.inner.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason="torch.compile needs a C++ compiler")
def test_compiled_training_is_the_same(tmp_path):
    config = replace(TOY, steps=4)
    train(Toy(config), tmp_path / "eager", fixed_options())
    train(Toy(config), tmp_path / "compiled", fixed_options(compile=True))
    losses = [[line["loss"] for line in log_of(tmp_path / name)] for name in ("eager", "compiled")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    eager, compiled = (state_of(tmp_path / name)["module"] for name in ("eager", "compiled"))
    assert eager.keys() == compiled.keys()


# ---- what a run leaves


def test_reports_come_at_their_steps_and_at_the_end(tmp_path):
    history = train(Toy(replace(TOY, steps=230), report_every=50), tmp_path / "run", fixed_options())
    pictures = sorted(path.name for path in (tmp_path / "run" / "pictures").iterdir())
    assert pictures == [f"{step:07d}.png" for step in (50, 100, 150, 200, 230)]
    assert Image.open(tmp_path / "run" / "pictures" / pictures[0]).size == (4, 4)
    lines = log_of(tmp_path / "run")
    assert [line["step"] for line in lines if "length" in line] == [50, 100, 150, 200, 230]
    assert [line["step"] for line in lines] == list(range(2, 231, 2))
    assert [line["step"] for line in history.lines] == [line["step"] for line in lines]
    assert all(line["images_per_second"] > 0 for line in history.lines)
    assert history.step == 230
    assert json.loads((tmp_path / "run" / "model" / "model.json").read_text()) == {"step": 230, "lines": 115}
    left = {path.name for path in (tmp_path / "run").iterdir()} - {"lock"}
    assert left == {CHECKPOINT, LOG, "pictures", "model"}


@pytest.mark.slow
def test_a_loss_is_the_mean_since_the_line_before(tmp_path):
    train(Toy(replace(TOY, steps=30)), tmp_path / "fine", fixed_options())
    train(Toy(replace(TOY, steps=30), report_every=7), tmp_path / "reported", fixed_options())
    fine = [line["loss"] for line in log_of(tmp_path / "fine")]
    assert [line["loss"] for line in log_of(tmp_path / "reported")] == fine  # every step has a line of its own
    train(Toy(replace(TOY, steps=300, learning_rate=1e-9)), tmp_path / "coarse", fixed_options())
    toy = Toy(replace(TOY, steps=300))
    untrained = [toy.module(toy.load(step, slice(None))[0])["loss"].item() for step in range(6)]
    lines = log_of(tmp_path / "coarse")[:2]
    assert [line["step"] for line in lines] == [3, 6]
    means = [sum(untrained[:3]) / 3, sum(untrained[3:]) / 3]
    assert [line["loss"] for line in lines] == pytest.approx(means, rel=1e-5)


# ---- stopping and going on


@pytest.mark.parametrize("stop", [100, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (101, 199))])
def test_a_resumed_run_ends_as_if_it_had_not_stopped(tmp_path, stop):
    config = replace(TOY, steps=200, accumulate=2, clip_norm=1.0)  # a line every 2 steps
    settings = {"dropout": 0.2, "report_every": 40}
    train(Toy(config, **settings), tmp_path / "whole", fixed_options())
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        train(Toy(config, at={stop - 1: INTERRUPT}, **settings), tmp_path / "run", fixed_options())
    assert state_of(tmp_path / "run")["step"] == stop
    assert json.loads((tmp_path / "run" / "model" / "model.json").read_text())["step"] == stop
    history = train(Toy(config, **settings), tmp_path / "run", fixed_options(resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert history.step == 200
    again = train(Toy(config, **settings), tmp_path / "run", fixed_options(resume=True))  # a run that is done
    assert again.step == 200
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_dropout_differs_from_step_to_step_and_from_seed_to_seed(tmp_path):
    losses = []
    for name, seed in (("a", 0), ("b", 1)):
        toy = Toy(replace(TOY, steps=2, learning_rate=1e-12, seed=seed), dropout=0.5)
        toy.module.load_state_dict(Toy().module.state_dict())
        toy.load = lambda step, part, toy=toy: Toy.load(toy, 0, part)  # the same images at each step
        train(toy, tmp_path / name, fixed_options())
        losses += [line["loss"] for line in log_of(tmp_path / name)]
    assert len(set(losses)) == 4


def test_sigterm_stops_as_ctrl_c_does_and_a_second_ctrl_c_is_obeyed_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(Toy(at={3: functools.partial(signal_self, signal.SIGTERM)}), tmp_path / "run", fixed_options())
    assert state_of(tmp_path / "run")["step"] == 4
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may run where Ctrl-C is ignored
    before = signal.getsignal(signal.SIGINT)
    with catch_signals() as received:
        signal.raise_signal(signal.SIGINT)
        assert received == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    with catch_signals() as received:  # a scheduler and a launcher each send one
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert received == [signal.SIGTERM] * 2


def test_a_run_off_the_main_thread_takes_no_signals(tmp_path):
    with ThreadPoolExecutor() as threads:
        assert threads.submit(train, Toy(), tmp_path / "run", fixed_options(max_hours=0)).result().step == 1


def test_max_hours_ends_a_run_that_can_be_gone_on_with(tmp_path):
    history = train(Toy(), tmp_path / "run", fixed_options(max_hours=0))
    assert history.step == 1
    assert (tmp_path / "run" / "pictures" / "0000001.png").exists()
    assert train(Toy(), tmp_path / "run", fixed_options(max_hours=0, resume=True)).step == 2
    train(Toy(), tmp_path / "run", fixed_options(resume=True))
    train(Toy(), tmp_path / "whole", fixed_options())
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_hours_add_up_over_resumes(tmp_path):
    train(Toy(), tmp_path / "run", fixed_options(max_hours=0))
    state = state_of(tmp_path / "run")
    assert 0 < state["seconds"] < 60
    torch.save(state | {"seconds": 7200.0}, tmp_path / "run" / CHECKPOINT)
    history = train(Toy(), tmp_path / "run", fixed_options(resume=True))
    assert 2 < history.hours < 2.1
    assert 7200 < state_of(tmp_path / "run")["seconds"] < 7260


def describe_cores(processes):
    return f"{processes} x {os.cpu_count()} CPU cores, float32"


def test_other_hardware_is_recorded(tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert train(Toy(), run, fixed_options(max_hours=0)).hardware == describe_cores(1)
    monkeypatch.setattr(engine, "describe_hardware", lambda *_: "a GPU")
    for _ in range(2):
        history = train(Toy(), run, fixed_options(max_hours=0, resume=True))
        assert history.hardware == f"{describe_cores(1)}, then a GPU"
    monkeypatch.undo()
    back = f"{describe_cores(1)}, then a GPU, then {describe_cores(1)}"
    assert train(Toy(), run, fixed_options(resume=True)).hardware == back
    monkeypatch.setattr(engine, "describe_hardware", lambda *_: "a GPU")
    assert train(Toy(), run, fixed_options(resume=True)).hardware == back  # there was nothing left to do


def test_a_checkpoint_of_before_goes_on(tmp_path):
    run = tmp_path / "run"
    train(Toy(), run, fixed_options(max_hours=0))
    state = state_of(run)
    assert (state.pop("hardware"), state.pop("processes")) == ([describe_cores(1)], 1)
    torch.save(state, run / CHECKPOINT)
    history = train(Toy(), run, fixed_options(resume=True))
    assert history.hardware == f"unknown hardware, then {describe_cores(1)}"
    train(Toy(), tmp_path / "whole", fixed_options())
    assert_same_run(tmp_path / "whole", run)
    torch.save(state | {"colour": 1}, run / CHECKPOINT)
    with pytest.raises(RunError, match="not a checkpoint of this version"):
        train(Toy(), run, fixed_options(resume=True))


# ---- being killed


KILLED = replace(TOY, steps=80)


def train_until_killed(run, at):
    train(Toy(KILLED, report_every=20, at=at), run, fixed_options(resume=True, checkpoint_minutes=0))


def train_until_killed_in_a_checkpoint(run, number):
    """The process dies with half of a checkpoint written."""
    save, calls = torch.save, []

    def half(state, path):
        save(state, path)
        calls.append(path)
        if len(calls) == number:
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half
    train_until_killed(run, {})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody killed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(Toy(KILLED, report_every=20), run, fixed_options())
    return run


def finish(run):
    train(Toy(KILLED, report_every=20), run, fixed_options(resume=True))


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, whole):
    run = tmp_path / "run"
    for step in (0, 7, 30):  # in the midst of a step: before the first checkpoint, and after some
        assert TrainingProcess(tmp_path / "note", train_until_killed, run, {step: KILL}).wait() == -signal.SIGKILL
        assert (state_of(run)["step"] if step else 0) == step
    for _ in range(2):  # wherever it happens to be
        process = TrainingProcess(tmp_path / "note", train_until_killed, run, {})
        written = (run / LOG).stat().st_size
        wait_for(lambda written=written: (run / LOG).stat().st_size > written + 200)
        process.process.kill()
        process.wait()
        assert state_of(run)["step"] > 30
    finish(run)
    assert_same_run(whole, run)


@pytest.mark.parametrize("number", [1, 2, 12])
def test_killed_amid_a_checkpoint_the_one_before_is_whole(tmp_path, whole, number):
    run = tmp_path / "run"
    process = TrainingProcess(tmp_path / "note", train_until_killed_in_a_checkpoint, run, number)
    assert process.wait() == -signal.SIGKILL
    assert len(list(run.glob(f".{CHECKPOINT}.*"))) == 1
    assert (run / CHECKPOINT).exists() == (number > 1)
    if number > 1:
        assert state_of(run)["step"] == number - 1
    finish(run)
    assert_same_run(whole, run)
    assert not list(run.glob(".*"))


def test_a_log_line_that_was_cut_short_and_lines_beyond_the_checkpoint_go(tmp_path, whole):
    run = tmp_path / "run"
    train(Toy(KILLED, report_every=20), run, fixed_options(max_hours=0))
    with (run / LOG).open("a") as file:
        file.write('{"step": 2, "loss": 9.0}\n{"step": 4, "lo')
    finish(run)
    assert_same_run(whole, run)


# ---- what goes wrong


def train_on_a_full_disk(run):
    def fill(numbers):
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
        return numbers

    train(Toy(at={5: fill}), run, fixed_options(checkpoint_minutes=0))


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path):
    process = TrainingProcess(tmp_path / "note", train_on_a_full_disk, tmp_path / "run")
    assert process.wait() == 2
    assert "OutputError" in process.error
    assert "is the disk full?" in process.error
    assert state_of(tmp_path / "run")["step"] == 5
    assert not list((tmp_path / "run").glob(".*"))
    train(Toy(), tmp_path / "run", fixed_options(resume=True))
    train(Toy(), tmp_path / "whole", fixed_options())
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def train_without_room_for_the_log(run):
    def fill(numbers):
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
        return numbers

    train(Toy(at={5: fill}), run, fixed_options())


def test_a_log_that_cannot_be_written_is_a_clear_error(tmp_path):
    process = TrainingProcess(tmp_path / "note", train_without_room_for_the_log, tmp_path / "run")
    assert process.wait() == 2
    assert "log.jsonl cannot be written" in process.error


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_run(tmp_path, bad):
    toy = Toy(at={5: lambda numbers: numbers * bad}, config=replace(TOY, accumulate=2))
    with pytest.raises(RunError, match=r"At step 5 the loss is (nan|inf).*--learning-rate"):
        train(toy, tmp_path / "run", fixed_options(checkpoint_minutes=0))
    assert state_of(tmp_path / "run")["step"] == 5
    assert [line["step"] for line in log_of(tmp_path / "run")] == [1, 2, 3, 4, 5]
    assert all(parameter.isfinite().all() for parameter in toy.module.parameters())
    passes = torch.load(tmp_path / "run" / "bad_batch" / "0.pt", weights_only=True)
    assert torch.equal(torch.cat([part[0] for part in passes]), toy.load(5, slice(None))[0])
    train(Toy(config=replace(TOY, accumulate=2)), tmp_path / "run", fixed_options(resume=True))


def test_an_error_of_the_reading_thread_ends_the_run(tmp_path):
    toy = Toy()
    read = toy.load

    def broken(step, part):
        if step == 4:
            raise DataError("the disk is gone")
        return read(step, part)

    toy.load = broken
    with pytest.raises(DataError, match="the disk is gone"):
        train(toy, tmp_path / "run", fixed_options(checkpoint_minutes=0))
    assert state_of(tmp_path / "run")["step"] == 3  # the fingerprint of step 4's images cannot be taken either
    train(Toy(), tmp_path / "run", fixed_options(resume=True))


def test_one_process_at_a_time(tmp_path):
    with lock_folder(tmp_path / "run"), pytest.raises(RunError, match="Another process is training"):
        train(Toy(), tmp_path / "run", fixed_options())
    train(Toy(), tmp_path / "run", fixed_options())
    train(Toy(), tmp_path / "run", fixed_options(overwrite=True))  # and the engine has let go of it


def test_a_run_is_not_overwritten_by_accident(tmp_path):
    run = tmp_path / "run"
    train(Toy(), run, fixed_options())
    before = state_of(run)
    with pytest.raises(RunError, match=r"holds checkpoint.pt, log.jsonl, pictures, model already.*--resume"):
        train(Toy(), run, fixed_options())
    assert equal_states(before, state_of(run))
    with pytest.raises(OptionError, match="resume and overwrite"):
        RunOptions(resume=True, overwrite=True)
    train(Toy(replace(TOY, seed=1, steps=12)), run, fixed_options(overwrite=True))
    assert state_of(run)["step"] == 12
    assert len(log_of(run)) == 12
    assert [path.name for path in (run / "pictures").iterdir()] == ["0000012.png"]


@pytest.mark.skipif(os.name == "nt", reason="Windows needs rights to make links")
def test_what_killed_runs_left_is_deleted_and_nothing_else(tmp_path):
    """Faults B1: .log.jsonl.bak of the user was deleted too, and a link to a folder was an OSError."""
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    train(Toy(), run, fixed_options(max_hours=0))
    (run / "model").rename(elsewhere)
    (run / "model").symlink_to(elsewhere)
    (run / ".log.jsonl.bak").touch()
    (run / ".checkpoint.pt.0123456789abcdef.pt").touch()
    (run / ".model.0123456789abcdef").mkdir()
    train(Toy(), run, fixed_options(overwrite=True))
    names = {path.name for path in run.iterdir()}
    assert names == {"checkpoint.pt", "log.jsonl", "pictures", "model", "lock", ".log.jsonl.bak"}
    assert not (run / "model").is_symlink()
    assert (elsewhere / "model.json").exists()


def test_a_folder_that_no_run_made_is_never_deleted(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("years of work")
    for options in (fixed_options(), fixed_options(overwrite=True)):
        with pytest.raises(RunError, match="holds model already"):
            train(Toy(), tmp_path, options)
    assert (tmp_path / "model" / "mine.txt").exists()


def test_an_older_model_stays_until_the_new_one_is_whole(tmp_path):
    run = tmp_path / "run"
    train(Toy(), run, fixed_options(max_hours=0))
    toy = Toy()

    def failing(folder, history):
        (folder / "model.json").write_text("{")
        raise OutputError("no room")

    toy.export = failing
    with pytest.raises(OutputError, match="no room"):
        train(toy, run, fixed_options(resume=True))
    assert json.loads((run / "model" / "model.json").read_text())["step"] == 1
    assert not list(run.glob("*.partial"))
    train(Toy(), run, fixed_options(resume=True))
    assert json.loads((run / "model" / "model.json").read_text())["step"] == 30


def test_a_changed_configuration_is_shown(tmp_path):
    train(Toy(), tmp_path / "run", fixed_options(max_hours=0))
    before = state_of(tmp_path / "run")
    with pytest.raises(RunError, match=r"another configuration: clip_norm: None -> 1.0; learning_rate: 0.01 -> 0.02\."):
        train(Toy(replace(TOY, learning_rate=0.02, clip_norm=1.0)), tmp_path / "run", fixed_options(resume=True))
    assert equal_states(before, state_of(tmp_path / "run"))
    state = before | {"config": json.dumps({**json.loads(before["config"]), "momentum": 0.9})}
    torch.save(state, tmp_path / "run" / CHECKPOINT)
    with pytest.raises(RunError, match=r"another version of scemae.*momentum"):
        train(Toy(), tmp_path / "run", fixed_options(resume=True))


def test_other_images_are_noticed(tmp_path):
    train(Toy(), tmp_path / "run", fixed_options(max_hours=0))
    with pytest.raises(RunError, match="images differ from those"):
        train(Toy(data_seed=1), tmp_path / "run", fixed_options(resume=True))


@pytest.mark.parametrize("damage", ["empty", "half", "text", "zeros", "foreign"])
def test_a_damaged_checkpoint_says_so(tmp_path, damage):
    run = tmp_path / "run"
    train(Toy(), run, fixed_options(max_hours=0))
    path = run / CHECKPOINT
    whole = path.read_bytes()
    if damage == "foreign":
        torch.save({"model": 1}, path)
    else:
        path.write_bytes(
            {"empty": b"", "half": whole[: len(whole) // 2], "text": b"hello", "zeros": bytes(5000)}[damage]
        )
    with pytest.raises(RunError, match=r"checkpoint.pt is (damaged|not a checkpoint).*--overwrite.*--continue-from"):
        train(Toy(), run, fixed_options(resume=True))
    train(Toy(), run, fixed_options(overwrite=True))


def test_a_checkpoint_is_whole_or_refused(tmp_path):
    """Faults A11: 60 of 60 flipped bits went unnoticed. One that 0.1.0 wrote, with CRCs only, is right or refused."""
    train(Toy(), tmp_path / "run", fixed_options(max_hours=0))
    folder, path = RunFolder(tmp_path / "run"), tmp_path / "run" / CHECKPOINT
    whole, rng = path.read_bytes(), random.Random(0)
    saved = folder.read_checkpoint()
    for _ in range(60):
        path.write_bytes(flip_bit(whole, rng.randrange(8 * len(whole))))
        with pytest.raises(RunError, match=r"^[^\n]*checkpoint.pt is damaged[^\n]*--overwrite[^\n]*$"):
            folder.read_checkpoint()
    older = whole[:-66] + bytes(2)
    path.write_bytes(older)
    assert equal_states(folder.read_checkpoint(), saved)
    refused = 0
    for _ in range(60):
        path.write_bytes(flip_bit(older, rng.randrange(8 * len(older))))
        try:
            assert equal_states(folder.read_checkpoint(), saved)  # padding between the parts
        except RunError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("line", [b'{"step": 1', b"\xff", b"[1]", b"{}", b"[" * 100_000])
def test_a_damaged_log_says_so(tmp_path, line):
    (tmp_path / LOG).write_bytes(line + b"\n")
    with pytest.raises(RunError, match=r"log\.jsonl is damaged"):
        RunFolder(tmp_path).read_log()


def test_an_out_that_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file cannot be written"):
        train(Toy(), tmp_path / "file", fixed_options())


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"warmup": 1.5},
        {"betas": (0.9, 1.0)},
        {"clip_norm": -1.0},
        {"seed": -1},
        {"std": (0.2, 0.0, 0.2)},
        {"patch_size": 7},
        {"input_size": 0},
        {"patch_size": 0},
        {"architecture": "resnet"},
        {"mask_ratio": 1.5},
        {"decoder_width": 30},
        {"decoder_heads": 0},
        {"crop_area": (0.0, 1.0)},
        {"crop_ratio": (2.0, 1.0)},
    ],
    ids=str,
)
def test_a_wrong_configuration_is_refused(wrong):
    with pytest.raises(OptionError, match=next(iter(wrong))):
        Stage1Config(**wrong)


def test_a_batch_that_cannot_be_shared(tmp_path):
    with pytest.raises(RunError, match="batch_size 8 cannot be shared among 1 processes and 3 passes"):
        train(Toy(replace(TOY, accumulate=3)), tmp_path / "run", fixed_options())


# ---- several processes


def train_late(run, rank):
    """One of the processes has had enough at once."""
    late = int(os.environ["RANK"]) == rank
    train_toy(run, fixed_options(max_hours=0 if late else math.inf), {"steps": 2000})


def train_signalled(run, rank, number):
    mine = int(os.environ["RANK"]) == rank
    train_toy(run, fixed_options(), {"steps": 3000}, at={50: functools.partial(signal_self, number)} if mine else {})


def train_broken(run, rank):
    def broken(numbers):
        raise DataError("the disk of this machine is gone")

    mine = int(os.environ["RANK"]) == rank
    train_toy(run, fixed_options(), {"steps": 3000}, at={50: broken} if mine else {})


def train_apart(run):
    """Each process has a folder of its own."""
    train_toy(run / os.environ["RANK"], fixed_options(resume=True))


def exit_codes(processes, seconds=40):
    return [process.wait(seconds) for process in processes]


def test_two_processes_do_what_one_does(tmp_path):
    changes = {"clip_norm": 1.0, "accumulate": 2}
    assert exit_codes(spawn_ranks(tmp_path, 2, train_toy, tmp_path / "two", fixed_options(), changes)) == [0, 0]
    assert exit_codes(spawn_ranks(tmp_path, 2, train_toy, tmp_path / "again", fixed_options(), changes)) == [0, 0]
    train_toy(tmp_path / "one", fixed_options(), {"clip_norm": 1.0})
    assert_same_run(tmp_path / "two", tmp_path / "again")  # to the bit, given the seed and the number of processes
    one, two = state_of(tmp_path / "one"), state_of(tmp_path / "two")
    for name, tensor in one["module"].items():
        torch.testing.assert_close(two["module"][name], tensor, rtol=1e-4, atol=1e-6)
    assert one["images"] == two["images"]
    losses = [[line["loss"] for line in log_of(tmp_path / name)] for name in ("one", "two")]
    assert len(losses[1]) == 30  # written by one of them
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert json.loads((tmp_path / "two" / "model" / "model.json").read_text()) == {"step": 30, "lines": 30}


def test_another_number_of_processes_is_said_and_recorded(tmp_path):
    run = tmp_path / "run"
    assert exit_codes(spawn_ranks(tmp_path, 2, train_toy, run, fixed_options(max_hours=0))) == [0, 0]
    with pytest.warns(UserWarning, match="changes from 2 to 1 at step 1: .* not be exactly .* resume with 2") as warned:
        history = train_toy(run, fixed_options(max_hours=0, resume=True))
    assert len(warned) == 1
    assert history.hardware == f"{describe_cores(2)}, then {describe_cores(1)}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert train_toy(run, fixed_options(resume=True)).hardware == history.hardware
        torch.save(state_of(run) | {"processes": 2}, run / CHECKPOINT)
        train_toy(run, fixed_options(resume=True))  # there is nothing left to do


@pytest.mark.slow
def test_processes_stop_together(tmp_path):
    assert exit_codes(spawn_ranks(tmp_path, 2, train_late, tmp_path / "late", 1)) == [0, 0]
    assert state_of(tmp_path / "late")["step"] == 1
    assert exit_codes(spawn_ranks(tmp_path, 2, train_signalled, tmp_path / "run", 1, signal.SIGINT)) == [130, 130]
    assert state_of(tmp_path / "run")["step"] == 51
    assert json.loads((tmp_path / "run" / "model" / "model.json").read_text())["step"] == 51


@pytest.mark.slow
def test_checkpoints_are_made_together(tmp_path):
    """The clocks of processes differ: each would find another step to be the time for one."""
    often = fixed_options(checkpoint_minutes=0.0005)
    assert exit_codes(spawn_ranks(tmp_path, 2, train_toy, tmp_path / "run", often, {"steps": 100})) == [0, 0]


def test_what_one_process_finds_wrong_ends_all(tmp_path):
    with lock_folder(tmp_path / "run"):
        processes = spawn_ranks(tmp_path, 2, train_toy, tmp_path / "run", fixed_options())
        assert exit_codes(processes) == [2, 2]
    assert all("Another process is training" in process.error for process in processes)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_ends_takes_the_others_with_it(tmp_path, rank):
    start = time.monotonic()
    processes = spawn_ranks(tmp_path, 2, train_broken, tmp_path / "run", rank)
    codes = exit_codes(processes)
    assert codes[rank] == 2
    assert "the disk of this machine is gone" in processes[rank].error
    assert codes[1 - rank] == 1
    processes = spawn_ranks(tmp_path, 2, train_signalled, tmp_path / "other", rank, signal.SIGKILL)
    codes = exit_codes(processes)
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] == 1
    assert time.monotonic() - start < 30


def test_processes_that_see_different_folders(tmp_path):
    train_toy(tmp_path / "1", fixed_options(max_hours=0))
    processes = spawn_ranks(tmp_path, 2, train_apart, tmp_path)
    assert exit_codes(processes) == [2, 2]
    assert all("do not all see the same" in process.error for process in processes)
