import copy
import functools
import io
import warnings
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import load_small_model

import scemae
import scemae.images as images_module
from scemae.cli.main import build_parser, main
from scemae.detector.heatmap import HeatmapHead
from scemae.errors import BoxInputError, ImageInputError, OptionError
from scemae.extraction import features_through_crops
from scemae.geometry import sample_view
from scemae.samples import sample_faces

PATH, BOX = sample_faces()[0].path, sample_faces()[0].box


@pytest.mark.slow
def test_all_kinds_of_input_give_the_same_features(model, samples):
    sample = samples[1]
    picture = Image.open(sample.path).convert("RGB")
    array = np.asarray(picture)
    buffer = io.BytesIO(sample.path.read_bytes())
    kinds = [sample.path, str(sample.path), sample.path.read_bytes(), buffer, picture, array, array / np.float64(255)]
    kinds += [torch.from_numpy(array.copy()).permute(2, 0, 1)]
    features = scemae.extract_features(model, (kind for kind in kinds), boxes=[sample.box] * len(kinds), expansion=1)
    assert len(features) == len(kinds)
    assert (features.backbone_map - features.backbone_map[:1]).abs().max() < 1e-3
    assert features.faces[0].source == str(sample.path)
    assert features.faces[6].source == "image 6"


@pytest.mark.slow
def test_batches_and_streams_change_nothing(model, samples):
    sources = [s.path for s in samples] * 2
    boxes = [s.box for s in samples] * 2
    whole = scemae.extract_features(model, sources, boxes=boxes, expansion=1)
    single = scemae.extract_features(model, sources, boxes=boxes, expansion=1, batch_size=1)
    assert (whole.backbone_map - single.backbone_map).abs().max() < 0.05  # rounding, through nine steps
    drawn = []

    def stream():
        for source in sources:
            drawn.append(source)
            yield source

    parts = scemae.iter_features(model, stream(), boxes=iter(boxes), expansion=1, batch_size=1)
    assert len(next(parts)) == 1
    assert len(drawn) == 1  # nothing is read ahead of its batch
    assert sum(len(part) for part in parts) == 3


def test_features_are_values(faces):
    assert len(faces[0]) == len(faces[-1]) == len(faces[:1]) == len(faces[[1]]) == 1
    assert torch.equal(faces[1].backbone_map, faces.backbone_map[1:])
    assert [part.faces[0].source for part in faces] == [face.source for face in faces.faces]
    joined = scemae.FaceFeatures.concatenate(list(faces))
    assert torch.equal(joined.backbone_map, faces.backbone_map)
    assert faces.map("both").shape[1] == 192 + faces.config.projector_dim
    assert len(faces[np.array([True, False])]) == 1
    with pytest.raises(IndexError):
        faces[2]
    assert "2 faces" in repr(faces)


def test_the_fixed_crop_is_the_protocols(model, samples):
    """align=False, no box: resize to 136 and crop the central 96, to the pixel."""
    picture = Image.open(samples[1].path).convert("RGB").crop((150, 50, 300, 200))
    face = scemae.extract_features(model, picture, align=False, expansion=1).faces[0]
    expected = np.asarray(picture.resize((136, 136), Image.Resampling.BILINEAR))[20:116, 20:116]
    view = (sample_view(face.patch, face.crop) * 255).permute(1, 2, 0).numpy()
    assert np.abs(view - expected).max() <= 1.0


def test_reflected_margin_never_looks_outside_the_view(model):
    """Changing pixels beyond the 96 changes the features with margin="context" and not with "reflect"."""
    inner = np.random.default_rng(0).integers(0, 255, (136, 136, 3), dtype=np.uint8)
    outer = inner.copy()
    outer[: 20 - 1] = 0  # up to one pixel from the 96
    kinds = {
        margin: scemae.extract_features(model, [inner, outer], align=False, expansion=2, margin=margin).backbone_map
        for margin in ("context", "reflect")
    }
    assert (kinds["reflect"][0] - kinds["reflect"][1]).abs().max() < 1e-4
    assert (kinds["context"][0] - kinds["context"][1]).abs().max() > 1e-2


def test_expansion_interleaves_the_maps_of_shifted_views(model):
    views = torch.randn(1, 3, 104, 104)
    finer = model(views, 2)
    assert torch.allclose(finer[..., 0::2, 1::2], model.backbone(views[..., 2:98, 6:102]), atol=1e-4)


