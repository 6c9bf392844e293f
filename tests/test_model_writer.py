import json
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from training_runs import drawn_faces, fixed_options, no_fsync, state_of  # noqa: F401

import scemae
from scemae.cli.main import main
from scemae.errors import MissingExtraError, OptionError, OutputError, RunError
from scemae.evaluation.evaluation_folder import EvaluationFolder
from scemae.evaluation.publish import publish_model
from scemae.evaluation.result_table import Spread, Table
from scemae.training import model_writer
from scemae.training.combine_models import combine_models
from scemae.training.engine import train
from scemae.training.model_writer import git_commit, plot_loss
from scemae.training.pack import Pack, sample_pack
from scemae.training.run_config import CardFields, Stage1Config
from scemae.training.stage1 import DECODER, Stage1
from scemae.weights.model_folder import CARD, CONFIG, WEIGHTS, file_sha256, read_file

CARD_FIELDS = CardFields(
    name="drawn-tiny", training_data="8 drawings", license="CC-BY-4.0", license_link="https://example.org/by"
)


@pytest.fixture
def config(tiny_backbone):
    small = {"patch_size": 16, "decoder_width": 16, "decoder_depth": 1, "batch_size": 8, "steps": 4}
    return Stage1Config(architecture=tiny_backbone, **small)


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """The pack and the folder of a run, which the first test that needs it makes."""
    return tmp_path_factory.mktemp("first")


@pytest.fixture
def run(config, first_run, tmp_path):
    """The folder of a run of four steps, and its recipe."""
    if not (first_run / "run").exists():
        train(Stage1(config, drawn_faces(first_run), CARD_FIELDS), first_run / "run", fixed_options())
    shutil.copytree(first_run / "run", tmp_path / "run")
    recipe = Stage1(config, Pack.open(first_run / "pack"), CARD_FIELDS)
    recipe.module.load_state_dict(state_of(tmp_path / "run")["module"])
    return tmp_path / "run", recipe


def test_load_model_reads_what_a_run_leaves(run):
    out, recipe = run
    model = scemae.load_model(f"local-dir:{out}/model", device="cpu")
    assert (model.config.name, model.config.images_seen, model.config.patch_size) == ("drawn-tiny", 32, 16)
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(model.backbone(images), recipe.module.backbone(images), rtol=1e-2, atol=1e-2)
    face = (recipe.pack.squares[0], recipe.pack.squares[1])
    assert scemae.extract_features(model, face, align=False).map("backbone").shape[:2] == (2, 32)


def test_the_card_is_filled_from_the_run(run, config):
    out, _ = run
    card = (out / "model" / "README.md").read_text()
    assert "# drawn-tiny\n" in card
    for row in ("training data | 8 drawings", "images seen | 32 ", "steps | 4 of 4, batches of 8 ", "CC-BY-4.0"):
        assert row in card
    last = json.loads((out / "log.jsonl").read_text().splitlines()[-1])["loss"]
    assert f"last loss | {last:.4f} " in card
    assert re.search(r"hours \| 0\.\d\d ", card)
    assert re.search(r"hardware \| 1 x .*float32 ", card)
    assert f"torch {torch.__version__.split('+')[0]}" in card
    assert f"git commit | {git_commit()} " in card
    settings = json.loads(re.search(r"```json\n(.*?)\n```", card, re.DOTALL)[1])
    assert settings["seed"] == 0
    assert Stage1Config.from_json(json.dumps(settings)) == config
    pictures = re.findall(r"\]\(([\w.-]+\.png)\)", card)
    assert any("loss" in name for name in pictures)
    assert all((out / "model" / name).stat().st_size > 0 for name in pictures)


