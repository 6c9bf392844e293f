import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import scemae
from scemae import draw
from scemae.errors import ImageInputError, IncompatibleFeaturesError, LandmarkInputError, OptionError
from scemae.matching import _find_peaks, _parabola_offsets, similarity_maps
from scemae.model.cover_and_stride import cell_grid


def upsample_and_compare(descriptors, feature_map, size=96):
    upsampled = F.interpolate(feature_map[None], size=(size, size), mode="bilinear", align_corners=False)[0]
    return torch.einsum("kc,chw->khw", descriptors, F.normalize(upsampled, dim=0))


@pytest.mark.parametrize("expansion", [1, 2, 4])
def test_similarity_equals_the_naive_upsampling(expansion):
    feature_map = torch.randn(32, 12 * expansion, 12 * expansion)
    descriptors = F.normalize(torch.randn(5, 32), dim=1)
    found = similarity_maps(descriptors, feature_map, cell_grid(expansion), 96)
    assert (found - upsample_and_compare(descriptors, feature_map)).abs().max() < 1e-5


def test_similarity_at_expansion_8_is_that_of_cells_half_a_pixel_off():
    feature_map = torch.randn(16, 96, 96)
    descriptors = F.normalize(torch.randn(3, 16), dim=1)
    found = similarity_maps(descriptors, feature_map, cell_grid(8), 96)
    # Input pixel 10 lies between cells 9 (at 9.5) and 10 (at 10.5), in both directions.
    mixed = feature_map[:, 9:11, 9:11].mean((1, 2))
    assert torch.allclose(found[:, 10, 10], descriptors @ F.normalize(mixed, dim=0), atol=1e-5)


def test_similarity_of_real_features_equals_the_naive_one(faces):
    feature_map = faces.projected_map[0]
    descriptors = F.normalize(torch.randn(4, len(feature_map)), dim=1)
    found = similarity_maps(descriptors, feature_map, faces.grid, 96)
    assert (found - upsample_and_compare(descriptors, feature_map)).abs().max() < 1e-5


def clip_to_view(face, xy):
    """Points (K, 2) of a photo in input px, those outside the view (a chin, say) moved to its edge."""
    return face.to_input(xy[None])[0].clip(0, 95)


def test_a_face_matches_itself(faces, landmarks):
    matches = scemae.match_landmarks(faces[0], landmarks[0], faces[0], prior=0)
    assert np.abs(faces[0].to_input(matches.xy)[0] - clip_to_view(faces[0], landmarks[0])).max() < 1.5
    assert matches.scores.min() > 0.98


def test_matches_are_on_the_input_lattice_unless_subpixel(faces, landmarks):
    whole = scemae.match_landmarks(faces[0], landmarks[0], faces[1])
    fine = scemae.match_landmarks(faces[0], landmarks[0], faces[1], subpixel=True)
    lattice = faces[1].to_input(whole.xy)
    assert np.abs(lattice - lattice.round()).max() < 1e-6
    difference = np.abs(faces[1].to_input(fine.xy) - lattice)
    assert difference.max() <= 0.5 + 1e-9
    assert difference.max() > 0.01


def test_subpixel_finds_the_top_of_a_parabola():
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    hill = -((x - 4.3) ** 2) - 2 * (y - 3.8) ** 2
    offsets = _parabola_offsets(hill[None], torch.tensor([4]), torch.tensor([4]))
    assert torch.allclose(offsets, torch.tensor([[0.3, -0.2]], dtype=torch.float64), atol=1e-5)
    at_the_border = _parabola_offsets(hill[None, :, 4:], torch.tensor([4]), torch.tensor([0]))
    assert torch.allclose(at_the_border, torch.tensor([[0.0, -0.2]], dtype=torch.float64), atol=1e-5)


def test_matches_between_the_samples_land_near_the_annotations(faces, landmarks):
    matches = scemae.match_landmarks(faces[0], landmarks[0], faces[1])
    inter_ocular = np.linalg.norm(landmarks[1, 0] - landmarks[1, 1])
    assert np.median(np.linalg.norm(matches.xy[0] - landmarks[1], axis=1)) < 0.12 * inter_ocular


def test_names_are_kept(faces, samples):
    matches = scemae.match_landmarks(faces[0], samples[0].landmarks, faces)
    assert matches.names == tuple(samples[0].landmarks)
    assert matches.xy.shape == (2, 8, 2)
    assert len(matches[1:]) == 1
    assert matches[1].xy.shape == (1, 8, 2)
    assert matches.to_dict()[1]["landmarks"]["chin"]["score"] == matches.scores[1, 7]


