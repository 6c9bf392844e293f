"""Landmark detection and silhouettes: known values, hand-planted errors, resumption; and the four commands."""

import argparse
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_up_faces import coloured_faces, mtfl_folder

from scemae import plots
from scemae.cli.evaluate_commands import _parse_counts, evaluate
from scemae.cli.main import build_parser
from scemae.datasets import DATASETS, read_dataset
from scemae.errors import DataError, MissingExtraError, OptionError, RunError
from scemae.evaluation import ablation
from scemae.evaluation import few_shot_detection as detection_module
from scemae.evaluation.detection_scores import detection_scores, detection_tables
from scemae.evaluation.evaluation_folder import PREDICTIONS, EvaluationFolder
from scemae.evaluation.extractors import Encoder, ExternalExtractor
from scemae.evaluation.few_shot_detection import Fit, detect, detection_settings, plan_fits
from scemae.evaluation.figures import choose_examples, plot_cumulative_errors
from scemae.evaluation.heatmap_options import HeatmapOptions
from scemae.evaluation.result_table import Spread, Table
from scemae.evaluation.setup import EvaluationSetup
from scemae.evaluation.silhouette import DESCRIPTORS, embed_descriptors, silhouette_scores, silhouette_settings
from scemae.weights.model_folder import save_model


@pytest.fixture
def flat(two_block_model):
    """Features that are the same for every face."""
    encoder = Encoder(
        name="flat", encode=lambda views: views.new_ones(len(views), 4, 12, 12) * torch.arange(144).view(12, 12)
    )
    return EvaluationSetup.of(ExternalExtractor(encoder, two_block_model), align=False)


def run_detection(path, setup, pool, test, fits):
    folder = EvaluationFolder.open(path, detection_settings(setup, pool, test, fits))
    detect(setup, pool, test, fits, folder)
    return folder


def test_draws_are_those_of_the_benchmark():
    fits = plan_fits(["cascade", "mean-shape"], [1, 10, 500], 500)
    assert [fit.count for fit in fits].count(1) == 40
    assert [fit.count for fit in fits].count(10) == 10
    assert [fit.count for fit in fits].count(500) == 2
    expected = np.random.default_rng(3).choice(500, 10, replace=False)
    np.testing.assert_array_equal(Fit("cascade", 10, 3).draw_faces(500), expected)
    np.testing.assert_array_equal(Fit("mean-shape", 10, 3).draw_faces(500), expected)
    np.testing.assert_array_equal(Fit("cascade", 500, 0).draw_faces(500), np.arange(500))


def test_the_number_of_draws_can_be_given(flat, tmp_path):
    fits = plan_fits(["mean-shape"], [1, 2, 5], 5, draws=3)
    assert [(fit.count, fit.draw) for fit in fits] == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (5, 0)]
    dataset = coloured_faces(tmp_path, 5)
    error = {"inter_ocular_percent": Spread(9.0), "by_pose": {}}
    scores = {"faces": 5, "heads": {"mean-shape": dict.fromkeys("125", error)}}
    (table,) = detection_tables(flat, dataset, dataset, fits, scores)
    assert "draws of the annotated faces (3 of 1, 2; 1 of 5) from the 5" in table.to_markdown()


@pytest.mark.parametrize("count", [0, 501])
def test_more_faces_than_the_pool_has_are_refused(count):
    with pytest.raises(OptionError, match=f"{count} annotated faces are wanted, but the pool has 500"):
        plan_fits(["cascade"], [1, count], 500)


@pytest.mark.parametrize(
    ("words", "counts"),
    [
        ("", [1, 5, 10, 20, 50, 100]),
        ("--annotated 1,10", [1, 10]),
        ("--annotated 1 10", [1, 10]),
        ("--annotated 10 --annotated 1,5 all", [1, 5, 10, 500]),
    ],
)
def test_numbers_of_annotated_faces_are_a_list(words, counts):
    """Faults A9: of --annotated 1 --annotated 10 only 10 was evaluated, and 1 10 was refused."""
    words = ["eval", "detection", "mtfl", "--data", "a", "--out", "b", *words.split()]
    assert _parse_counts(build_parser(words).parse_args(words).annotated, 500) == counts


def test_an_unknown_head_is_refused():
    with pytest.raises(OptionError, match="there are cascade"):
        plan_fits(["forest"], [1], 500)


