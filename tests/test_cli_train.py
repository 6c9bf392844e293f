import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from training_runs import TrainingProcess, log_of, no_fsync, spawn_ranks, state_of  # noqa: F401

import scemae
from scemae.cli.dataclass_options import add_fields, given_fields
from scemae.cli.main import main
from scemae.model.config import BACKBONES, BackboneConfig
from scemae.training.discriminant_config import DiscriminantConfig
from scemae.training.perturbation_config import AlignConfig, FindConfig
from scemae.training.register_config import RegisterConfig
from scemae.training.run_config import (
    STAGE1_PRESETS,
    STAGE1_SOURCES,
    CardFields,
    PublishConfig,
    RunOptions,
    Stage1Config,
)
from scemae.training.stage2_config import STAGE2_SOURCES, Stage2Config
from scemae.training.training_config import field_help

SMALL = (
    *(("--architecture", "test-tiny"), ("--patch-size", "16"), ("--batch-size", "4"), ("--steps", "6")),
    *(("--decoder-width", "16"), ("--decoder-depth", "1"), ("--precision", "float32"), ("--no-compile",)),
)


@pytest.fixture(autouse=True)
def _architecture(tiny_backbone):
    """Every test here trains it."""


@pytest.fixture
def images(tmp_path):
    """A folder of eight pictures."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((100, 100)).save(folder / f"{number}.png")
    return folder


def run(capsys, *words):
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def small_but(words):
    """`SMALL`, without the options that are among the words: none may be given twice."""
    return [word for option in SMALL if option[0] not in words for word in option]


def train(capsys, *words):
    return run(capsys, "train", "stage1", *small_but(words), *words)


# ---- from the fields of a dataclass to options


def parser_of(kind, presets):
    import argparse

    parser = argparse.ArgumentParser(exit_on_error=False)
    add_fields(parser, kind, "title", presets)
    return parser


WORDS = {
    "architecture": ("deit-small", "deit-small"),
    "mean": ("0.1,0.2,0.3", (0.1, 0.2, 0.3)),
    "std": (["0.1", "0.2", "0.3"], (0.1, 0.2, 0.3)),
    "betas": (["0.8,", "0.9"], (0.8, 0.9)),
    "crop_area": ("0.5 1", (0.5, 1.0)),
    "crop_ratio": ("1,1", (1.0, 1.0)),
    "clip_norm": ("1.5", 1.5),
    "epochs": ("2.5", 2.5),
    "schedule": ("constant", "constant"),
    "optimizer": ("adam", "adam"),
    "flip": ("no", False),
    "continue_from": ("scemae-tiny", "scemae-tiny"),
    "precision": ("bf16", "bf16"),
    "compile": (None, True),
    "normalise_pixels": ("no", False),
    "resume": (None, True),
    "overwrite": (None, True),
    "profile": (None, True),
}


@pytest.mark.parametrize("kind", [Stage1Config, RunOptions, CardFields])
def test_every_field_can_be_set(kind):
    example = CardFields(name="a", training_data="b") if kind is CardFields else kind()
    parser = parser_of(kind, {"": example})
    for field in dataclasses.fields(kind):
        default = getattr(example, field.name)
        other = f"{default}x" if isinstance(default, str) else 7 if isinstance(default, int) else 0.125
        words, value = WORDS.get(field.name, (str(other), other))
        flag = "--" + field.name.replace("_", "-")
        if words == "no":
            line = [flag.replace("--", "--no-")]
        else:
            line = [flag, *([] if words is None else [words] if isinstance(words, str) else words)]
        given = given_fields(parser.parse_args(line), kind)
        assert given == {field.name: value}
        assert type(given[field.name]) is type(value)
    assert given_fields(parser.parse_args([]), kind) == {}


def test_none_is_a_value():
    parser = parser_of(Stage1Config, STAGE1_PRESETS)
    assert given_fields(parser.parse_args(["--clip-norm", "none"]), Stage1Config) == {"clip_norm": None}


@pytest.mark.parametrize(
    "kind",
    [
        Stage1Config,
        Stage2Config,
        DiscriminantConfig,
        RegisterConfig,
        AlignConfig,
        FindConfig,
        RunOptions,
        CardFields,
        PublishConfig,
    ],
)
def test_every_option_has_a_sentence_of_help(kind):
    helps = field_help(kind)
    assert [field.name for field in dataclasses.fields(kind) if not helps.get(field.name, "").endswith(".")] == []


def help_of(stage, capsys):
    with pytest.raises(SystemExit):
        main(["train", stage, "--help"])
    return " ".join(capsys.readouterr().out.split())


def test_help_shows_the_values_of_the_presets(capsys):
    text = help_of("stage1", capsys)
    rate = "--learning-rate FLOAT Peak learning rate, reached after the warm-up."
    assert f"{rate} [cpu: 0.001; paper: 0.0003 (paper, Sec. 4)]" in text
    assert "--mask-ratio FLOAT Fraction of the patches hidden from the encoder. [0.75 (He et al.)]" in text
    assert "Runtime options (do not affect the result): --resume" in text
    assert "Model-card metadata: --name" in text
    assert "--clip-norm FLOAT|none" in text
    assert "--normalise-pixels, --no-normalise-pixels" in text
    assert "--precision {auto,float32,bf16}" in text
    for kind in (Stage1Config, RunOptions, CardFields):
        flags = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(kind)]
        assert all(f"{flag} " in text or f"{flag}, " in text for flag in flags)


def test_help_says_what_follows_the_model_and_where_it_comes_from(capsys):
    text = help_of("stage2", capsys)
    ratios = "paper, clustering: 0.1 (paper, Sec. 4); moved: 1; paper with DeiT-B: 0.25 (paper, Sec. 4)"
    assert f"--attentive-ratio FLOAT eta: fraction of the tokens that count as attentive. [{ratios}]" in text
    assert "[paper, moved, clustering: 64 (paper, Table 1); paper with DeiT-S: 128 (paper, Table 1);" in text
    assert "--weight-decay" in text
    assert "[0.0005 (CL, there coupled)]" in text


@pytest.mark.parametrize(("kind", "sources"), [(Stage1Config, STAGE1_SOURCES), (Stage2Config, STAGE2_SOURCES)])
def test_every_value_of_the_preset_paper_has_a_source(kind, sources):
    assert {field.name for field in dataclasses.fields(kind)} == set(sources)
    known = re.compile(r"paper|ours|He et al\.|CL|DVE|follow from the epochs|does not change the result")
    assert [name for name, source in sources.items() if not known.match(source)] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--mean", "0.1,0.2"), "--mean: wanted 3 numbers"),
        (("--betas", "a,b"), "--betas: wanted 2 numbers"),
        (("--steps", "many"), "invalid int value"),
        (("--precision", "fp8"), "invalid choice"),
        (("--mask-ration", "0.5"), "unrecognized arguments"),
        (("--preset", "gpu"), "invalid choice"),
    ],
)
def test_words_that_are_no_settings(capsys, images, tmp_path, words, said):
    with pytest.raises(SystemExit) as stopped:
        train(capsys, "--data", images, "--out", tmp_path / "run", *words)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


# ---- the commands


def test_images_become_a_pack_and_a_model(capsys, images, tmp_path):
    out = tmp_path / "run"
    words = ("--data", images, "--out", out, "--json", "--license", "MIT", "--mask-ratio", "0.6", "--profile")
    code, text, _ = train(capsys, *words)
    assert code == 0
    result = json.loads(text)
    assert result["profile"] == json.loads((out / "profile.json").read_text())
    assert 0 < result["profile"]["utilisation"] < 2
    assert (result["model"], result["step"], result["steps"]) == (str(out / "model"), 6, 6)
    assert result["loss"] == log_of(out)[-1]["loss"]
    assert "float32" in result["hardware"]
    assert (out / "pack" / "pack.json").exists()
    config = scemae.model_info(out / "model").config
    assert (config.name, config.training_data, config.license) == ("run", "8 faces of images", "MIT")
    saved = json.loads(state_of(out)["config"])
    assert (saved["mask_ratio"], saved["steps"], saved["learning_rate"]) == (0.6, 6, 1e-3)
    code, text, _ = run(capsys, "info", f"local-dir:{out}/model")
    assert code == 0
    assert "images_seen: 24" in text


def test_the_preset_is_where_settings_start(capsys, images, tmp_path):
    code, _, _ = train(capsys, "--data", images, "--out", tmp_path / "run", "--preset", "paper", "--decoder-heads", "4")
    assert code == 0
    saved = Stage1Config.from_json(state_of(tmp_path / "run")["config"])
    given = {"architecture": "test-tiny", "patch_size": 16, "batch_size": 4, "steps": 6, "epochs": None}
    assert saved == dataclasses.replace(
        STAGE1_PRESETS["paper"], **given, decoder_width=16, decoder_depth=1, decoder_heads=4
    )


def test_epochs_give_the_steps(capsys, images, tmp_path):
    """8 faces in batches of 4: an epoch and a half are three steps; --steps and --epochs contradict each other."""
    words = ("--data", images, "--out", tmp_path / "run", "--epochs", "1.5")
    code, text, _ = run(capsys, "train", "stage1", *small_but(["--steps"]), *words, "--json")
    assert code == 0
    assert json.loads(text)["steps"] == 3
    assert json.loads(state_of(tmp_path / "run")["config"])["epochs"] == 1.5
    code, _, err = train(capsys, "--data", images, "--out", tmp_path / "other", "--steps", "6", "--epochs", "2")
    assert code == 2
    assert "--steps 6 and --epochs 2.0 contradict; pass one of them." in err


@pytest.mark.slow
def test_a_run_is_resumed_and_its_pack_used_again(capsys, images, tmp_path):
    out = tmp_path / "run"
    words = ("--data", images, "--out", out, "--name", "mine")
    assert json.loads(train(capsys, *words, "--max-hours", "0", "--json")[1])["step"] == 1
    (images / "new.png").write_bytes((images / "1.png").read_bytes())  # the run goes on with the faces it has
    code, text, _ = train(capsys, *words, "--resume")
    assert code == 0
    assert "step 6 of 6, loss 0." in text or "step 6 of 6, loss 1." in text
    assert text.endswith(f"model: local-dir:{out}/model\n")
    assert scemae.model_info(out / "model").config.name == "mine"
    code, _, err = train(capsys, *words)
    assert code == 2
    assert "--resume" in err
    assert err.count("\n") == 1
    code, _, err = train(capsys, *words, "--resume", "--seed", "4")
    assert code == 2
    assert "seed: 0 -> 4" in err
    assert train(capsys, *words, "--overwrite")[0] == 0
    assert scemae.model_info(out / "model").config.training_data == "9 faces of images"
    code, _, err = train(capsys, *words, "--overwrite", "--continue-from", f"local-dir:{out}/model")
    assert code == 2
    assert "model is the model that this run starts from and would replace" in err
    assert scemae.model_info(out / "model").config.name == "mine"
    (tmp_path / "others").mkdir()
    code, _, err = train(capsys, "--data", tmp_path / "others", "--out", out, "--resume")
    assert code == 2
    assert "was made of" in err


def test_a_pack_is_taken_as_it_is(capsys, images, tmp_path):
    code, text, _ = run(capsys, "data", "pack", images, tmp_path / "pack", "--size", "112")
    assert code == 0
    assert "8 faces of 112 x 112 px" in text
    assert train(capsys, "--data", tmp_path / "pack", "--out", tmp_path / "run")[0] == 0
    assert not (tmp_path / "run" / "pack").exists()


def test_data_pack_counts_what_it_leaves_out(capsys, images, tmp_path):
    (images / "3.png").write_bytes(b"")
    out = tmp_path / "pack"
    code, text, _ = run(capsys, "data", "pack", images, out, "--json")
    assert code == 0
    result = json.loads(text)
    assert (result["out"], result["faces"], result["size"]) == (str(out), 7, 136)
    assert list(result["skipped"]) == ["3.png"]
    assert "left out: 3.png: " in run(capsys, "data", "pack", images, out, "--overwrite")[1]
    code, _, err = run(capsys, "data", "pack", images, out)
    assert code == 2
    assert "--overwrite" in err
    (images / "4.png").write_bytes(b"")
    code, _, err = run(capsys, "data", "pack", images, tmp_path / "other", "--json")
    assert code == 2
    assert json.loads(err)["error"] == "DataError"
    assert run(capsys, "data", "pack", images, tmp_path / "other", "--skip-at-most", "0.5")[0] == 0


def test_boxes_of_a_folder_and_of_a_tar(capsys, images, tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "faces.tar", "w") as archive:
        archive.add(images / "2.png", "faces/2.png")
    for table, source, name in (
        (tmp_path / "folder.csv", images, "images/2.png"),
        (tmp_path / "tar.csv", tmp_path / "faces.tar", "faces/2.png"),
    ):
        table.write_text(f"path,x0,y0,x1,y1\n{name},20,20,68,68\n")
        out = tmp_path / table.stem
        words = ("--boxes", table, "--skip-at-most", "0.9", "--json")
        code, text, err = run(capsys, "data", "pack", source, out, *words)
        assert code == 0, err
        assert json.loads(text)["faces"] == 1
    packs = [np.fromfile(tmp_path / name / "squares.uint8", np.uint8) for name in ("folder", "tar")]
    assert np.array_equal(*packs)


@pytest.mark.parametrize(
    ("data", "out", "words", "said"),
    [
        pytest.param("empty", "run", (), "holds no images", id="empty"),
        pytest.param("absent", "run", (), "no such file or folder", id="absent"),
        pytest.param("images", "run", ("--mask-ratio", "2"), "mask_ratio is 2.0; it must be in 0..1", id="ratio"),
        pytest.param("images", "run", ("--continue-from", "scemae-tyni"), "Did you mean 'scemae-tiny'", id="model"),
        pytest.param("images", "run", ("--resume", "--overwrite"), "cannot both be", id="resume"),
        pytest.param("images", "images/1.png", (), "cannot be written", id="out"),
    ],
)
def test_bad_input_is_one_clear_line(capsys, images, tmp_path, data, out, words, said):
    (tmp_path / "empty").mkdir()
    code, text, err = train(capsys, "--data", tmp_path / data, "--out", tmp_path / out, *words)
    assert (code, text) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_bad_input_is_json_where_json_is_wanted(capsys, tmp_path):
    _, _, err = run(capsys, "data", "pack", tmp_path / "absent", tmp_path / "pack", "--json")
    assert json.loads(err)["error"] == "DataError"


def test_processes_of_one_run_do_not_pack(capsys, images, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = train(capsys, "--data", images, "--out", tmp_path / "run")
    assert code == 2
    assert "scemae data pack" in err


def test_a_missing_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    for name in ("train_commands", "data_commands"):
        monkeypatch.delitem(sys.modules, f"scemae.cli.{name}", raising=False)
    for words in (("train", "stage1", "--data", "faces", "--out", "run"), ("data", "pack", "faces", "pack")):
        code, _, err = run(capsys, *words)
        assert code == 2
        assert 'pip install "scemae[train]"' in err
    assert "no_faces" in run(capsys, "data", "check", "celeba", "no_faces")[2]


def test_other_commands_do_not_load_the_training():
    code = (
        "import sys; from scemae.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "main(['models'])\n"
        "assert not [name for name in sys.modules if name.startswith(('scemae.training', 'torch', 'accelerate'))]"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "train" in shown
    assert "data" in shown


def run_command(words):
    BACKBONES["test-tiny"] = BackboneConfig(width=32, heads=2, depth=2, params=0)
    sys.exit(main(words))


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_and_a_model(capfd, images, tmp_path):
    out = tmp_path / "run"
    words = ["--data", str(images), "--out", str(out), "--steps", "100000"]
    words = ["train", "stage1", *small_but(words), *words]
    process = TrainingProcess(tmp_path / "note", run_command, words)
    end = time.monotonic() + 60
    while not (out / "log.jsonl").exists() or (out / "log.jsonl").stat().st_size == 0:
        assert time.monotonic() < end
        time.sleep(0.02)
    os.kill(process.process.pid, signal.SIGINT)
    assert process.wait() == 130
    step = state_of(out)["step"]
    assert 0 < step < 100_000
    assert scemae.model_info(out / "model").config.images_seen == 4 * step
    assert f"step {step} of 100,000" in (out / "model" / "README.md").read_text().replace("steps | ", "step ")


# ---- launchers


STAGE1 = ("train", "stage1", *small_but(["--architecture", "--patch-size"]), "--architecture", "deit-tiny")


@pytest.fixture
def stage1(images, tmp_path):
    """The words of a small stage 1 that other processes know the architecture of."""
    from scemae.training.pack import pack_faces

    pack_faces(images, tmp_path / "pack")
    return [*STAGE1, "--patch-size", "32", "--data", str(tmp_path / "pack"), "--out", str(tmp_path / "run"), "--json"]


def assert_trained(run):
    assert len(log_of(run)) == 6
    assert scemae.load_model(f"local-dir:{run}/model").config.images_seen == 24


@pytest.mark.slow
def test_launched_by_accelerate(stage1, tmp_path):
    """Without MPI `accelerate launch --cpu` starts one process, whatever number it is given; the command says so.

    `torchrun` launches stage 2, in test_training_stages.py.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu", "-m", "scemae"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*command, *stage1], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["hardware"].startswith("1 x ")
    assert "starts a single process" in done.stderr
    assert_trained(tmp_path / "run")


def exit_with(words):
    sys.exit(main(words))


@pytest.mark.slow
def test_stage_1_by_two_processes(stage1, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert [process.wait() for process in spawn_ranks(tmp_path, 2, exit_with, stage1)] == [0, 0]
    assert "| hardware | 2 x " in (tmp_path / "run" / "model" / "README.md").read_text()
    assert_trained(tmp_path / "run")