@pytest.mark.parametrize("combine", ["mean", "best"])
def test_two_references_of_which_each_lacks_a_landmark(faces, landmarks, combine):
    partial = landmarks.copy()
    partial[0, 2], partial[1, 3] = np.nan, np.nan
    matches = scemae.match_landmarks(faces, partial, faces[1], combine=combine)
    assert np.isfinite(matches.xy).all()
    # Landmark 2 is known on the target itself only, so it is found where it was annotated.
    assert np.abs(matches.xy[0, 2] - landmarks[1, 2]).max() < 1.5 * faces.faces[1].crop.scale


@pytest.mark.parametrize("combine", ["mean", "best"])
def test_a_reference_that_lacks_a_landmark_does_not_count_for_it(faces, landmarks, combine):
    inside = landmarks[:, :7].copy()  # the chin is below the aligned view
    alone = scemae.match_landmarks(faces[0], inside[0], faces, prior=0)
    inside[1] = np.nan
    both = scemae.match_landmarks(faces, inside, faces, prior=0, combine=combine)
    assert np.array_equal(both.xy, alone.xy)
    assert np.allclose(both.scores, alone.scores, atol=1e-6)


def test_matches_can_be_matched_again(faces, landmarks):
    found = scemae.match_landmarks(faces[0], landmarks[0], faces[1])
    for again in (found, found.to_dict()[0]["landmarks"]):
        back = scemae.match_landmarks(faces[1], again, faces[1], prior=0)
        assert np.abs(back.xy - found.xy).max() < 2 * faces.faces[1].crop.scale


def test_a_face_can_be_kept_without_the_model(faces):
    kept = pickle.dumps(faces[0])
    held = faces.backbone_map[0].nbytes + faces.faces[0].patch.pixels.nbytes
    assert len(kept) < faces.backbone_map.nbytes + held + 200_000  # the model has 21 million
    assert torch.equal(pickle.loads(kept).projected_map, faces[0].projected_map)


def test_both_maps_weigh_the_same_where_the_projector_is_a_softmax(faces):
    backbone, projected = faces.backbone_map, faces.projected_map
    assert torch.equal(faces.map("both"), torch.cat([backbone, projected], dim=1))
    both = replace(faces, config=replace(faces.config, projector_mode="spatial_softmax")).map("both")
    width = backbone.shape[1]
    for part, whole in ((both[:, :width], backbone), (both[:, width:], projected)):
        torch.testing.assert_close(part.norm(dim=1), torch.ones(2, 24, 24))
        assert (torch.cosine_similarity(part, whole, dim=1) > 0.999).all()


def test_users_can_train_heads_of_their_own_on_the_maps(model, samples):
    [part] = scemae.iter_features(model, samples[0].path, boxes=samples[0].box)
    for use in ("backbone", "projected"):
        features = part.map(use)
        head = torch.nn.Conv2d(features.shape[1], 1, 1)
        head(features).sum().backward()
        assert head.weight.grad.abs().max() > 0


def test_best_takes_the_reference_that_is_the_target(faces, landmarks):
    inside = landmarks[:, :7]  # the chin is below the aligned view
    matches = scemae.match_landmarks(faces, inside, faces[1], combine="best", prior=0)
    assert np.abs(matches.xy[0] - inside[1]).max() < 1.5 * faces.faces[1].crop.scale


def test_similarities_are_at_most_one_and_places_stay():
    """Faults A12: rounding led to 1.0000007, of which arccos is nan. Clamped before the choice, places would tie."""
    beyond = torch.full((1, 1, 9, 9), -1.0000004)
    beyond[..., 2, 2], beyond[..., 5, 3] = 1.0000002, 1.0000007
    place, score, kept = _find_peaks(beyond, np.zeros((1, 1, 2)), 0.0, False)
    assert place.tolist() == [[3, 5]]
    assert (score.tolist(), kept.min(), kept.max()) == ([1], -1, 1)


def test_a_strong_prior_keeps_the_place_and_not_the_score(faces, landmarks):
    tight = scemae.match_landmarks(faces[0], landmarks[0], faces[1], prior=0.1, keep_similarity=True)
    places = faces[1].to_input(tight.xy)[0]
    assert np.abs(places - clip_to_view(faces[0], landmarks[0])).max() <= 0.5 + 1e-6
    columns, rows = places.round().astype(int).T
    assert np.allclose(tight.scores[0], tight.similarity[0, range(8), rows, columns])


