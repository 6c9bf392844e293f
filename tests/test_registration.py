"""Registration: warps and views by coordinate ramps, planted faces whose shapes are known, and the command."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from training_runs import pack_noise, pack_squares, save_random_model

import scemae
from scemae.cli.main import main
from scemae.geometry import CellGrid, MeanFrame, sample_at
from scemae.model.config import DenseShapeConfig, ModelConfig
from scemae.model.dense_shape import DenseShape
from scemae.model.projector import Projector
from scemae.training import face_views
from scemae.training.face_views import KINDS, FaceViews
from scemae.training.fit_dense_shape import DenseShapeFit
from scemae.training.random_warps import LEAST_AREA, draw_smooth_warps
from scemae.training.register_config import RegisterConfig
from scemae.training.registration import (
    Round,
    centre_shapes,
    learn_projector,
    match_softly,
    match_template,
    mean_shapes,
    measure_rings,
    register_once,
)
from scemae.training.run_folder import RunFolder
from scemae.weights.card import model_card
from scemae.weights.model_folder import WEIGHTS

INPUT, CELL = 96, 4.0
FRAME = MeanFrame(CellGrid(1.5, CELL), 24)
CONSTANT_LIGHT = {"brightness": 0.0, "log_contrast": 0.0}


def generators(count):
    return [np.random.default_rng([7, number]) for number in range(count)]


# ---- warps and views


def test_a_warp_is_undone_and_does_not_fold():
    warps = draw_smooth_warps(generators(200), amplitude=1.0, input_size=INPUT, margin=4)
    assert float(warps.lattice.areas(warps.shapes).min()) >= LEAST_AREA
    seen = 103 * torch.rand(200, 300, 2, generator=torch.Generator().manual_seed(0)) - 4
    origin = warps.to_unwarped(seen)
    assert 3 < float((origin - seen).norm(dim=-1).mean()) < 8
    assert float((warps.to_warped(origin) - seen).norm(dim=-1).max()) < 0.05


def test_a_warp_follows_from_its_generator_alone():
    settings = {"amplitude": 1.0, "margin": 4}
    together = draw_smooth_warps(generators(3), input_size=INPUT, **settings)
    alone = draw_smooth_warps(generators(3)[2:], input_size=INPUT, **settings)
    assert torch.equal(together[2:].shapes, alone.shapes)
    larger = draw_smooth_warps(generators(3), input_size=2 * INPUT, amplitude=1.0, margin=8)
    moved, moved_more = (warps.shapes - warps.lattice.places.float() for warps in (together, larger))
    assert float(moved_more.norm(dim=-1).mean() / moved.norm(dim=-1).mean()) == pytest.approx(2, rel=0.05)


def draw_views(pack, folder, *, batch_size=10, **fields):
    config = RegisterConfig(batch_size=batch_size, **CONSTANT_LIGHT, **fields)
    return FaceViews.draw(FRAME, pack, np.arange(len(pack)), 4, config, folder)


def test_places_are_seen_where_the_moves_say(tmp_path):
    """Red is the column and green the row of a face's pixel: the same colours at the same places of both views."""
    rows, columns = np.mgrid[:136, :136]
    ramp = np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8)
    views = draw_views(pack_squares(tmp_path / "ramps", [ramp] * 40, input_size=INPUT), tmp_path / "maps")
    shapes = FRAME.smooth(mean_shapes(FRAME, 40) + 8 * torch.randn(40, 576, 2), 1.0)
    seen = 0
    for part in views.parts:
        moved = views.place(shapes[part], part)
        still, colours = (
            255 * sample_at(views.render(kind, part), CellGrid(-4.0, 1.0), xy)[..., :2]
            for kind, xy in (("still", shapes[part]), ("moved", moved))
        )
        flipped = still.unflatten(1, (24, 24)).flip(2).flatten(1, 2)
        others = torch.from_numpy(views.still.mirrored != views.moves.mirrored)[part, None, None]
        wanted = torch.where(others, flipped, still)
        inside = ((moved >= 0) & (moved <= INPUT - 1)).all(-1) & ((wanted > 17) & (wanted < 118)).all(-1)
        assert float((colours - wanted)[inside].abs().max()) < 0.25
        seen += float(inside.float().mean()) / len(views.parts)
    assert seen > 0.6
    assert 5 < sum(views.still.mirrored) < 35


def test_a_face_is_drawn_by_its_row_alone(tmp_path):
    pack = pack_noise(tmp_path / "noise", 6)
    config = RegisterConfig()
    all_views, two = (
        FaceViews.draw(FRAME, pack, rows, 4, config, tmp_path) for rows in (np.arange(6), np.array([5, 2]))
    )
    for kind in KINDS:
        assert torch.equal(all_views.render(kind, slice(0, 6))[[5, 2]], two.render(kind, slice(0, 2)))