def test_mirrored_features_are_those_of_the_mirrored_picture(model, samples):
    sample = samples[1]
    picture = Image.open(sample.path).convert("RGB")
    x0, y0, x1, y1 = sample.box
    flipped_box = (picture.width - x1, y0, picture.width - x0, y1)
    original = scemae.extract_features(model, picture, boxes=sample.box, align=False)
    flipped = scemae.extract_features(
        model, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), boxes=flipped_box, align=False
    )
    mirrored = features_through_crops(model, original, [face.crop.mirror() for face in original.faces])
    assert (mirrored.backbone_map - flipped.backbone_map).abs().max() < 0.1
    assert (mirrored.backbone_map - original.backbone_map).abs().max() > 1
    point = np.array([[[x0 + 10.0, y0 + 20.0]]])
    assert mirrored.to_input(point)[0, 0, 0] == pytest.approx(95 - original.to_input(point)[0, 0, 0])


def test_a_view_that_leaves_its_patch_has_it_cut_anew(model, samples):
    """A box that is far too small: the aligned view needs more of the photo than the first patch holds."""
    sample = samples[0]
    x0, y0, x1, y1 = sample.box
    small = (x0 + 50, y0 + 50, x1 - 50, y1 - 50)
    face = scemae.extract_features(model, sample.path, boxes=small, expansion=1).faces[0]
    assert face.patch.serves(face.crop.pad(model.view_margin))


@pytest.mark.parametrize("box", [None, (0, 0, 512, 512)])
def test_a_list_of_one_box_is_the_box_of_one_image(model, samples, box):
    wanted = scemae.extract_features(model, samples[1].path, boxes=box, align=False, expansion=1)
    for given in ([box], iter([box])):
        found = scemae.extract_features(model, samples[1].path, boxes=given, align=False, expansion=1)
        assert torch.equal(found.backbone_map, wanted.backbone_map)


def test_features_do_not_follow_their_model_to_another_device(model, samples):
    moving = copy.deepcopy(model)
    features = scemae.extract_features(moving, samples[1].path, boxes=samples[1].box, align=False, expansion=1)
    wanted = features.projected_map
    moving.to("meta")
    assert torch.equal(features.projected_map, wanted)


@pytest.mark.slow
def test_eight_threads_give_the_bytes_of_one(model, samples):
    from concurrent.futures import ThreadPoolExecutor

    def run(_):
        return scemae.extract_features(model, samples[1].path, boxes=samples[1].box, expansion=1).backbone_map

    with ThreadPoolExecutor(8) as pool:
        maps = list(pool.map(run, range(8)))
    assert all(torch.allclose(found, maps[0], atol=1e-4) for found in maps)


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        pytest.param([], {}, ImageInputError, "images is empty", id="no image"),
        pytest.param(3, {}, ImageInputError, "images is a int", id="not an image"),
        pytest.param([PATH, PATH], {"boxes": [BOX]}, BoxInputError, "1 boxes for 2 images", id="too few boxes"),
        pytest.param(iter([PATH]), {"boxes": iter([])}, BoxInputError, "no box for", id="too few streamed boxes"),
        pytest.param(iter([PATH]), {"boxes": iter([BOX] * 2)}, BoxInputError, "more boxes", id="too many boxes"),
        pytest.param(PATH, {"boxes": [1, 2, 3]}, BoxInputError, "wanted four numbers", id="three numbers"),
        pytest.param(PATH, {"expansion": 3}, OptionError, "expansion is 3", id="expansion"),
        pytest.param(PATH, {"margin": "zero"}, OptionError, "margin is 'zero'", id="margin"),
        pytest.param(PATH, {"batch_size": 0}, OptionError, "batch_size is 0", id="batch size"),
        pytest.param(PATH, {"batch_size": None}, OptionError, "batch_size is None", id="faults D: no batch size"),
        pytest.param(PATH, {"expansion": 2.0}, OptionError, "expansion is 2.0", id="faults D: float expansion"),
        pytest.param(PATH, {"expansion": True}, OptionError, "expansion is True", id="faults D: yes to expansion"),
    ],
)
def test_bad_arguments_of_extract_features_are_refused(model, images, options, error, message):
    with pytest.raises(error, match=message):
        scemae.extract_features(model, images, **{"align": False} | options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("scemae-tiny", r"model is 'scemae-tiny'.*pass scemae\.load_model\('scemae-tiny'\)"),
        (PATH, r"pass scemae\.load_model\("),
        ([PATH], "model is a list; wanted what scemae.load_model returns"),
        (None, "model is a NoneType"),
    ],
)
def test_what_is_no_model_is_named(given, message):
    """Faults D: 'str' has no 'aligner'."""
    for call in (scemae.extract_features, scemae.iter_features):
        with pytest.raises(OptionError, match=message):
            call(given, PATH)


