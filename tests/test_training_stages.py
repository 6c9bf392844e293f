"""The commands of the alignment and of stage 2, one after the other, and stage 2 by several processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from training_runs import drawn_faces, log_of, no_fsync, pack_noise, pack_squares, save_random_model  # noqa: F401

import scemae
from scemae.cli.main import main
from scemae.training.discriminant_config import DiscriminantConfig
from scemae.training.pack import Pack, sample_pack
from scemae.training.perturbation_config import CANONICAL_POINTS
from scemae.weights.model_folder import WEIGHTS, read_file

QUICK = ("--held-out", "3", "--batch-size", "4")
NARROW = ("--widths", "4,8", "--squeezed", "4", "--hidden", "8", "--background-squares", "16")


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """Twelve made-up faces."""
    return pack_noise(tmp_path_factory.mktemp("packs") / "faces", 12).folder


@pytest.fixture
def tiny(tiny_backbone, tmp_path):
    """A random model of two blocks, as `--model` names it."""
    return save_random_model(tmp_path / "tiny", tiny_backbone)


def run(capsys, *words):
    code = main([*map(str, words), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if code == 0 else json.loads(err)["message"]


def test_alignment_then_stage_2_then_what_users_do(capsys, pack, tiny, tmp_path, samples):
    few = ("--steps", "2", "--no-compile", *NARROW)
    words = ("--model", tiny, "--data", pack, "--out", tmp_path / "a", "--alignment-steps", "2")
    code, told = run(capsys, "train", "align", *words, *QUICK, *few)
    assert code == 0, told
    assert (told["step"], told["steps"]) == (2, 2)
    aligned = f"local-dir:{tmp_path / 'a' / 'model'}"
    config = scemae.load_model(aligned).config.aligner
    assert (config.widths, config.steps, config.points) == ((4, 8), 2, CANONICAL_POINTS)
    assert {"near_error", "wide_error"} <= log_of(tmp_path / "a")[-1].keys()

    words = ("--model", aligned, "--data", pack, "--out", tmp_path / "f", "--sides", "16,30")
    code, told = run(capsys, "train", "find", *words, *QUICK, *few, "--finder-widths", "4,4,8")
    assert code == 0, told
    aligned = f"local-dir:{tmp_path / 'f' / 'model'}"
    finding = scemae.load_model(aligned).config
    assert (finding.finder.sides, finding.finder.widths, finding.aligner) == ((16, 30), (4, 4, 8), config)
    assert "threshold" in log_of(tmp_path / "f")[-1]

    parts = ("--aligner", f"local-dir:{tmp_path / 'a' / 'model'}", "--finder", aligned)
    code, told = run(capsys, "train", "combine", "--model", tiny, *parts, "--out", tmp_path / "c")
    assert code == 0, told
    whole = read_file(tmp_path / "f" / "model" / WEIGHTS)[0]
    combined = read_file(tmp_path / "c" / WEIGHTS)[0]
    assert combined.keys() == whole.keys()
    assert all(torch.equal(combined[name].float(), whole[name].float()) for name in whole if "backbone" not in name)
    assert scemae.load_model(f"local-dir:{tmp_path / 'c'}").config.finder == finding.finder
    card = (tmp_path / "c" / "README.md").read_text()
    assert card.count("made: alignment") == card.count("made: face finder") == 1
    assert all((tmp_path / "c" / name).is_file() for name in ("1-alignment-log.jsonl", "2-face-finder-log.jsonl"))
    words = ("--model", tiny, "--aligner", tiny, "--out", tmp_path / "d")
    assert "has no aligner" in run(capsys, "train", "combine", *words)[1]

    moved = ("--preset", "moved", "--faces-together", "2", "--cluster-block", "1", "--projector-dim", "8")
    words = ("--data", pack, "--out", tmp_path / "s", *QUICK, "--steps", "2", "--no-compile", "--name", "mine")
    code, told = run(capsys, "train", "stage2", "--model", aligned, *words, *moved)
    assert code == 0
    assert told["step"] == 2
    trained = f"local-dir:{tmp_path / 's' / 'model'}"
    model = scemae.load_model(trained)
    assert (model.config.name, model.config.projector_dim) == ("mine", 8)
    assert (model.config.aligner, model.config.finder) == (config, finding.finder)
    card = (tmp_path / "s" / "model" / "README.md").read_text()
    assert card.index("made: alignment") < card.index("made: face finder") < card.index("made: stage 2")
    log = log_of(tmp_path / "s")
    assert "warped_projected_error" in log[-1]
    assert (tmp_path / "s" / "pictures" / "0000002.png").is_file()

    features = scemae.extract_features(model, [s.path for s in samples], boxes=[s.box for s in samples], align=False)
    assert features.map("projected").shape[1] == 8
    found = scemae.match_landmarks(features[0], samples[0].landmarks, features[1])
    assert np.isfinite(found.xy).all()


def test_the_discriminant_writes_a_model_once(capsys, pack, tiny, tmp_path):
    words = ("--model", tiny, "--data", pack, "--held-out", "3", "--projector-dim", "8", "--views", "8")
    code, told = run(capsys, "train", "discriminant", *words, "--out", tmp_path / "run")
    assert code == 0
    assert told["warped_projected_error"] > 0
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    config = DiscriminantConfig.from_json(card.split("```json")[-1].split("```")[0])
    assert config == DiscriminantConfig(held_out=3, projector_dim=8, views=8)
    assert config.amplitude == 1
    code, said = run(capsys, "train", "discriminant", *words, "--out", tmp_path / "run")
    assert code == 2
    assert "exists already; pass --overwrite" in said
    assert run(capsys, "train", "discriminant", *words, "--out", tmp_path / "run", "--overwrite")[0] == 0


@pytest.mark.slow
def test_another_input_size_works_from_images_to_a_model(capsys, tiny_backbone, tmp_path):
    drawn_faces(tmp_path)
    small = ("--input-size", "64", "--patch-size", "8", "--decoder-width", "16", "--decoder-depth", "1")
    quick = ("--batch-size", "4", "--steps", "2", "--no-compile")
    words = ("--data", tmp_path / "drawn", "--out", tmp_path / "1", "--architecture", tiny_backbone)
    assert run(capsys, "train", "stage1", *words, *small, *quick)[0] == 0
    faces = Pack.open(tmp_path / "1" / "pack")
    assert (faces.input_size, faces.size) == (64, 90)

    stages = {
        "align": (*NARROW, *quick),
        "find": (*NARROW, "--finder-widths", "4,4,8", *quick),
        "discriminant": ("--projector-dim", "8", "--views", "8"),
        "stage2": ("--projector-dim", "8", "--cluster-block", "1", *quick),
    }
    source = tmp_path / "1"
    for stage, options in stages.items():
        words = ("--model", f"local-dir:{source}/model", "--data", faces.folder, "--out", tmp_path / stage)
        code, told = run(capsys, "train", stage, *words, "--held-out", "2", *options)
        assert code == 0, told
        source = tmp_path / stage
    model = scemae.load_model(f"local-dir:{source}/model")
    assert (model.config.input_size, model.config.patch_size, model.backbone.grid) == (64, 8, 8)
    assert model.aligner.input_size == 64
    maps = model.project(model.backbone(torch.randn(2, 3, 64, 64)))
    assert maps.shape == (2, 8, 8, 8)

    words = ("--model", "scemae-tiny", "--data", faces.folder, "--out", tmp_path / "other")
    code, said = run(capsys, "train", "stage2", *words)
    assert code == 2
    assert "framed for inputs of 64 px, the model sees 96 px" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("stage2", "--keys", "others"), "there is no other face"),
        (("discriminant", "--amplitude", "0"), "amplitude is 0.0; it must be above 0"),
        (("align", "--scales", "2,1"), "scales is (2.0, 1.0); it must be two rising numbers above 0"),
        (("find", "--wide", "2"), "wide is 2.0; it must be in 0..1"),
        (("find", "--held-out", "12"), "has 12 faces; 12 cannot be held out"),
        (
            ("align", "--held-out", "3", "--backgrounds", str(Path(scemae.__file__).parent / "cli")),
            "holds 0 pictures; wanted at least 8 without faces",
        ),
        (("align", "--held-out", "12"), "has 12 faces; 12 cannot be held out"),
    ],
)
def test_bad_input_is_refused(capsys, pack, tiny, tmp_path, words, said):
    code, message = run(capsys, "train", *words, "--model", tiny, "--data", pack, "--out", tmp_path / "run")
    assert code == 2
    assert said in message


def test_faces_are_aligned(capsys, tmp_path):
    faces = pack_squares(tmp_path / "faces", sample_pack().squares)
    code, told = run(capsys, "data", "align", faces.folder, tmp_path / "upright")
    assert code == 0
    assert told == {"out": str(tmp_path / "upright"), "faces": 2, "size": 136, "skipped": {}}
    assert Pack.open(tmp_path / "upright").names == ("0", "1")


@pytest.mark.slow
def test_stage_2_by_torchrun(pack, tmp_path):
    """`accelerate` launches stage 1, in test_cli_train.py."""
    launch = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "scemae", "train", "stage2")
    words = ("--model", "scemae-tiny", "--data", pack, "--out", tmp_path / "run", *QUICK, "--steps", "2")
    how = ("--no-compile", "--precision", "float32", "--json")
    command = [sys.executable, "-m", *launch, *map(str, words), *how]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)  # told once
    assert told["step"] == 2
    assert told["hardware"].startswith("2 x ")
    assert "starts a single process" not in done.stderr
    assert scemae.load_model(f"local-dir:{tmp_path}/run/model").config.projector_dim == 64