# ---- matching


def test_a_soft_match_is_the_mean_of_what_is_near():
    grid, cosines = CellGrid(1.5, 4.0), torch.full((1, 4, 8, 8), -1.0)
    cosines[0, 0, 3, 5] = 1.0  # row 3, column 5
    cosines[0, 1, 2, 2:4] = 1.0  # halfway between two cells
    cosines[0, 2, 2, 2], cosines[0, 2, 7, 7] = 0.5, 1.0  # the second is out of reach
    cosines[0, 3, 0, 0] = 1.0  # from beyond the map
    near = grid.to_input(torch.tensor([[(4.2, 3.0), (2.0, 2.0), (2.0, 2.0), (-9.0, -9.0)]]))
    found, best = match_softly(cosines, grid, near, reach=2, temperature=0.06)
    wanted = grid.to_input(torch.tensor([[(5.0, 3.0), (2.5, 2.0), (2.0, 2.0), (0.0, 0.0)]]))
    torch.testing.assert_close(found, wanted)
    assert best.tolist() == [[1.0, 1.0, 0.5, 1.0]]


WAVES = 32  # numbers in a planted descriptor


def describe(places):
    """Unit descriptors (..., WAVES) of places of the mean face, input px, smooth and all different."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(2, WAVES, generator=generator) / 12  # per px: wavelengths of some 75 px
    return F.normalize((places @ directions + 6 * torch.rand(WAVES, generator=generator)).cos(), dim=-1)


def planted_map(shapes):
    """Maps (n, WAVES, 24, 24) of faces of these shapes: each cell describes the mean face's place that it shows."""
    cells = FRAME.places.float().expand(len(shapes), -1, -1)
    return describe(FRAME.to_mean(shapes, cells)).mT.unflatten(2, (24, 24))