def test_the_card_shows_the_sample_faces_and_not_the_training_data(run):
    out, recipe = run
    shown = np.asarray(Image.open(out / "model" / "1-stage-1-reconstructions.png"))
    assert np.array_equal(shown, np.asarray(recipe.draw_reconstructions(sample_pack())))
    assert not np.array_equal(
        shown[:, : shown.shape[1] // 2], np.asarray(recipe.draw_report())[:, : shown.shape[1] // 2]
    )


def test_the_log_goes_with_the_model_thinned(run, monkeypatch, tmp_path):
    out, recipe = run
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert (out / "model" / "1-stage-1-log.jsonl").read_text() == (out / "log.jsonl").read_text()
    monkeypatch.setattr(model_writer, "MAX_LOG_LINES", 2)
    following = Stage1(replace(recipe.config, continue_from=f"local-dir:{out}/model", seed=1), recipe.pack, CARD_FIELDS)
    train(following, tmp_path / "next", fixed_options())
    thinned = (tmp_path / "next" / "model" / "2-stage-1-log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in thinned] == [2, 4]
    earlier = tmp_path / "next" / "model" / "1-stage-1-log.jsonl"
    assert earlier.read_text() == (out / "log.jsonl").read_text()


# ---- published


@pytest.fixture
def evaluation(run, tmp_path):
    """What scemae eval leaves, of the weights of `run`."""
    settings = {"evaluation": "matching", "dtype": "float32", "sha256": file_sha256(run[0] / "model" / WEIGHTS)}
    folder = EvaluationFolder.open(tmp_path / "evaluation", settings)
    row = ("drawn-tiny", Spread(1.25))
    table = Table(name="matching", title="Matching", columns=("features", "same"), rows=(row,))
    folder.write_scores({}, table)
    return folder.path


def test_a_published_model_has_the_choices_tables_and_notes(run, evaluation, capsys, tmp_path):
    source, out, notes = run[0] / "model", tmp_path / "published", tmp_path / "notes.md"
    notes.write_text("## Limits\n\nDrawings only.\n")

    def publish(model, notes, *more):
        words = ["--prior-sigma", "40", "--license", "CC0-1.0", "--measured", evaluation, "--notes", notes, "--json"]
        return main([*map(str, ["train", "publish", "--model", f"local-dir:{model}", "--out", out, *words, *more])])

    assert publish(source, notes) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (out / WEIGHTS).read_bytes() == (source / WEIGHTS).read_bytes()
    before, after = (scemae.model_info(folder).config for folder in (source, out))
    assert after == replace(before, prior_sigma=40.0, license="CC0-1.0")
    scemae.load_model(out, device="cpu")  # checks the hashes of the card
    for name, (sha256, size) in printed["files"].items():
        assert (sha256, size) == (file_sha256(out / name), (out / name).stat().st_size)
    card, old = (folder.joinpath(CARD).read_text() for folder in (out, source))
    sections = old[old.index("\n## How it was made") :]
    assert card.endswith(f"| drawn-tiny | 1.25 |\n\n## Limits\n\nDrawings only.\n{sections}")
    assert {path.name for path in out.iterdir()} == {path.name for path in source.iterdir()} - {DECODER}
    assert publish(source, notes) == 2
    assert "exists already" in capsys.readouterr().err
    assert publish(source, tmp_path / "none.md") == 2
    assert "none.md cannot be read" in capsys.readouterr().err
    assert publish(out, notes, "--overwrite") == 0
    assert (out / CARD).read_text() == card  # publishing what is published adds nothing


def test_bad_publications_are_refused(run, evaluation, tmp_path):
    source, out = f"local-dir:{run[0]}/model", tmp_path / "published"
    with pytest.raises(OptionError, match="has no projector"):
        publish_model(source, out, {"matching_use": "projected"}, [], "")
    with pytest.raises(RunError, match="not a finished evaluation"):
        publish_model(source, out, {}, [tmp_path], "")
    settings = json.loads((evaluation / "settings.json").read_text())
    (evaluation / "settings.json").write_text(json.dumps(settings | {"sha256": "0" * 64}))
    with pytest.raises(RunError, match="measured other weights, 0000"):
        publish_model(source, out, {}, [evaluation], "")
    assert not out.exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(OutputError, match="mine exists already"):
        publish_model(source, tmp_path / "mine", {}, [], "", overwrite=True)
    (tmp_path / "mine" / "config.json").touch()
    (tmp_path / "mine" / "letter.txt").touch()
    with pytest.raises(OutputError, match=r"mine was not replaced: it contains letter\.txt"):
        publish_model(source, tmp_path / "mine", {}, [], "", overwrite=True)


# ---- from a model, and of a checkout


def test_a_card_without_its_pictures_can_be_published(run, tmp_path):
    """`scemae download --to` copies the files of a model and its card, no pictures."""
    out, source = tmp_path / "published", run[0] / "model"
    for picture in source.glob("*.png"):
        picture.unlink()
    publish_model(f"local-dir:{source}", out, {}, [], "")
    assert (out / CARD).read_text() == (source / CARD).read_text()
    assert sorted(path.name for path in out.iterdir()) == ["1-stage-1-log.jsonl", CARD, CONFIG, WEIGHTS]


def test_a_run_continues_from_a_model_and_counts_its_images(run, config, tmp_path):
    out, recipe = run
    source = f"local-dir:{out}/model"
    following = Stage1(replace(config, continue_from=source, seed=1), recipe.pack, CARD_FIELDS)
    for name, tensor in recipe.module.state_dict().items():
        torch.testing.assert_close(following.module.state_dict()[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    train(following, tmp_path / "next", fixed_options())
    assert scemae.model_info(tmp_path / "next" / "model").config.images_seen == 64
    assert source in (tmp_path / "next" / "model" / "README.md").read_text()
    following.origin = "0" * 64  # of another model, which lies there now
    with pytest.raises(RunError, match="another"):
        train(following, tmp_path / "next", fixed_options(resume=True))
    with pytest.warns(UserWarning, match="decoder.safetensors has other shapes than this run, so the decoder starts"):
        other_decoder = Stage1(replace(config, continue_from=source, decoder_depth=2), recipe.pack, CARD_FIELDS)
    encoder = recipe.module.backbone.vit.blocks[1].mlp.fc1.weight
    torch.testing.assert_close(
        other_decoder.module.backbone.vit.blocks[1].mlp.fc1.weight, encoder, rtol=1e-3, atol=1e-4
    )
    assert DECODER in {path.name for path in (out / "model").iterdir()}
    assert read_file(out / "model" / DECODER)[0].keys() == {
        name for name in recipe.module.state_dict() if not name.startswith("backbone.")
    }


def test_the_decoder_goes_with_a_combined_model_and_is_missed_where_it_is_not(run, config, tmp_path):
    out, recipe = run
    combine_models(f"local-dir:{out}/model", {}, tmp_path / "combined")
    assert (tmp_path / "combined" / DECODER).read_bytes() == (out / "model" / DECODER).read_bytes()
    with warnings.catch_warnings(action="error"):
        Stage1(replace(config, continue_from=f"local-dir:{tmp_path}/combined"), recipe.pack, CARD_FIELDS)
    (tmp_path / "combined" / DECODER).unlink()
    with pytest.warns(UserWarning, match="decoder.safetensors does not exist, so the decoder starts"):
        Stage1(replace(config, continue_from=f"local-dir:{tmp_path}/combined"), recipe.pack, CARD_FIELDS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch_size": 32}, "patch_size"),
        ({"mean": (0.4, 0.4, 0.4)}, "mean"),
        ({"architecture": "deit-tiny"}, "archit"),
    ],
)
def test_a_model_that_a_run_cannot_continue_from(run, config, changes, words):
    out, recipe = run
    with pytest.raises(RunError, match=rf"model has {words}.*; pass the same"):
        Stage1(replace(config, continue_from=f"local-dir:{out}/model", **changes), recipe.pack, CARD_FIELDS)


def test_a_model_that_does_not_fit_on_the_disk(run, monkeypatch):
    import resource

    out, recipe = run
    before = (out / "model" / "README.md").read_text()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    history = train(recipe, out, fixed_options(resume=True))
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OutputError, match="is the disk full"):
            recipe.export(out / "new", history)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (out / "model" / "README.md").read_text().splitlines()[:10] == before.splitlines()[:10]


def test_the_commit_is_that_of_the_package_and_of_no_repository_around_it(tmp_path, monkeypatch):
    def git(*arguments):
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True, capture_output=True)

    (tmp_path / "mine.py").write_text("")
    (tmp_path / "installed.py").write_text("")
    git("init")
    git("add", "mine.py")
    git("commit", "-m", "first")
    monkeypatch.setattr(model_writer, "__file__", str(tmp_path / "installed.py"))
    assert "installed package" in git_commit()
    monkeypatch.setattr(model_writer, "__file__", str(tmp_path / "mine.py"))
    assert re.fullmatch(r"[0-9a-f]{12}", git_commit())
    (tmp_path / "mine.py").write_text("changed")
    assert re.fullmatch(r"[0-9a-f]{12}-dirty", git_commit())


def test_a_checkout_that_is_not_installed_has_a_card_too(run, monkeypatch):
    out, recipe = run

    def unknown(name):
        raise model_writer.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(model_writer.metadata, "version", unknown)
    history = train(recipe, out, fixed_options(resume=True))
    recipe.export(out / "again", history)
    assert "scemae (not installed)" in (out / "again" / "README.md").read_text()


def test_the_loss_plot_falls_on_a_logarithmic_axis():
    lines = [{"step": step, "loss": 100.0 * 0.5**step} for step in range(1, 9)]
    pixels = np.asarray(plot_loss(lines)).astype(int)
    assert pixels.shape == (400, 720, 3)
    rows, columns = np.nonzero(pixels.max(axis=-1) - pixels.min(axis=-1) > 100)  # the line; axes and grid are grey
    first, last = columns.min(), columns.max()
    assert first < 150
    assert last > 650

    def height(column):
        return rows[abs(columns - column) < 20].mean()

    assert height(first) + 100 < height(last)  # rows count downwards
    middle = (height(first) + height(last)) / 2
    assert height((first + last) / 2) == pytest.approx(middle, abs=12)  # a straight line: the loss is logarithmic
    assert plot_loss([]).size == (720, 400)
    assert plot_loss([{"step": 1, "loss": 0.5}]).size == (720, 400)


def test_plots_without_matplotlib_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"matplotlib: pip install \"scemae\[train\]\""):
        plot_loss([])
