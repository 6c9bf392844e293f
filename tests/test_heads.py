from dataclasses import replace

import numpy as np
import pytest
import torch

from scemae.detector.built_in_heads import HEADS, new_head
from scemae.detector.cascade import FIXED_CROP_SIGMAS, CascadeHead, describe_places, principal_components
from scemae.detector.head import AnnotatedMaps
from scemae.detector.heatmap import HeatmapHead
from scemae.detector.mirror import left_right_pairs, mirror_pairs, mirror_permutation, named_pairs
from scemae.errors import OptionError
from scemae.geometry import sample_at
from scemae.model.cover_and_stride import cell_grid
from scemae.ridge import RidgeSystem

# In input px; the eyes, the nose, the corners of the mouth.
FIVE = torch.tensor([(30, 38), (65, 38), (47.5, 55), (34, 72), (61, 72)], dtype=torch.float64)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """These tensors are small: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_faces(count, seed=0, landmarks=FIVE):
    """Shapes (count, K, 2): the five points, scaled, shifted, and each a little off."""
    rng = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(count, *shape, generator=rng, dtype=torch.float64)

    middle = landmarks.mean(0)
    return middle + (landmarks - middle) * (1 + 0.05 * noise(1, 1)) + 2.5 * noise(1, 2) + 1.5 * noise(len(landmarks), 2)


def maps_of(shapes, expansion=2, waves=8):
    """Standardised maps (n, 2 * waves * K, h, w): waves of the offset of each cell from each landmark, faded far off.

    The same waves for all faces, so what a channel holds says where its landmark lies.
    """
    rng = torch.Generator().manual_seed(1)
    directions = torch.randn(shapes.shape[1], waves, 2, generator=rng, dtype=torch.float64) * 2 * torch.pi / 50
    centres = cell_grid(expansion).centres(12 * expansion)
    cells = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1)
    offsets = cells - shapes[:, :, None, None]
    phases = torch.einsum("nkyxd,kfd->nkfyx", offsets, directions)
    near = torch.exp(-offsets.square().sum(-1) / (2 * 20**2))[:, :, None]
    maps = torch.cat([near * phases.sin(), near * phases.cos()], dim=2).flatten(1, 2)
    return ((maps - maps.mean((0, 2, 3), keepdim=True)) / maps.std((0, 2, 3), keepdim=True)).float()


def annotated_maps(shapes, blocks, expansion=2, mirrored=None, moved=None):
    """Faces of these shapes to fit on; by default none is a copy of another."""
    return AnnotatedMaps(
        maps=maps_of(shapes, expansion),
        grid=cell_grid(expansion),
        landmarks=shapes,
        blocks=blocks,
        mirrored=np.zeros(len(shapes), dtype=bool) if mirrored is None else mirrored,
        moved=np.zeros(len(shapes), dtype=bool) if moved is None else moved,
    )


def random_maps(count, expansion=2, seed=0):
    """Random faces to fit on, each a block of its own."""
    return annotated_maps(random_faces(count, seed), np.arange(count), expansion)


def select_faces(data, chosen):
    parts = {name: getattr(data, name)[chosen] for name in ("maps", "landmarks", "blocks", "mirrored", "moved")}
    return replace(data, **parts)


@pytest.fixture(scope="module")
def everyone():
    """Faces in four blocks, and the maps and landmarks of six more that nobody is fitted on."""
    shapes = random_faces(30)
    data = annotated_maps(shapes, np.arange(30) % 4)
    return select_faces(data, slice(24)), data.maps[24:], shapes[24:]


@pytest.fixture(scope="module")
def fitted(everyone):
    """A cascade fitted on them, and its held-out predictions."""
    head = CascadeHead(ridge=1.0, samples=10)
    return head, head.fit(everyone[0]).held_out


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def errors(found, truth):
    return (found - truth).norm(dim=-1)


# The ridge systems.


def rows(faces, samples, features):
    rng = torch.Generator().manual_seed(2)
    x = torch.randn(faces, samples, features, generator=rng)
    return x, x[..., :2] * 3 - x[..., 2:4] + 0.1 * torch.randn(faces, samples, 2, generator=rng)


def hand_written_ridge(x, y, ridge):
    x, y = x.flatten(0, 1).double(), y.flatten(0, 1).double()
    gram = x.T @ x
    penalty = ridge * gram.trace() / len(gram)
    return torch.linalg.solve(gram + penalty * torch.eye(len(gram)), x.T @ y)


def test_primal_and_dual_equal_a_hand_written_ridge():
    x, y = rows(8, 5, 30)
    parts = np.arange(8)
    primal, dual = RidgeSystem(x, y, parts), RidgeSystem(x[:5], y[:5], parts[:5])
    assert not primal.dual
    assert dual.dual
    ridges = (0.5, 1.0, 16.0)
    for ridge, first, second in zip(ridges, primal.solve(range(5), ridges), dual.solve(range(5), ridges), strict=True):
        assert torch.allclose(first.double(), hand_written_ridge(x[:5], y[:5], ridge), atol=1e-4)
        assert torch.allclose(second.double(), hand_written_ridge(x[:5], y[:5], ridge), atol=1e-4)


@pytest.mark.parametrize("features", [12, 200])
def test_leaving_a_part_out_equals_never_having_seen_it(features):
    x, y = rows(6, 8, features)
    parts = np.array([0, 0, 2, 4, 4, 6])
    system = RidgeSystem(x, y, parts)
    assert system.dual == (features == 200)
    for part in (0, 2, 4, 6):
        others = parts != part
        alone = RidgeSystem(x[torch.from_numpy(others)], y[torch.from_numpy(others)], parts[others])
        [left_out], [refitted] = (s.solve(sorted(set(parts[others].tolist())), (2.0,)) for s in (system, alone))
        assert torch.allclose(left_out, refitted, atol=1e-5)
        assert not torch.allclose(left_out, system.solve([0, 2, 4, 6], (2.0,))[0], atol=1e-3)


@pytest.mark.parametrize("features", [12, 200])
def test_solving_changes_nothing_and_nothing_gives_nothing(features):
    x, y = rows(6, 8, features)
    system = RidgeSystem(x, y, np.arange(6))
    first = system.solve(range(6), (1.0, 4.0))
    assert same(first, system.solve(range(6), (1.0, 4.0)))
    assert torch.equal(system.solve([99], (1.0,))[0], torch.zeros(features, 2))


def test_a_place_is_described_by_the_nine_places_around_it_row_by_column():
    maps, grid = maps_of(random_faces(2)), cell_grid(2)
    places = random_faces(2, seed=5)
    read = describe_places(maps, grid, places)
    assert read.shape == (2, 5, 9 * maps.shape[1] + 1)
    assert (read[..., -1] == 1).all()
    middle = read[..., 4 * maps.shape[1] : 5 * maps.shape[1]]
    assert torch.allclose(middle, sample_at(maps, grid, places))


# The cascade.


@pytest.mark.parametrize(
    "samples", [10, pytest.param(40, marks=pytest.mark.slow)]
)  # fewer rows than features, and more
def test_the_cascade_finds_planted_landmarks(everyone, samples):
    data, maps, shapes = everyone
    head = CascadeHead(samples=samples)
    held_out = head.fit(data).held_out
    found, confidence = head.predict(maps, data.grid)
    assert errors(found, shapes).max() < 1
    assert errors(held_out, data.landmarks).mean() < 1
    assert errors(head.cascade_.mean_shape.expand_as(shapes), shapes).mean() > 2  # so there was something to find
    assert confidence.shape == (6, 5)
    assert confidence.min() > 0.8
    assert confidence.max() <= 1


def test_the_cascade_is_the_same_each_time(fitted, everyone):
    head, held_out = fitted
    again = CascadeHead(**head.params())
    assert torch.equal(again.fit(everyone[0]).held_out, held_out)
    assert torch.equal(again.cascade_.weights, head.cascade_.weights)


def test_systems_made_again_are_those_kept_in_memory(fitted, everyone, monkeypatch):
    monkeypatch.setattr("scemae.detector.cascade.LANDMARKS_IN_MEMORY", 2)
    head, held_out = fitted
    again = CascadeHead(**head.params())
    assert torch.equal(again.fit(everyone[0]).held_out, held_out)
    assert torch.equal(again.cascade_.weights, head.cascade_.weights)


@pytest.mark.parametrize("params", [{"sigmas": ()}, {"samples": 0}, {"ridge": 0.0}])
def test_impossible_params_of_a_cascade_are_refused(params):
    with pytest.raises(OptionError, match="wanted at least one stage"):
        CascadeHead(**params)


def test_state_brings_a_cascade_back(fitted, everyone):
    head, _ = fitted
    data, maps, _ = everyone
    other = CascadeHead(**head.params())
    other.load_state(head.state())
    assert same(head.predict(maps, data.grid), other.predict(maps, data.grid))
    assert other.ridge_ == head.ridge_


@pytest.mark.slow
def test_held_out_predictions_are_those_of_a_head_without_the_block(everyone):
    """The jitter is drawn for all faces at once, so the head without the block sees other noise: close, not equal."""
    data, _, _ = everyone
    held_out = CascadeHead(ridge=1.0, samples=10).fit(data).held_out
    outside = data.blocks != 2
    alone = CascadeHead(ridge=1.0, samples=10)
    alone.fit(select_faces(data, outside))
    found, _ = alone.predict(data.maps[~outside], data.grid)
    assert errors(found, held_out[~outside]).mean() < 0.2


@pytest.mark.parametrize("face", [0, 7])
def test_a_faces_own_label_never_reaches_its_held_out_prediction(fitted, everyone, face):
    data, _, _ = everyone
    _, held_out = fitted
    changed = data.landmarks.clone()
    changed[face] += torch.tensor([15.0, -9.0])
    found = CascadeHead(ridge=1.0, samples=10).fit(replace(data, landmarks=changed)).held_out
    block = torch.from_numpy(data.blocks == data.blocks[face])
    assert torch.equal(found[block], held_out[block])
    assert not torch.allclose(found[~block], held_out[~block], atol=1e-3)


def test_a_missing_landmark_touches_no_other(fitted, everyone):
    """But for the jitter: it scales a face about the mean of its known landmarks, so the others move a little."""
    data, maps, _ = everyone
    head, _ = fitted
    holed = data.landmarks.clone()
    holed[3, 2] = torch.nan
    lacking = CascadeHead(ridge=1.0, samples=10)
    held_out = lacking.fit(replace(data, landmarks=holed)).held_out
    others = [0, 1, 3, 4]
    mean_shape, lacking_shape = head.cascade_.mean_shape, lacking.cascade_.mean_shape
    assert torch.equal(lacking_shape[others], mean_shape[others])
    assert not torch.equal(lacking_shape[2], mean_shape[2])
    assert torch.isfinite(held_out).all()
    before, after = head.predict(maps, data.grid)[0], lacking.predict(maps, data.grid)[0]
    assert errors(before, after)[:, others].max() < 0.02
    assert 0.005 < errors(before, after)[:, 2].max() < 1


@pytest.mark.slow
def test_a_landmark_missing_at_the_centre_changes_only_its_own_weights(everyone):
    """The nose is put at the mean of the others here, so the jitter of the others stays as it was."""
    data, _, _ = everyone
    centred = data.landmarks.clone()
    centred[3, 2] = centred[3, [0, 1, 3, 4]].mean(0)
    holed = centred.clone()
    holed[3, 2] = torch.nan
    whole, lacking = CascadeHead(ridge=1.0, samples=10), CascadeHead(ridge=1.0, samples=10)
    whole.fit(replace(data, landmarks=centred))
    lacking.fit(replace(data, landmarks=holed))
    difference = (whole.cascade_.weights - lacking.cascade_.weights).abs().amax((0, 2, 3))
    assert difference[[0, 1, 3, 4]].max() < 1e-5
    assert difference[2] > 1e-3


@pytest.mark.slow
def test_the_ridge_is_chosen_on_held_out_faces(everyone):
    data, _, _ = everyone
    chosen = CascadeHead(samples=10)
    held_out = chosen.fit(data).held_out
    by_ridge = {
        r: errors(CascadeHead(ridge=r, samples=10).fit(data).held_out, data.landmarks).mean()
        for r in (0.25, 1.0, 4.0, 16.0)
    }
    assert chosen.ridge_ == min(by_ridge, key=by_ridge.get)
    assert chosen.params() == CascadeHead(samples=10).params()  # what is chosen does not become a hyper-parameter
    assert errors(held_out, data.landmarks).mean() == min(by_ridge.values())


def test_one_face_holds_nothing_out():
    data = random_maps(1)
    head = CascadeHead()
    found = head.fit(data)
    assert head.ridge_ == 4.0
    assert head.ridge is None
    assert not found.mirrored
    assert found.held_out.isnan().all()
    assert errors(head.predict(data.maps, data.grid)[0], data.landmarks).max() < 0.5


def test_mirror_images_are_used_where_they_help():
    """With the true landmarks they do, with nonsense they do not; none of them has a held-out prediction."""
    originals, extra = random_faces(4, seed=3), random_faces(4, seed=4)
    shapes, mirrored = torch.cat([originals, extra]), np.repeat([False, True], 4)
    data = annotated_maps(shapes, np.tile(np.arange(4), 2), mirrored=mirrored)
    for landmarks, helps in ((extra, True), (extra.flip(1), False)):
        head = CascadeHead(ridge=1.0, samples=10)
        found = head.fit(replace(data, landmarks=torch.cat([originals, landmarks])))
        assert found.mirrored == helps
        assert found.held_out.shape == originals.shape


def test_moved_copies_are_learned_from_and_held_out_with_their_faces():
    faces, copies = random_faces(4, seed=3), random_faces(4, seed=4) + torch.tensor([9.0, 0.0])
    shapes, moved = torch.cat([faces, copies]), np.repeat([False, True], 4)
    data = annotated_maps(shapes, np.tile(np.arange(4), 2), moved=moved)
    head, alone = CascadeHead(ridge=1.0), CascadeHead(ridge=1.0)
    held_out = head.fit(data).held_out
    assert held_out.shape == faces.shape
    assert torch.equal(
        head.cascade_.mean_shape, faces.mean(0)
    )  # where a face is expected does not move with the copies
    alone.fit(select_faces(data, ~moved))
    fresh = random_faces(6, seed=9)
    with_copies, without = (errors(h.predict(maps_of(fresh), data.grid)[0], fresh).mean() for h in (head, alone))
    assert with_copies < 0.9 * without

    changed = shapes.clone()
    changed[6] += 20  # the copy of the third face
    found = CascadeHead(ridge=1.0).fit(replace(data, landmarks=changed)).held_out
    assert torch.equal(found[2], held_out[2])
    assert not torch.allclose(found[[0, 1, 3]], held_out[[0, 1, 3]], atol=1e-2)


def test_principal_components_hold_what_varies_most():
    rng = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(6, 6, generator=rng)).Q
    spread = torch.tensor([5.0, 3.0, 2.0, 0.1, 0.1, 0.1])
    maps = torch.einsum("cd,ndhw->nchw", axes * spread, torch.randn(4, 6, 20, 20, generator=rng))
    found = principal_components(maps, 3)
    assert torch.allclose(found @ found.T, torch.eye(3), atol=1e-5)
    assert torch.allclose((found @ axes[:, :3]).abs(), torch.eye(3), atol=0.1)
    assert principal_components(maps, 128).shape == (6, 6)


# The heat maps.


@pytest.mark.parametrize("block", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_heat_maps_learn_planted_landmarks_and_come_back_from_their_state(block):
    data = annotated_maps(random_faces(16), np.zeros(16, dtype=int), expansion=1)  # one block: none is held out
    head = HeatmapHead(heatmaps=8, steps=150, block=block)
    fit = head.fit(data)
    found, confidence = head.predict(data.maps, data.grid)
    assert errors(found, data.landmarks).max() < 4
    assert not fit.mirrored
    assert fit.held_out.isnan().all()
    assert fit.held_out.shape == found.shape
    assert found.dtype == torch.float64
    assert ((confidence > 0) & (confidence <= 1)).all()

    other = HeatmapHead(**head.params())
    other.load_state({name: tensor.clone() for name, tensor in head.state().items()})
    assert same(other.predict(data.maps, data.grid), (found, confidence))


def test_heat_maps_hold_blocks_out_and_leave_the_callers_random_numbers_alone():
    data = random_maps(6, expansion=1)
    before = torch.random.get_rng_state()
    held_out = HeatmapHead(heatmaps=2, steps=3).fit(replace(data, blocks=np.arange(6) % 2)).held_out
    assert torch.isfinite(held_out).all()
    assert torch.equal(torch.random.get_rng_state(), before)

    changed = data.landmarks.clone()
    changed[1] += 20
    found = HeatmapHead(heatmaps=2, steps=3).fit(replace(data, landmarks=changed, blocks=np.arange(6) % 2)).held_out
    assert torch.equal(found[1::2], held_out[1::2])
    assert not torch.equal(found[::2], held_out[::2])


def test_heat_maps_take_landmarks_that_are_missing():
    data = random_maps(4, expansion=1)
    holed = data.landmarks.clone()
    holed[0, 1], holed[2] = torch.nan, torch.nan
    head = HeatmapHead(heatmaps=2, steps=3)
    head.fit(replace(data, landmarks=holed, blocks=np.zeros(4, dtype=int)))
    assert torch.isfinite(head.predict(data.maps, data.grid)[0]).all()


@pytest.mark.parametrize(("name", "head"), [("cascade", CascadeHead), ("heatmap", HeatmapHead)])
def test_heads_go_by_their_names(name, head):
    assert HEADS[name] is head
    assert head.name == name
    assert head(**head().params()).params() == head().params()


def test_the_default_cascade_starts_further_out_without_alignment():
    assert new_head("cascade", aligned=True).params() == CascadeHead().params()
    assert new_head("cascade", aligned=False).params() == CascadeHead(FIXED_CROP_SIGMAS).params()
    assert new_head("heatmap", aligned=False).params() == HeatmapHead().params()


# Left and right.


def test_mirror_pairs_of_five_points():
    assert mirror_pairs(FIVE.numpy(), 96, {}) == [1, 0, 2, 4, 3]
    assert mirror_pairs(FIVE.numpy() + np.array([8, 0]), 96, {}) == [1, 0, 2, 4, 3]  # a face that looks aside
    assert mirror_pairs(FIVE.numpy()[[3, 2, 0, 1, 4]], 96, {}) == [4, 1, 3, 2, 0]


@pytest.mark.parametrize(
    "shape",
    [
        [(30, 38), (20, 50), (34, 72)],  # all on one side
        [(30, 38), (65, 38), (20, 60)],  # one without a counterpart
        [(30, 38), (65, 38), (65, 39)],  # two for one
        [(30, 38), (65, 58)],  # counterparts, but 20 px off
    ],
)
def test_one_sided_shapes_have_no_mirror_pairs(shape):
    assert mirror_pairs(np.array(shape, dtype=float), 96, {}) is None


def test_the_corners_of_one_eye_are_no_mirror_pair():
    assert mirror_pairs(np.array([(34.0, 38.0), (46.0, 38.0)]), 96, {}) is None


PROFILE = np.array([(30.0, 38.0), (38.0, 38.0), (20.0, 52.0), (29.0, 68.0), (34.0, 68.0)])  # all on one side


def test_names_tell_the_pairs_of_a_face_in_profile():
    names = ["Left_Eye", "Right_Eye", "nose", "mouth-l", "mouth-r"]
    assert mirror_permutation("auto", PROFILE, None, 96) is None
    assert mirror_permutation("auto", PROFILE, ["a", "b", "upright", "d", "left"], 96) is None
    assert mirror_permutation("auto", PROFILE, names, 96) == [1, 0, 2, 4, 3]
    assert mirror_permutation("off", PROFILE, names, 96) is None


def test_what_names_leave_open_is_found_by_reflection():
    """Of the points without a side in their names none is taken for its own mirror image because of the others."""
    names = ["lefteye", "righteye", "nose", "corner_1", "corner_2"]
    assert mirror_permutation("auto", FIVE.numpy(), names, 96) == [1, 0, 2, 4, 3]
    assert mirror_permutation("auto", PROFILE, names, 96) is None
    on_the_axis = np.array([(30.0, 38.0), (65.0, 38.0), (47.0, 52.0), (48.0, 80.0)])
    assert mirror_permutation("auto", on_the_axis, ["leftEye", "rightEye", "nose", "chin"], 96) == [1, 0, 2, 3]


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["left_eye_right_corner", "right_eye_left_corner"], {0: 1, 1: 0}),
        (["EyeL", "EyeR"], {}),  # no l or r on its own
        (["eye.L", "eye.R", "nose"], {0: 1, 1: 0}),
        (["left_eye", "nose", "left_mouth", "right_mouth"], {2: 3, 3: 2}),  # an eye without the other
        (["nose", "lower_lip"], {}),
    ],
)
def test_left_right_pairs(names, pairs):
    assert left_right_pairs(names) == pairs


def test_named_pairs():
    names = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
    wanted = [1, 0, 2, 4, 3]
    assert named_pairs([("left_eye", "right_eye"), ("right_mouth", "left_mouth")], names, 5) == wanted
    assert named_pairs([(0, 1), (4, 3)], None, 5) == wanted
    assert named_pairs([], None, 3) == [0, 1, 2]


@pytest.mark.parametrize(
    ("pair", "names", "word"),
    [
        (("left_eye", "right_ear"), ("left_eye", "right_eye"), "'right_ear'"),
        (("left_eye", "right_eye"), None, "no names"),
        ((0, 2), ("left_eye", "right_eye"), "landmark 2"),
        ((-1, 0), None, "landmark -1"),
    ],
)
def test_pairs_of_no_landmark_are_refused(pair, names, word):
    with pytest.raises(OptionError, match=word):
        named_pairs([pair], names, 2)