def test_mean_shape_gives_its_known_value(flat, tmp_path):
    dataset = coloured_faces(tmp_path, 12)
    pool, test = dataset[:7], dataset[7:]
    fits = plan_fits(["mean-shape"], [3, 7], len(pool))
    run = run_detection(tmp_path / "run", flat, pool, test, fits)
    scores, _ = detection_scores(run)
    eyes = np.linalg.norm(test.landmarks[:, 0] - test.landmarks[:, 1], axis=1)

    def error(shape):
        return 100 * (np.linalg.norm(test.landmarks - shape, axis=-1) / eyes[:, None]).mean()

    of_three = [error(pool.landmarks[fit.draw_faces(7)].mean(axis=0)) for fit in fits if fit.count == 3]
    found = scores["heads"]["mean-shape"]
    assert found["7"]["inter_ocular_percent"].mean == pytest.approx(error(pool.landmarks.mean(axis=0)), abs=1e-9)
    assert found["3"]["inter_ocular_percent"].mean == pytest.approx(np.mean(of_three), abs=1e-9)
    assert found["3"]["inter_ocular_percent"].sd == pytest.approx(np.std(of_three, ddof=1), abs=1e-9)


def test_planted_errors_come_back(tmp_path):
    run = EvaluationFolder.open(
        tmp_path / "run", {"eyes": [0, 1], "fits": ["cascade/5/0", "cascade/5/1", "heatmap/9/0"]}
    )
    truth = np.array([(40.0, 50), (80, 50), (60, 70)])
    lines = []
    for i in range(4):
        moved = {"cascade/5/0": (3, 4), "cascade/5/1": (0, 1), "heatmap/9/0": (0, 20 * (i == 3))}
        found = {name: truth + np.array(by) for name, by in moved.items()}
        lines.append({"key": str(i), "image": f"{i}.jpg", "pose": 1 + 2 * (i == 3), "truth": truth, "found": found})
    run.append(lines)
    scores, errors = detection_scores(run)
    cascade, heatmap = scores["heads"]["cascade"]["5"], scores["heads"]["heatmap"]["9"]
    assert cascade["inter_ocular_percent"].mean == pytest.approx(100 * (5 + 1) / 2 / 40, abs=1e-9)
    assert cascade["inter_ocular_percent"].sd == pytest.approx(10 / 2**0.5, abs=1e-9)
    assert cascade["standard_error"] == pytest.approx(0, abs=1e-9)
    assert heatmap["by_pose"]["frontal"].mean == pytest.approx(50, abs=1e-9)
    assert heatmap["by_pose"]["left profile"].mean == pytest.approx(0, abs=1e-9)
    assert heatmap["faces_above_10_percent"].mean == pytest.approx(25)
    assert heatmap["median_face"].mean == 0
    assert heatmap["standard_error"] == pytest.approx(12.5)
    assert np.isnan(heatmap["inter_ocular_percent"].sd)
    assert errors.by_fit[Fit("cascade", 5, 0)].shape == (4, 3)


def test_an_interrupted_detection_is_resumed(two_block_model, tmp_path, monkeypatch):
    counts = mtfl_folder(tmp_path / "mtfl", test=1, training=4)
    for split in ("lfw_5590", "net_7876"):
        assert counts[split] == 4
    pool, test = (read_dataset("mtfl", tmp_path / "mtfl", s, partial=True) for s in ("net_7876", "lfw_5590"))
    setup = EvaluationSetup.of(two_block_model, expansion=1)
    stream = EvaluationSetup.stream
    monkeypatch.setattr(EvaluationSetup, "stream", lambda self, dataset: stream(self, dataset, batch_size=2))
    fits = [Fit("cascade", 1, 0), Fit("mean-shape", 2, 1)]
    whole = run_detection(tmp_path / "whole", setup, pool, test, fits)

    def fails(self, dataset):
        batches = stream(self, dataset, batch_size=2)
        yield next(batches)
        if dataset.split == "lfw_5590":
            raise KeyboardInterrupt
        yield from batches

    with monkeypatch.context() as patch:
        patch.setattr(EvaluationSetup, "stream", fails)
        with pytest.raises(KeyboardInterrupt):
            run_detection(tmp_path / "broken", setup, pool, test, fits)
    assert len((tmp_path / "broken" / PREDICTIONS).read_text().splitlines()) == 2
    monkeypatch.setattr(detection_module, "fit_regressor", None)  # what was fitted is read, not fitted again
    resumed = run_detection(tmp_path / "broken", setup, pool, test, fits)
    assert (resumed.path / PREDICTIONS).read_text() == (whole.path / PREDICTIONS).read_text()