@pytest.mark.parametrize(
    ("points", "options", "error", "message"),
    [
        pytest.param({"nose": (900, 10)}, {}, LandmarkInputError, r"nose of .* at \(900, 10\), outside its 512 x 600",
                     id="outside the image"),
        pytest.param({"corner": (1, 1)}, {}, LandmarkInputError, "outside the square", id="outside the crop"),
        pytest.param({"nose": (np.nan, 10)}, {}, LandmarkInputError, "outside", id="nan"),
        pytest.param({"nose": ("a", 10)}, {}, LandmarkInputError, "cannot be read as numbers", id="text"),
        pytest.param(np.ones(8), {}, LandmarkInputError, r"shape \(8,\)", id="one axis"),
        pytest.param({"eye": (220, 187)}, {"use": "last"}, OptionError, "use is 'last'", id="use"),
        pytest.param({"eye": (220, 187)}, {"combine": "all"}, OptionError, "combine is 'all'", id="combine"),
        pytest.param({"eye": (220, 187)}, {"prior": -1}, OptionError, "prior is -1", id="prior"),
    ],
)  # fmt: skip
def test_bad_landmarks_and_options_are_refused(faces, points, options, error, message):
    with pytest.raises(error, match=message):
        scemae.match_landmarks(faces[0], points, faces[1], **options)


def test_landmarks_of_another_number_of_faces_are_refused(faces, landmarks):
    with pytest.raises(LandmarkInputError, match=r"landmarks are for 2 faces, but there are 1"):
        scemae.match_landmarks(faces[0], landmarks, faces[1])


def test_targets_that_are_no_features_of_faces_are_refused(faces, landmarks):
    with pytest.raises(ImageInputError, match="targets is a list; wanted FaceFeatures"):
        scemae.match_landmarks(faces[0], landmarks[0], [faces[1]])
    with pytest.raises(ImageInputError, match="targets has no faces"):
        scemae.match_landmarks(faces[0], landmarks[0], faces[:0])


def test_faces_that_are_not_aligned_match_only_their_like_and_without_prior(faces, landmarks, model, samples):
    fixed = scemae.extract_features(model, samples[1].path, boxes=samples[1].box, align=False)
    with pytest.raises(IncompatibleFeaturesError, match="not aligned"):
        scemae.match_landmarks(faces[0], landmarks[0], fixed)
    with pytest.raises(OptionError, match="prior needs aligned faces"):
        scemae.match_landmarks(fixed, landmarks[1], fixed, prior=20)


def test_drawn_matches_show_the_faces_side_by_side(faces, landmarks):
    assert scemae.match_landmarks(faces[0], landmarks[0], faces).draw().width > 2 * 384


def test_drawn_features_have_eight_faces_in_a_row(faces):
    assert faces.draw("projected").size == faces.draw().size
    across = faces[[0] * 8].draw().width
    assert (faces[[0] * 9].draw().width, faces[[0] * 3].draw().width < across) == (across, True)


def test_a_similarity_map_is_drawn_by_name_or_number(faces, landmarks, samples):
    matches = scemae.match_landmarks(faces[0], samples[0].landmarks, faces, keep_similarity=True)
    assert matches.draw_similarity("chin").height >= 384
    by_number = [matches.draw_similarity(k).tobytes() for k in (0, np.int64(0))]
    assert by_number == [matches.draw_similarity("left_eye").tobytes()] * 2
    for landmark in ("ear", 8, -1):
        with pytest.raises(OptionError, match=f"no landmark {landmark!r}; there are left_eye"):
            matches.draw_similarity(landmark)
    with pytest.raises(OptionError, match="keep_similarity"):
        scemae.match_landmarks(faces[0], landmarks[0], faces).draw_similarity(0)


def test_captions_are_file_names(faces, samples, monkeypatch):
    captions, grid = [], draw.grid
    monkeypatch.setattr(draw, "grid", lambda panels, texts: captions.extend(texts) or grid(panels, texts))
    matches = scemae.match_landmarks(faces[0], samples[0].landmarks, faces[1], keep_similarity=True)
    matches.draw_similarity("left_eye")
    matches.reference.draw()
    assert captions == ["grace_hopper.jpg: left_eye", f"astronaut.jpg: {matches.scores[0, 0]:.2f}", "grace_hopper.jpg"]