def planted_shapes(count, sigma=4.0, seed=0):
    """Shapes of `count` / 2 faces and of their mirror images; the displacements are 4 px and of mean zero."""
    noise = torch.randn(count // 2, 576, 2, generator=torch.Generator().manual_seed(seed))
    places = FRAME.places.float()
    moved = FRAME.smooth(places + noise, sigma) - places
    shapes = places + moved * (4 / moved.norm(dim=-1).mean())
    return centre_shapes(FRAME, torch.cat([shapes, FRAME.mirror(shapes, INPUT)]))


def plant(folder, shapes, noise=0.0):
    """Views of faces of these shapes, and of noise of that length in each cell."""
    views = draw_views(pack_noise(folder / "noise", len(shapes)), folder, warp=0.5, amplitude=0.2)
    for part in views.parts:
        for kind, seen in (("still", shapes[part]), ("moved", views.place(shapes[part], part))):
            maps = planted_map(seen)
            np.save(views.path(kind, part), (maps + noise * F.normalize(torch.randn_like(maps), dim=1)).numpy())
    return views


def still_maps(views):
    return torch.cat([maps for _, maps in views.iter_maps("still", "test")])


def identity_projector():
    projector = Projector(WAVES, WAVES)
    projector.load_state_dict({"weight": torch.eye(WAVES)[..., None, None], "bias": torch.zeros(WAVES)})
    return projector.requires_grad_(False)


def test_a_few_damaged_cells_move_with_their_neighbours():
    shapes = mean_shapes(FRAME, 1)
    template, maps = describe(FRAME.places.float()), planted_map(shapes)
    maps[:, :, 10:12, 10:12] = F.normalize(torch.randn(1, WAVES, 2, 2), dim=1)
    rough, smooth = (
        match_template(FRAME, template, maps, shapes, Round(reach=3, smoothing=sigma, temperature=0.02))[0]
        for sigma in (0.2, 1.5)
    )
    damaged = (FRAME.places - FRAME.grid.to_input(torch.tensor(10.5))).abs().amax(1) < CELL
    assert float((rough - shapes)[:, damaged].norm(dim=-1).max()) > 0.7 * CELL
    assert float((smooth - shapes)[:, damaged].norm(dim=-1).max()) < 0.35 * CELL


@pytest.mark.slow
def test_known_displacements_are_found(tmp_path):
    truth = planted_shapes(40)
    views, projector, shapes = plant(tmp_path, truth, noise=0.5), identity_projector(), mean_shapes(FRAME, 40)
    for reach, smoothing in ((4, 2.0), (3, 1.0), (3, 0.8), (3, 0.8)):
        settings = Round(reach=reach, smoothing=smoothing, temperature=0.02)
        shapes, agreement = register_once(views, shapes, projector, settings)
        projector = learn_projector(views, shapes, 16, 0.1)
    inner = FRAME.places.sub(47.5).abs().amax(1) < 40
    errors = (shapes - truth)[:, inner].norm(dim=-1)
    assert (truth - FRAME.places).norm(dim=-1).mean() > 0.9 * CELL
    assert float(errors.mean()) < 0.2 * CELL
    assert float(FRAME.areas(shapes).min()) > 0
    assert agreement > 0.9
    torch.testing.assert_close(shapes.mean(0), FRAME.places.float(), atol=1e-3, rtol=0)
    asymmetry = (shapes[20:] - FRAME.mirror(shapes[:20], INPUT))[:, inner].mean(0)
    assert float(asymmetry.norm(dim=-1).mean()) < 0.1 * CELL


@pytest.mark.slow
def test_a_learned_projector_tells_places_apart_as_the_moves_of_the_face_do(tmp_path):
    """Half of the numbers of a map say where in the view a cell is, not where in the face: they are left out."""
    shapes = planted_shapes(20)
    views = plant(tmp_path, shapes)
    loud = 3 * describe(FRAME.places.float()).mT.unflatten(1, (24, 24)).expand(10, -1, -1, -1)
    for part in views.parts:
        for kind in KINDS:
            np.save(views.path(kind, part), torch.cat([torch.from_numpy(np.load(views.path(kind, part))), loud], 1))
    weight = learn_projector(views, shapes, 4, 0.01).weight[:, :, 0, 0]
    assert weight.shape == (4, 2 * WAVES)
    assert float(weight[:, WAVES:].norm() / weight[:, :WAVES].norm()) < 0.2


def test_rings_of_the_same_face_close_and_those_of_noise_do_not():
    same = planted_map(mean_shapes(FRAME, 1)).expand(3, -1, -1, -1)
    assert measure_rings(same, FRAME, identity_projector(), 0.01) < 0.1 * CELL
    # A cell of each face is as far from the next face's as they were moved; back at the first all is undone.
    turned = torch.cat([same[:1].roll(step, 3) for step in (0, 2, -1)])
    assert measure_rings(turned, FRAME, identity_projector(), 0.01) < 0.2 * CELL
    assert measure_rings(torch.randn(3, WAVES, 24, 24), FRAME, identity_projector(), 0.01) > 5 * CELL


# ---- the dense shape


@pytest.mark.slow
def test_the_dense_shape_of_unseen_faces_is_found(tmp_path):
    """Of faces whose displacements are mixtures of four."""
    places = FRAME.places.float()
    basis = planted_shapes(8, sigma=6.0)[:4] - places
    mix = torch.randn(100, 4, generator=torch.Generator().manual_seed(3)) * 0.5
    shapes = places + torch.einsum("nk,kpd->npd", mix, basis)
    views = plant(tmp_path, shapes[:80])
    errors = [float((FRAME.places - shapes[80:]).norm(dim=-1).mean())]
    for stages in ((1, 0), (2, 0), (2, 1)):
        config = DenseShapeConfig(components=8, modes=3, global_stages=stages[0], local_stages=stages[1])
        head = DenseShape(config, WAVES, INPUT, 8)
        DenseShapeFit(head, views, shapes[:80]).fit(0.01, 0.05)
        found = head(planted_map(shapes[80:]), FRAME.grid)
        errors.append(float((found - shapes[80:]).norm(dim=-1).mean()))
    assert float(FRAME.areas(found).min()) > 0
    assert errors[0] > 3
    assert errors[1] < 0.5 * errors[0]  # three modes of four
    assert errors[2] < 1.02 * errors[1]
    assert errors[3] < 0.4 * errors[2]  # the local stage knows no modes
    torch.testing.assert_close(head.modes @ head.modes.T, torch.eye(3), atol=1e-4, rtol=0)
    reduced = head.reduce(still_maps(views))
    assert float(reduced.mean((0, 2, 3)).abs().max()) < 1e-3


def test_a_stage_leaves_shapes_that_it_has_not_learned_from(tmp_path):
    """Displacements of pure chance: those of the faces that it learned from it would know by heart."""
    views = plant(tmp_path, planted_shapes(20))
    shapes = planted_shapes(20, seed=1)
    head = DenseShape(DenseShapeConfig(components=8, modes=20, global_stages=1, local_stages=0), WAVES, INPUT, 8)
    fit = DenseShapeFit(head, views, shapes)
    fit.fit(0.001, 0.001)
    wanted, unseen, learned = (
        (xy - FRAME.places).flatten() for xy in (shapes, fit.shapes["still"], head(still_maps(views), FRAME.grid))
    )
    assert float(F.cosine_similarity(learned, wanted, dim=0)) > 0.8
    assert float(F.cosine_similarity(unseen, wanted, dim=0)) < 0.3


# ---- the command

SMALL = ("--held-out", "3", "--batch-size", "4", "--reaches", "2,2", "--smoothings", "1,1", "--projector-dim", "6")
HEAD = ("--components", "8", "--modes", "10")


@pytest.fixture
def pack(tmp_path):
    return pack_noise(tmp_path / "faces", 12).folder


@pytest.fixture
def tiny(tiny_backbone, tmp_path):
    """A random model without projector, as `--model` names it."""
    return save_random_model(tmp_path / "tiny", tiny_backbone)


def register(capsys, pack, tiny, out, *words):
    words = ("--model", tiny, "--data", pack, "--out", out, *SMALL, *HEAD, *words)
    code = main(["train", "register", *map(str, words), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if code == 0 else json.loads(err)["message"]


@pytest.mark.slow
def test_the_command_writes_a_model_with_a_dense_shape(capsys, pack, tiny, tmp_path, samples):
    code, told = register(capsys, pack, tiny, tmp_path / "run", "--name", "mine")
    assert code == 0, told
    assert {"ring_error", "displacement", "folded", "cycle_projected_error"} <= told.keys()
    assert not (tmp_path / "run" / "maps").exists()
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert {"displacement", "folded", "ring_error", "agreement"} < lines[0].keys()
    model = scemae.load_model(f"local-dir:{tmp_path / 'run' / 'model'}")
    config = model.config
    assert (config.name, config.projector_dim, config.matching_use) == ("mine", 6, "backbone")
    assert config.dense_shape == DenseShapeConfig(components=8, modes=10, global_stages=2, local_stages=1)
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "| dense shape | learned without labels |" in card
    assert "made: registration" in card
    maps = model(model.normalise(torch.rand(2, 3, 104, 104)), 2)
    shapes = model.dense_shape(maps, model.grid(2))
    assert shapes.shape == (2, 576, 2)
    assert bool(shapes.isfinite().all())
    assert float(model.dense_shape.local_weights.abs().max()) > 0
    code, said = register(capsys, pack, tiny, tmp_path / "run", "--resume")
    assert code == 2
    assert "there is nothing to resume" in said
    code, said = register(capsys, pack, f"local-dir:{tmp_path / 'run' / 'model'}", tmp_path / "run", "--overwrite")
    assert code == 2
    assert "choose another --out" in said


class Stopped(Exception):
    """What ends a run in a test."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "call"), [("encode_maps", 3), ("iter_maps", 5), ("write_checkpoint", 3), ("iter_maps", 9)]
)
def test_a_resumed_run_has_the_weights_of_one_in_one_piece(capsys, pack, tiny, tmp_path, monkeypatch, where, call):
    assert register(capsys, pack, tiny, tmp_path / "whole")[0] == 0
    owner, calls = {"encode_maps": face_views, "iter_maps": FaceViews, "write_checkpoint": RunFolder}[where], 0
    function = getattr(owner, where)

    def stop(*arguments):
        nonlocal calls
        calls += 1
        if calls == call:
            raise Stopped
        return function(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, where, stop)
        with pytest.raises(Stopped):
            register(capsys, pack, tiny, tmp_path / "parts")
    capsys.readouterr()
    assert "pass --resume" in register(capsys, pack, tiny, tmp_path / "parts")[1].lower()
    assert "seed: 0 -> 1" in register(capsys, pack, tiny, tmp_path / "parts", "--resume", "--seed", "1")[1]
    assert register(capsys, pack, tiny, tmp_path / "parts", "--resume")[0] == 0
    for name in (f"model/{WEIGHTS}", "log.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--components", "33"), "components is 33 and modes 10; with this model they are at most 32"),
        (("--projector-dim", "33"), "projector_dim is 33; the maps have 32 channels"),
        (("--smoothings", "1"), "smoothings is (1.0,); it must be 2 numbers above 0, as many as reaches"),
        (("--held-out", "2"), "held_out is 2; it must be at least 3"),
        (("--held-out", "12"), "has 12 faces; 12 cannot be held out"),
        (("--resume", "--overwrite"), "cannot both be given"),
    ],
)
def test_bad_input_is_refused(capsys, pack, tiny, tmp_path, words, said):
    given = [word for word in words if word.startswith("--")]
    small = [*SMALL, *HEAD]
    pairs = [pair for pair in zip(small[::2], small[1::2], strict=True) if pair[0] not in given]
    line = ["train", "register", "--model", tiny, "--data", str(pack), "--out", str(tmp_path / "run")]
    assert main([*line, *(word for pair in pairs for word in pair), *words]) == 2
    assert said in capsys.readouterr().err


def test_the_card_names_a_dense_shape_only_where_there_is_one(two_block_model):
    config: ModelConfig = two_block_model.config
    assert "dense shape" not in model_card(config, "0" * 64, 1)