def test_labels_outside_their_picture_are_not_fitted_on(faces, landmarks):
    moved = landmarks.copy()
    moved[0, 2] = (-3, 10)
    moved[1, 0] = np.array(faces.faces[1].image_size) - 0.5  # the corner itself
    expected = moved.copy()
    expected[0, 2] = np.nan
    np.testing.assert_array_equal(detection_module._mask_labels_outside(faces, moved), expected)
    moved[1, 2] = (10, 1e4)  # on no face inside: there would be no detector
    expected[:, 2] = (-0.5, 10), (10, faces.faces[1].image_size[1] - 0.5)
    np.testing.assert_array_equal(detection_module._mask_labels_outside(faces, moved), expected)


def test_published_rows_are_those_of_the_test_set(flat, tmp_path):
    dataset = coloured_faces(tmp_path, 12)
    fits = plan_fits(["mean-shape"], [1, 12], 12)
    by_count = {
        "1": {"inter_ocular_percent": Spread(9.0, 1.0, 20), "by_pose": {}},
        "12": {"inter_ocular_percent": Spread(8.0), "by_pose": {}},
    }
    scores = {"faces": 12, "heads": {"mean-shape": by_count}}
    (table,) = detection_tables(flat, dataset, replace(dataset, name="300w"), fits, scores)
    text = table.to_markdown()
    assert "| mean-shape on flat, not aligned | 9.00 ± 1.00 | 8.00 |" in text
    assert "| SCE-MAE 256, published (AFLW_M) | 17.08 ± 1.35 | – |" in text
    assert "| SCE-MAE DeiT-B 1024, published (300w) | – | 3.95 |" in text
    assert "12 of these faces are in both" in text
    (unpublished,) = detection_tables(flat, dataset, replace(dataset, name="celeba"), fits, scores)
    assert "SCE-MAE DeiT-B 1024" not in unpublished.to_markdown()  # faults A11: it was MAFL's column
    (apart,) = detection_tables(flat, dataset[:6], dataset[6:], fits, scores)
    assert "in both" not in apart.to_markdown()
    (corrected,) = detection_tables(flat, dataset, replace(dataset, name="aflw_r", annotations="rc.csv"), fits, scores)
    assert "| DVE 64, published (aflw_rc) | – | 5.58 |" in corrected.to_markdown()


@pytest.mark.slow
def test_silhouette_of_planted_clusters(flat, tmp_path):
    dataset = coloured_faces(tmp_path, 8)
    run = EvaluationFolder.open(tmp_path / "run", silhouette_settings(flat, dataset, 2))
    directions = np.array([(1, 0, 0, 0), (-1, 0, 0, 0), (0, 1, 0, 0), (0, -1, 0, 0), (0, 0, 1, 0)])
    clusters = directions + 0.01 * np.random.default_rng(0).normal(size=(8, 5, 4))
    np.savez(run.path / DESCRIPTORS, descriptors=clusters / np.linalg.norm(clusters, axis=-1, keepdims=True))
    embed_descriptors(flat, "backbone", dataset, run)
    scores = silhouette_scores(run)
    assert scores["faces"] == 8
    assert scores["embedded"].count == 2
    assert scores["embedded"].mean > 0.5
    assert scores["descriptors_cosine"] > 0.99
    before = (run.path / "embedding-001.npz").stat().st_mtime_ns
    (run.path / "embedding-000.npz").unlink()
    embed_descriptors(flat, "backbone", dataset, run)
    assert (run.path / "embedding-001.npz").stat().st_mtime_ns == before
    assert silhouette_scores(run)["embedded"] == scores["embedded"]


def test_silhouette_descriptors_are_sampled_at_the_labels(two_block_model, tmp_path):
    def places(views):
        """Each cell's own place in the view, px; and 48."""
        across = (8 * torch.arange(12) + 3.5).expand(12, 12)
        return torch.stack([across, across.T, torch.full((12, 12), 48.0)]).expand(len(views), -1, -1, -1)

    setup = EvaluationSetup.of(ExternalExtractor(Encoder(name="places", encode=places), two_block_model), align=False)
    dataset = coloured_faces(tmp_path, 20)  # more than a batch, whose landmarks are not all the same
    run = EvaluationFolder.open(tmp_path / "run", silhouette_settings(setup, dataset, 0))
    embed_descriptors(setup, "backbone", dataset, run)
    inset, _, end, _ = dataset.samples[0].box
    expected = np.full((20, 5, 3), 48.0)
    expected[..., :2] = (dataset.landmarks + 0.5 - inset) * 96 / (end - inset) - 0.5
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    with np.load(run.path / DESCRIPTORS) as arrays:
        np.testing.assert_allclose(arrays["descriptors"], expected, atol=1e-6)


