"""Bit flips and cuts of every kind of file that scemae reads: each ends in the right result or in a ScemaeError.

`pytest -n 0 -m "" -s tests/fuzz` prints the counts of docs/reliability.md.
"""

import random
import shutil
import warnings
from collections import Counter, defaultdict

import numpy as np
import pytest
from damage import cut_end, flip_random_bit, rewrite_header
from PIL import Image
from training_runs import Toy, equal_states, fixed_options, pack_noise

import scemae
from scemae.detector.cascade import CascadeHead
from scemae.errors import ScemaeError
from scemae.images import iter_photos
from scemae.tables import read_annotations, read_boxes
from scemae.training.engine import train
from scemae.training.pack import INDEX, SQUARES, Pack
from scemae.training.run_folder import CHECKPOINT, LOG, RunFolder
from scemae.weights.model_folder import CARD, CONFIG, WEIGHTS
from scemae.weights.zoo import packaged_folder

pytestmark = pytest.mark.slow
DAMAGES = {"bit flips": flip_random_bit, "cuts": cut_end}
RESULTS = ("refused", "warned", "right", "not noticed")


@pytest.fixture(scope="module")
def counts():
    """(kind of file, kind of damage) -> how often each of RESULTS; printed at the end."""
    counts = defaultdict(Counter)
    yield counts
    print(f"\n| file | damage | tried | {' | '.join(RESULTS)} |\n|---|---|---|---|---|---|---|")
    for (kind, damage), counted in counts.items():
        numbers = " | ".join(str(counted[result]) for result in RESULTS)
        print(f"| {kind} | {damage} | {counted.total()} | {numbers} |")


@pytest.fixture
def try_damage(counts):
    """Damage a file, each time anew, and read it: `judge` says of what is read whether it is right.

    Returns the counts of each damage. Whatever is raised that is no ScemaeError fails the test.
    """

    def try_all(kind, path, read, judge, flips, cuts):
        content = path.read_bytes()
        assert judge(read())
        rng = random.Random(kind)
        for damage, tries in (("bit flips", flips), ("cuts", cuts)):
            for _ in range(tries):
                path.write_bytes(DAMAGES[damage](content, rng))
                try:
                    with warnings.catch_warnings(record=True) as warned:
                        right = judge(read())
                    result = "right" if right else "warned" if warned else "not noticed"
                except ScemaeError as error:
                    message, result = str(error), "refused"
                    assert "\n" not in message
                counts[kind, damage][result] += 1
        path.write_bytes(content)
        return counts[kind, "bit flips"], counts[kind, "cuts"]

    return try_all


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp"])
def test_pictures(tmp_path, samples, try_damage, ending):
    """The format decides: PNG has checksums, others are as they then say."""
    path = tmp_path / f"face.{ending}"
    with Image.open(samples[0].path) as image:
        image.resize((64, 64)).save(path)
    whole = np.asarray(next(iter_photos(path)).image)

    def is_same(photo):
        assert photo.image.mode == "RGB"
        return np.array_equal(np.asarray(photo.image), whole)

    flips, cuts = try_damage(f"picture.{ending}", path, lambda: next(iter_photos(path)), is_same, 200, 100)
    assert not cuts["not noticed"]
    assert ending != "png" or not flips["not noticed"]


@pytest.fixture(scope="module")
def detector(two_block_model, samples):
    paths, boxes, landmarks = zip(*((s.path, s.box, s.landmarks) for s in samples), strict=True)
    options = {"expansion": 1, "align": False, "mirror": "off", "head": CascadeHead(sigmas=(4.0, 2.0), samples=2)}
    return scemae.fit_regressor(two_block_model, paths, landmarks, boxes=boxes, **options)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.filterwarnings("ignore:.*carries no checksum")