@pytest.mark.parametrize("align", [False, True])
def test_a_face_of_one_colour_is_warned_of(two_block_model, align):
    """Faults A4: what has turned black or white on the way."""
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    extract = functools.partial(scemae.extract_features, two_block_model, align=align, expansion=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "No face was found")
        extract(pixels, boxes=(50, 50, 150, 150))
    pixels[50:150, 50:150] = (200, 10, 30)
    with pytest.warns(UserWarning, match="face in image 0 is of one colour"):
        extract(pixels, boxes=(50, 50, 150, 150))
    with pytest.warns(UserWarning, match="of one colour"):
        extract(pixels // 255)  # 0 and 1 of 255: what floats become that are cast to uint8


@pytest.fixture
def photos_alive(monkeypatch):
    """A list of how many photos were alive whenever one had been read."""
    photos, counts, read = [], [], images_module.read_photo

    def count(item, index):
        photo = read(item, index)
        photos.append(weakref.ref(photo))
        counts.append(sum(reference() is not None for reference in photos))
        return photo

    monkeypatch.setattr(images_module, "read_photo", count)
    return counts


@pytest.mark.parametrize(
    ("align", "held_pixels", "most"),
    [
        pytest.param(False, 1e9, 1, id="not aligned"),
        pytest.param(True, 1e9, 4, id="small"),
        pytest.param(True, 2 * 512 * 512, 2, id="large"),
        pytest.param(True, 1, 1, id="huge"),
    ],
)
def test_photos_are_let_go(two_block_model, samples, monkeypatch, photos_alive, align, held_pixels, most):
    """Faults B3: two batches of photos were in memory; now as many as alignment may still need."""
    monkeypatch.setattr("scemae.extraction.HELD_PIXELS", held_pixels)
    extract = functools.partial(scemae.iter_features, two_block_model, align=align, expansion=1, batch_size=4)
    parts = list(extract([samples[1].path] * 12, boxes=[samples[1].box] * 12))
    assert [len(part) for part in parts] == [4, 4, 4]
    assert max(photos_alive) == most
    maps = scemae.FaceFeatures.concatenate(parts).backbone_map
    assert (maps - maps[:1]).abs().max() < 1e-3


@pytest.mark.parametrize("command", [["features", "--out", "f.safetensors"], ["match", "--point", "200,200"]])
def test_batch_size_on_the_command_line(command, two_block_folder, photos_alive, tmp_path, monkeypatch, capsys):
    """Faults B3."""
    monkeypatch.chdir(tmp_path)
    command = [*command, "--model", f"local-dir:{two_block_folder}", "--expansion", "1", "--batch-size"]
    assert main([*command, "0", *[str(PATH)] * 2]) == 2
    assert capsys.readouterr().err == "scemae: batch_size is 0; it must be at least 1.\n"
    assert main([*command, "1", *[str(PATH)] * 2]) == 0
    assert max(photos_alive) == 1


@pytest.mark.slow
def test_batch_size_of_predict(two_block_model, samples, photos_alive):
    """Faults B3."""
    paths, boxes = [sample.path for sample in samples], [sample.box for sample in samples]
    regressor = scemae.fit_regressor(two_block_model, paths, [sample.landmarks for sample in samples], boxes=boxes)
    photos_alive.clear()
    regressor.predict(paths, boxes=boxes, batch_size=1)
    assert max(photos_alive) == 1
    with pytest.raises(OptionError, match="batch_size is None"):
        regressor.predict(paths, boxes=boxes, batch_size=None)
    args = build_parser([]).parse_args(["predict", "d.safetensors", "face.jpg", "--batch-size", "3"])
    assert args.batch_size == 3


def test_features_are_not_images(model, faces):
    for call in (scemae.extract_features, scemae.iter_features):
        with pytest.raises(ImageInputError, match="FaceFeatures already"):
            call(model, faces)


def test_an_unknown_use_is_refused(faces):
    with pytest.raises(OptionError, match="use is 'projector'"):
        faces.map("projector")


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize("head", ["cascade", HeatmapHead(heatmaps=2, steps=20)], ids=["cascade", "heatmap"])
@pytest.mark.parametrize(("input_size", "patch_size"), [(64, 8), (64, 16), (48, 4)])
def test_a_model_of_another_size_works_end_to_end(samples, tmp_path, input_size, patch_size, head):
    model = load_small_model(tmp_path / "model", input_size, patch_size)
    paths, boxes = [sample.path for sample in samples], [sample.box for sample in samples]
    features = scemae.extract_features(model, paths, boxes=boxes, expansion=4)
    cells = input_size // patch_size * 4
    assert features.backbone_map.shape == (2, 32, cells, cells)
    assert [face.crop.size for face in features.faces] == [input_size] * 2
    assert ((features.scores > 0.5) & (features.scores < 1)).all()
    features.draw()

    pixels = np.array([[(5.0, 7.0), (20.0, 31.0), (40.0, 12.0)]])  # whole input pixels are matched exactly
    points = features[0].to_image(pixels)[0]
    matches = scemae.match_landmarks(features[0], points, features, use="both", keep_similarity=True)
    assert matches.similarity.shape == (2, 3, input_size, input_size)
    assert np.allclose(matches.xy[0], points)
    assert np.allclose(matches.scores[0], 1, atol=1e-4)
    matches.draw_similarity(0)

    landmarks = [sample.landmarks for sample in samples]
    regressor = scemae.fit_regressor(model, features, landmarks, head=head, mirror="off")
    found = regressor.predict(features)
    regressor.save(tmp_path / "detector.safetensors")
    loaded = scemae.LandmarkRegressor.load(tmp_path / "detector.safetensors", model)
    assert np.array_equal(loaded.predict(paths, boxes=boxes).xy, found.xy)
    places = features.to_input(found.xy)
    assert ((places > 0) & (places < input_size - 1)).mean() > 0.8


@pytest.fixture
def bad_images(samples, tmp_path):
    """Five images and their boxes: the second cannot be read, the fourth has an invalid box."""
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    images = [samples[0].path, tmp_path / "bad.png", samples[1].path, samples[0].path, samples[1].path]
    return images, [samples[0].box, samples[0].box, samples[1].box, (9, 9, 0, 0), samples[1].box]


SKIPPED = r"(bad\.png is not an image|is inverted or empty).* It is left out\."


def test_bad_images_are_skipped(two_block_model, bad_images, samples):
    """faults B2: one unreadable file among many lost all."""
    images, boxes = bad_images
    good = [str(samples[i].path) for i in (0, 1, 1)]
    with pytest.warns(UserWarning, match=SKIPPED) as caught:
        features = scemae.extract_features(two_block_model, images, boxes=boxes, on_error="skip")
    assert len(caught) == 2
    assert [face.source for face in features.faces] == good
    wanted = scemae.extract_features(two_block_model, good, boxes=[boxes[i] for i in (0, 2, 4)])
    assert torch.equal(features.backbone_map, wanted.backbone_map)

    parts = scemae.iter_features(two_block_model, iter(images), boxes=iter(boxes), on_error="skip", batch_size=2)
    with pytest.warns(UserWarning, match=SKIPPED):
        sources = [[face.source for face in part.faces] for part in parts]
    assert sources == [good[:2], good[2:]]

    regressor = scemae.fit_regressor(two_block_model, features[:2], [list(s.landmarks.values()) for s in samples])
    with pytest.warns(UserWarning, match=SKIPPED):
        found = regressor.predict(images, boxes=boxes, on_error="skip")
    assert [face.source for face in found.faces] == good
    with pytest.raises(ImageInputError, match=r"bad\.png"):
        regressor.predict(images, boxes=boxes)


def test_skipping_ends_where_nothing_is_left(two_block_model, bad_images, recwarn):
    images, boxes = ([items[i] for i in (1, 3)] for items in bad_images)
    for extract in (scemae.extract_features, lambda *args, **options: list(scemae.iter_features(*args, **options))):
        with pytest.raises(ImageInputError, match=r"None of the 2 images can be used. The first: .*bad\.png"):
            extract(two_block_model, images, boxes=boxes, on_error="skip")
    assert not recwarn
    with pytest.raises(OptionError, match="on_error is 'ignore'"):
        scemae.extract_features(two_block_model, images, on_error="ignore")
    with pytest.raises(BoxInputError, match="1 boxes for 2 images"):
        scemae.extract_features(two_block_model, images, boxes=boxes[:1], on_error="skip")