def test_examples_are_good_and_bad():
    chosen = choose_examples(np.arange(100.0), 5)
    assert len(chosen["good"]) == len(chosen["bad"]) == 5
    assert max(chosen["good"]) < 50
    assert min(chosen["bad"]) >= 90
    assert choose_examples(np.array([1.0]), 5) == {"good": [0], "bad": [0]}


def test_cumulative_curve_rises():
    picture = np.asarray(plot_cumulative_errors({"one": np.array([5.0] * 10)}))
    line = (picture == (31, 119, 180)).all(axis=-1)  # matplotlib's first colour
    left, right = (np.nonzero(line[:, columns])[0].mean() for columns in (slice(80, 150), slice(400, 500)))
    assert right < left - 200  # rows are counted from the top


def test_without_matplotlib_an_evaluation_does_not_begin(command, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="matplotlib"):
        command("detection")
    assert not (tmp_path / "detection").exists()


def test_tables_become_markdown_csv_and_json():
    table = Table(
        name="t",
        title="T",
        columns=("method", "error"),
        rows=(("a", Spread(1.234, 0.5, 3)), ("b", None)),
        notes=("A note.",),
    )
    assert table.to_markdown().splitlines()[2:] == [
        "| method | error |", "| --- | --- |", "| a | 1.23 ± 0.50 |", "| b | – |", "", "- A note."
    ]  # fmt: skip
    assert table.to_csv_rows() == [["method", "error", "error sd"], ["a", 1.234, 0.5], ["b", "", ""]]
    assert Spread.of([1.0]).to_dict() == {"mean": 1.0, "sd": None, "count": 1}


@pytest.fixture(scope="module")
def mtfl(tmp_path_factory):
    """A made-up MTFL and the number of faces of its splits."""
    folder = tmp_path_factory.mktemp("mtfl")
    return folder, mtfl_folder(folder, test=11, training=4)


@pytest.fixture
def command(tmp_path, monkeypatch, two_block_folder, mtfl):
    """Run a command on a made-up MTFL with the quick model, unless told otherwise; returns its result and text."""
    folder, counts = mtfl
    shutil.copytree(folder, tmp_path / "mtfl")
    monkeypatch.setitem(DATASETS, "mtfl", replace(DATASETS["mtfl"], splits=counts))
    parser = argparse.ArgumentParser()
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true")
    evaluate(parser, common)

    def run(name, *arguments):
        words = (name, "mtfl", "--data", tmp_path / "mtfl", "--out", tmp_path / name)
        words += ("--model", f"local-dir:{two_block_folder}", *arguments)
        args = parser.parse_args([str(word) for word in words])
        return args.run(args)

    return run


def test_the_matching_command(command, tmp_path, two_block_model):
    folder = tmp_path / "with-prior"
    save_model(folder, two_block_model.state_dict(), replace(two_block_model.config, prior_sigma=40.0), "")
    arguments = ("matching", "--expansion", "1", "--test", "lfw_5590", "--model", f"local-dir:{folder}")
    result, text = command(*arguments, "--pictures", "1")
    assert result["same"]["pairs"] == 2
    assert result["settings"]["prior"] == 40
    assert "published (MAFL)" in text
    assert "prior 40 px" in text
    assert len(list((tmp_path / "matching" / "pictures").glob("*.png"))) == 2
    again, _ = command(*arguments, "--prior", "40")  # the same settings, so it goes on
    assert again == result
    with pytest.raises(RunError, match="expansion: 1 -> 2"):
        command(*arguments, "--expansion", "2")
    with pytest.raises(RunError, match=r"prior: 40\.0 -> 0\.0"):  # places mean nothing in a frame that is not aligned
        command(*arguments, "--no-align")


@pytest.mark.slow
def test_the_detection_command(command, tmp_path):
    arguments = ("--annotated", "1,all", "--head", "cascade", "--head", "mean-shape", "--expansion", "1")
    result, text = command("detection", *arguments, "--pictures", "1")
    assert result["faces"] == 9
    assert result["heads"]["cascade"]["2"]["inter_ocular_percent"]["mean"] < 10
    assert set(result["heads"]["cascade"]["1"]["by_pose"]) == {
        "left profile",
        "left",
        "frontal",
        "right",
        "right profile",
    }
    assert "By pose" in text
    assert "does not compare" in text
    rows = [json.loads(line) for line in (tmp_path / "detection" / PREDICTIONS).read_text().splitlines()]
    assert rows[0]["image"] == "0001.png"
    assert len(rows[0]["found"]) == 2 * (20 + 1)
    for name in ("detection.csv", "by_pose.csv", "tables.md", "scores.json", "curve.png", "pictures"):
        assert (tmp_path / "detection" / name).exists()