def test_detectors(tmp_path, two_block_model, samples, detector, try_damage, sealed):
    path = tmp_path / "detector.safetensors"
    detector.save(path)
    kind = "detector" if sealed else "detector of 0.1.0"
    if not sealed:
        rewrite_header(path, lambda header: None, sealed=False)
    state = detector.head_.state()

    def read():
        return scemae.LandmarkRegressor.load(path, two_block_model)

    def is_same(loaded):
        return equal_states(loaded.head_.state(), state) and equal_states(vars(loaded.reader_), vars(detector.reader_))

    flips, cuts = try_damage(kind, path, read, is_same, 300, 60)
    assert cuts["refused"] == 60
    assert not sealed or flips["refused"] == 300


@pytest.mark.parametrize("source", ["released", "own"])
@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, CARD])
@pytest.mark.parametrize("card", [True, False])
def test_model_folders(tmp_path, two_block_folder, try_damage, source, name, card):
    if name == CARD and not card:
        return
    origin = packaged_folder("scemae-tiny") if source == "released" else two_block_folder
    ignored = shutil.ignore_patterns() if card else shutil.ignore_patterns(CARD)
    folder = shutil.copytree(origin, tmp_path / "model", ignore=ignored)
    whole = scemae.load_model(origin)
    state = whole.state_dict()

    def is_same(model):
        return model.config == whole.config and equal_states(dict(model.state_dict()), dict(state))

    kind = f"{source} model, {name}{'' if card or name == CARD else ' without a card'}"
    tries = (10, 5) if (source, name) == ("released", CARD) else (40, 10)  # half a second each
    flips, cuts = try_damage(kind, folder / name, lambda: scemae.load_model(folder), is_same, *tries)
    if name != CONFIG or card:  # a configuration alone is read as what it then says
        assert not flips["not noticed"] + cuts["not noticed"]


@pytest.mark.parametrize("name", [CHECKPOINT, LOG])
def test_runs(tmp_path, try_damage, name):
    train(Toy(), tmp_path / "run", fixed_options())
    folder = RunFolder(tmp_path / "run")
    read = folder.read_checkpoint if name == CHECKPOINT else folder.read_log
    whole = read()

    def is_same(found):
        return equal_states(found, whole) or (name == LOG and found == whole[: len(found)])  # its lines are a record

    flips, cuts = try_damage(name, folder.path / name, read, is_same, 60, 60)
    assert name == LOG or flips["refused"] == cuts["refused"] == 60


@pytest.mark.parametrize("name", [INDEX, SQUARES])
def test_packs(tmp_path, try_damage, name):
    """Pixels and names have no checksum: a flipped bit is one number of one face, or a letter."""
    whole = pack_noise(tmp_path / "pack", 8)
    whole_squares = whole.squares.copy()  # they are mapped from the file that is damaged

    def is_same(pack):
        assert pack.squares.shape == whole_squares.shape
        assert (pack.squares != whole_squares).sum() <= 1
        index = (pack.names, pack.source, pack.skipped, pack.input_size)
        return np.array_equal(pack.squares, whole_squares) and index == (
            whole.names,
            whole.source,
            whole.skipped,
            whole.input_size,
        )

    _, cuts = try_damage(
        f"pack, {name}", tmp_path / "pack" / name, lambda: Pack.open(tmp_path / "pack"), is_same, 60, 60
    )
    assert cuts["refused"] == 60


@pytest.mark.parametrize("read", [read_annotations, read_boxes])
def test_tables(tmp_path, try_damage, read):
    """Tables have no checksum either: a digit may become another. Of a last line that is cut there is a warning."""
    path = tmp_path / "table.csv"
    if read is read_boxes:
        rows = ["path,x0,y0,x1,y1", *(f"{n}.jpg,{n},{n + 1},{n + 50},{n + 60.5}" for n in range(20))]
    else:
        rows = ["path,name,x,y", *(f"{n // 2}.jpg,eye {n % 2},{n}.5,{n + 1}" for n in range(20))]
    path.write_text("\n".join(rows) + "\n")
    whole = read(path)
    _, cuts = try_damage(f"table, {read.__name__}", path, lambda: read(path), lambda found: found == whole, 200, 100)
    assert cuts["not noticed"] < 10  # those between two lines
