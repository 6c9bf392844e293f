"""The commands of stage 2 and of the alignment, one after the other, and stage 2 by several processes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from training_runs import log_of

import scemae
from scemae.cli.main import main
from scemae.training.pack import Pack, sample_pack, write_pack
from scemae.training.run_config import STAGE2_PRESETS, AlignConfig, Stage2Config

QUICK = ("--held-out", "3", "--batch-size", "4")
TOGETHER = ("--faces-together", "2")


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """Twelve made-up faces."""
    pixels = np.random.default_rng(0).integers(0, 255, (12, 112, 112, 3), dtype=np.uint8)
    folder = tmp_path_factory.mktemp("packs") / "faces"
    return write_pack(folder, zip(map(str, range(12)), pixels, strict=True), 12, 112, "noise", 0.0).folder


def run(capsys, *words):
    code = main([*map(str, words), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if code == 0 else json.loads(err)["message"]


def test_alignment_then_stage_2_then_what_users_do(capsys, pack, tmp_path, samples):
    few = ("--projection-views", "8", "--views", "12", "--amplitudes", "1,0.5", "--steps", "0 1 1")
    code, told = run(
        capsys, "train", "align", "--model", "scemae-tiny", "--data", pack, "--out", tmp_path / "a", *QUICK, *few
    )
    assert code == 0
    assert [stage["amplitude"] for stage in told["stages"]] == [1, 0.5]
    aligned = f"local-dir:{tmp_path / 'a' / 'model'}"
    assert scemae.load_model(aligned).config.aligner == AlignConfig(amplitudes=(1, 0.5), steps=(0, 1, 1)).aligner

    words = ("--data", pack, "--out", tmp_path / "s", *QUICK, "--steps", "2", "--no-compile", "--name", "mine")
    code, told = run(
        capsys, "train", "stage2", "--model", aligned, *words, "--projector-dim", "8", "--preset", "moved", *TOGETHER
    )
    assert code == 0
    assert told["step"] == 2
    trained = f"local-dir:{tmp_path / 's' / 'model'}"
    model = scemae.load_model(trained)
    assert (model.config.name, model.config.projector_dim, len(model.aligner.stages)) == ("mine", 8, 2)
    card = (tmp_path / "s" / "model" / "README.md").read_text()
    assert card.index("made: alignment") < card.index("made: stage 2")
    log = log_of(tmp_path / "s")
    assert "warped_projected_error" in log[-1]
    assert (tmp_path / "s" / "pictures" / "0000002.png").is_file()

    features = scemae.extract_features(model, [s.path for s in samples], boxes=[s.box for s in samples], align=False)
    assert features.map("projected").shape[1] == 8
    found = scemae.match_landmarks(features[0], samples[0].landmarks, features[1])
    assert np.isfinite(found.xy).all()


def test_the_objective_chooses_the_preset(capsys, pack, tmp_path):
    words = ("--model", "scemae-tiny", "--data", pack, *QUICK, "--objective", "lda", "--views", "8")
    code, told = run(capsys, "train", "stage2", *words, "--out", tmp_path / "run")
    assert code == 0
    assert told["warped_projected_error"] > 0
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    settings = Stage2Config.from_json(card.split("```json")[-1].split("```")[0])
    assert settings.amplitude == STAGE2_PRESETS["lda"].amplitude == 1
    code, said = run(capsys, "train", "stage2", *words, "--out", tmp_path / "run")
    assert code == 2
    assert "exists already; pass --overwrite" in said
    assert run(capsys, "train", "stage2", *words, "--out", tmp_path / "run", "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "stage2", "--keys", "others"), "there is no other face"),
        (("train", "stage2", "--objective", "lda", "--amplitude", "0"), "needs an amplitude above 0"),
        (("train", "stage2", "--objective", "lda", "--steps", "9", "--resume"), "resume, steps: objective"),
        (("train", "stage2", "--views", "9"), 'views: objective "lcr" makes no use of it'),
        (("train", "align", "--steps", "0,2"), "must use each of the 3 stages"),
        (("train", "align", "--held-out", "12"), "has 12 faces; 12 cannot be held out"),
    ],
)
def test_settings_that_cannot_be(capsys, pack, tmp_path, words, said):
    code, message = run(capsys, *words, "--model", "scemae-tiny", "--data", pack, "--out", tmp_path / "run")
    assert code == 2
    assert said in message


def test_faces_are_aligned(capsys, tmp_path):
    faces = write_pack(tmp_path / "faces", zip("ab", sample_pack().squares, strict=True), 2, 136, "samples", 0.0)
    code, told = run(capsys, "data", "align", faces.folder, tmp_path / "upright")
    assert code == 0
    assert told == {"out": str(tmp_path / "upright"), "faces": 2, "size": 136, "skipped": {}}
    assert Pack.open(tmp_path / "upright").names == ("a", "b")


@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_stage_2_by_launchers(pack, tmp_path, launcher):
    starts = {
        "accelerate": ("accelerate.commands.launch", "--num_processes", "2", "--cpu"),
        "torchrun": ("torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
    }
    words = ("--model", "scemae-tiny", "--data", pack, "--out", tmp_path / "run", *QUICK, "--steps", "2")
    how = ("--no-compile", "--precision", "float32", "--json")
    command = [sys.executable, "-m", *starts[launcher], "-m", "scemae", "train", "stage2", *map(str, words), *how]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 2
    assert scemae.load_model(f"local-dir:{tmp_path}/run/model").config.projector_dim == 64