def test_the_papers_head_on_other_features(command):
    arguments = ("--extractor", "gradients", "--no-align", "--head", "heatmap", "--annotated", "2")
    result, text = command("detection", *arguments, "--head-steps", "5")
    assert result["heads"]["heatmap"]["2"]["inter_ocular_percent"]["mean"] > 0
    assert "heatmap on gradients, not aligned" in text
    trained = {"maps": 50, "steps": 5, "rate": 1e-3, "weight_decay": 5e-4, "multiplier": 10, "mirror": True}
    assert result["settings"]["heatmap_heads"] == trained
    with pytest.raises(RunError, match="heatmap_heads"):  # trained otherwise, it is another evaluation
        command("detection", *arguments, "--head-steps", "5", "--no-mirror")


@pytest.mark.parametrize(("dataset", "pool", "steps"), [("mafl", 19_000, 71_250), ("300w", 3148, 7870)])
def test_the_papers_training_of_a_head(dataset, pool, steps):
    """CL's epochs without mirror images, in batches of 32: 120 x 19,000 / 32, 80 x 3,148 / 32."""
    options = HeatmapOptions.of_preset("paper", {"rate": 0.01}, dataset=dataset, pool=pool)
    assert options == HeatmapOptions(maps=50, steps=steps, rate=0.01, weight_decay=5e-4, multiplier=100, mirror=False)
    head = options.new_head("heatmap-block")
    assert (head.heatmaps, head.block, head.steps, head.rate, head.multiplier) == (50, True, steps, 0.01, 100)


def test_the_silhouette_command(command, tmp_path):
    arguments = ("--runs", "1", "--expansion", "1", "--faces", "6")
    result, text = command("silhouette", *arguments, "--perplexity", "4")
    assert result["faces"] == 6
    assert "SCE-MAE, published | 0.679 | 0.013" in text
    assert "and perplexity 4;" in text
    assert (tmp_path / "silhouette" / "tsne.png").exists()
    with pytest.raises(RunError, match=r"perplexity: 4\.0 -> 9"):  # what six faces of five landmarks allow
        command("silhouette", *arguments)


@pytest.mark.slow
def test_the_ablation_command(command, tmp_path, monkeypatch, two_block_folder):
    monkeypatch.setattr(ablation, "model_rows", lambda model: [ablation.variant_row("projected, expansion 4", model)])
    result, text = command(
        "ablation", "--pairs", "1", "--test", "lfw_5590", "--row", f"the same again=local-dir:{two_block_folder}"
    )
    same = [result["rows"][label]["different"] for label in ("projected, expansion 4", "the same again")]
    assert same[0] == same[1]
    assert "raw MAE, published (MAFL)" in text
    assert (tmp_path / "ablation" / "rows" / "the-same-again" / "scores.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(("detection", "--annotated", "few"), "--annotated", id="no number"),
        pytest.param(("detection", "--annotated", "3"), "the pool has 2", id="more than the pool has"),
        pytest.param(("matching", "--test", "validation"), "it has lfw_5590", id="split"),
        pytest.param(("detection", "--annotated", "1", "--draws", "0"), "--draws is 0", id="no draw"),
        pytest.param(
            ("detection", "--annotated", "1", "--head-steps", "5"), "heads here are cascade", id="no such head"
        ),
        pytest.param(
            ("detection", "--annotated", "1", "--head", "heatmap", "--head-steps", "0"),
            "--head-steps is 0",
            id="no step",
        ),
        pytest.param(
            ("detection", "--annotated", "1", "--head", "heatmap", "--head-weight-decay", "nan"),
            "--head-weight-decay is nan; wanted a number at least 0",
            id="no number to decay by",
        ),
        pytest.param(("silhouette", "--perplexity", "40"), "wanted 1 to 14", id="perplexity of few landmarks"),
    ],
)
def test_wrong_options_of_commands_are_refused(command, words, message):
    with pytest.raises(OptionError, match=message):
        command(*words)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        pytest.param("AFLW/0001.png", "0001", id="image"),
        pytest.param("testing.txt", "not laid out as mtfl", id="list"),
    ],
)
def test_missing_files_are_named(command, tmp_path, missing, message):
    (tmp_path / "mtfl" / missing).unlink()
    for name in ("matching", "silhouette"):
        with pytest.raises(DataError, match=message):
            command(name)
