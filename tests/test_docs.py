"""Every block of code in README.md and docs/*.md runs, or it says why not, and its commands are at least parsed.

A block that cannot run here has `<!-- not run: REASON -->` in the line above it. Commands run in this process, in a
folder with the files that they name (`supplied`), and with `MORE` words where data or hours are missing.
"""

import csv
import re
import shlex
import shutil
import tomllib
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from doc_blocks import blocks_of, commands_of, parse_words
from PIL import Image

import scemae
import scemae.samples
from scemae.cli.main import TRAINING, main
from scemae.detector import augmentation
from scemae.detector.cascade import CascadeHead
from scemae.detector.heatmap import HeatmapHead
from scemae.export import formats
from scemae.model.config import BACKBONES, BackboneConfig
from scemae.weights import download_files, zoo
from scemae.weights.model_folder import CONFIG, WEIGHTS, file_sha256

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TINY = ROOT / "weights" / "scemae-tiny"

FEW = "--overwrite --held-out 3 --batch-size 4"
FAST = "--steps 2 --precision float32 --no-compile"
NARROW = "--widths 4,8 --squeezed 4 --hidden 8 --background-squares 16"
MORE = {  # command -> further words beside those in the document
    "boxes": "--overwrite",
    "data align": "--model local-dir:run/model",
    "data pack": "--overwrite",
    "demo": "--overwrite",
    "export": "--overwrite --faces 1 --tolerance 0.5",
    "fit": "--overwrite --no-align",
    "train align": f"{FEW} {FAST} {NARROW}",
    "train find": f"{FEW} {FAST} {NARROW} --finder-widths 4,4,8",
    "train discriminant": f"{FEW} --views 8 --projector-dim 8",
    "train register": f"{FEW} --reaches 2 --smoothings 1 --projector-dim 8 --components 8 --modes 8",
    "train stage1": f"{FAST} --overwrite --architecture test-narrow --batch-size 4",
    "train stage2": f"{FEW} {FAST} --projector-dim 8 --faces-together 2",
}

# An export takes as long as its graph is large: the cascade and the alignment are exported in test_export.py.
SMALL_HEAD = HeatmapHead(heatmaps=1, steps=1)

SLOW = {  # pages whose blocks take seconds
    "python": {"export", "learning-curve", "own-detector", "quickstart"},
    "bash": {"README", "export", "hub", "own-detector", "quickstart", "training"},
}


def check_extras(words):
    """`pip install ".[dev]"`: there are such extras."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extras in re.findall(r"\[([^]]+)\]", " ".join(words)):
        assert set(extras.split(",")) <= known.keys()


def check_command(words):
    """Parse a command that is not run: the words after `scemae`, wherever a launcher has it."""
    if words[0] == "pip":
        check_extras(words)
    elif "scemae" in words:
        parse_words(words[words.index("scemae") + 1 :])


def run_command(words, more, monkeypatch):
    program, *words = words
    if program == "pip":
        check_extras(words)
    elif program == "export":
        name, _, value = words[0].partition("=")
        monkeypatch.setenv(name, value.replace("$PWD", str(Path.cwd())))
    else:
        assert program == "scemae", f"{program} is no command that this test can run: say why not above the block"
        parse_words(words)  # as written
        name = " ".join(words[: 2 if words[0] in TRAINING else 1])
        smaller = more.get(name, "").split()
        for option, value in pairwise(smaller):  # whose values none may be given twice
            if option in words and not value.startswith("--"):
                del words[words.index(option) : words.index(option) + 2]
        assert main([*words, *smaller]) == 0, " ".join(words)


@pytest.fixture(scope="module")
def short_folder(aligning_in):
    """What stands in for scemae-tiny: its first block, aligning in one step; detectors have one stage, one copy."""
    init = CascadeHead.__init__

    def init_one_stage(self, sigmas=(1.0,), **params):
        init(self, sigmas=sigmas[-1:], **params)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CascadeHead, "__init__", init_one_stage)
        patch.setattr(augmentation, "_copy_count", lambda _faces: 1)
        patch.setitem(BACKBONES, "test-short", replace(BACKBONES["deit-tiny"], depth=1))
        yield aligning_in(1, architecture="test-short")


@pytest.fixture(scope="module")
def supplied(tmp_path_factory, short_folder, samples):
    """The files that documents name."""
    folder = tmp_path_factory.mktemp("supplies")
    pictures = {"reference.jpg": samples[0], "a.jpg": samples[1], "b.jpg": samples[0], "c.jpg": samples[1]}
    for name, sample in pictures.items():
        shutil.copy(sample.path, folder / name)
    points = [[name, *named, *xy] for name, face in pictures.items() for *named, xy in face.landmarks.items()]
    write_table(folder / "annotations.csv", ["path", "name", "x", "y"], points)
    write_table(folder / "boxes.csv", ["path", "x0", "y0", "x1", "y1"], [[n, *f.box] for n, f in pictures.items()])
    for name in ("group.jpg", "photos/portrait.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(samples[0].path, folder / name)
    (folder / "faces").mkdir()
    for number in range(8):
        face = samples[number % 2]
        x0, y0, x1, y1 = face.box
        margin = (x1 - x0) * 0.21  # the box is the central 96/136 of the picture
        around = (x0 - margin, y0 - margin, x1 + margin, y1 + margin)
        Image.open(face.path).crop(around).save(folder / "faces" / f"{number}.png")
    paths, landmarks, boxes = zip(*((face.path, face.landmarks, face.box) for face in samples), strict=True)
    model = scemae.load_model(short_folder)
    detector = scemae.fit_regressor(model, paths, landmarks, boxes=boxes, align=False, head=SMALL_HEAD)
    detector.save(folder / "detector.safetensors")
    shutil.copytree(TINY, folder / "run" / "model")
    return folder


def write_table(path, columns, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


@pytest.fixture(scope="module")
def exported_once():
    """The pages export the same detector: a file that agrees with what is exported is not written again."""
    written = defaultdict(list)

    def once(write, load):
        def write_or_copy(target, path):
            files = written[path.suffix, target.about["output"]]
            for file in files:
                path.write_bytes(file)
                if target.distance(load(path), 1) <= target.tolerance:
                    return
            write(target, path)
            files.append(path.read_bytes())

        return write_or_copy

    with pytest.MonkeyPatch.context() as patch:
        for suffix, chosen in formats.FORMATS.items():
            patch.setitem(formats.FORMATS, suffix, chosen._replace(write=once(chosen.write, chosen.load)))
        yield


@pytest.fixture
def here(page, exported_once, short_folder, tmp_path, monkeypatch):
    """The current folder, empty; scemae-tiny is its stand-in."""
    if page.stem == "export":
        unaligned = scemae.load_model(short_folder)
        unaligned.aligner = None
        monkeypatch.setattr(scemae, "load_model", lambda *_name: unaligned)
    if "scemae export" in page.read_text():
        monkeypatch.setattr(CascadeHead, "with_defaults", lambda aligned: SMALL_HEAD)
    sha256 = {name: file_sha256(short_folder / name) for name in (WEIGHTS, CONFIG)}
    monkeypatch.setitem(zoo.RELEASED, zoo.DEFAULT, replace(zoo.RELEASED[zoo.DEFAULT], sha256=sha256))
    for module in (zoo, download_files):
        monkeypatch.setattr(module, "packaged_folder", lambda _name: short_folder)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    if page.stem == "find":
        for name in ("group.jpg", "portrait.jpg"):
            shutil.copy(scemae.samples.sample_faces()[0].path, name)
    return folder


@pytest.fixture
def narrow_backbone(monkeypatch):
    """An architecture that trains in no time, with as many blocks as stage 2 asks for."""
    monkeypatch.setitem(BACKBONES, "test-narrow", BackboneConfig(width=32, heads=2, depth=4, params=0))


@pytest.fixture
def hub_with_repo(hub, reach, monkeypatch):
    """A Hub with a repository ORG/REPO, and what commands are told to reach it."""
    commit = hub.add("ORG/REPO", {path.name: path.read_bytes() for path in TINY.iterdir()})
    hub.repos["ORG/REPO"].tags["v1"] = commit
    monkeypatch.setenv("HF_TOKEN", hub.token)
    cache = f"--cache-dir {reach['cache_dir']}"
    return {"download": f"--endpoint {hub.url} {cache}", "verify": cache, "push": f"--yes --endpoint {hub.url}"}


def pages_with(language):
    pages = [page for page in PAGES if any(block.language == language for block in blocks_of(page.read_text()))]
    marks = {page: pytest.mark.slow if page.stem in SLOW[language] else () for page in pages}
    return pytest.mark.parametrize("page", [pytest.param(page, marks=marks[page], id=page.stem) for page in pages])


@pages_with("python")
def test_python_blocks_run(page, here):
    namespace = {"__name__": "__main__"}
    for block in blocks_of(page.read_text()):
        if block.language == "python":
            lines = "\n" * (block.line - 1) + block.code  # so that a traceback has the line of the page
            code = compile(lines, str(page), "exec")
            if block.reason is None:
                exec(code, namespace)


@pages_with("bash")
def test_bash_blocks_run(page, here, supplied, hub_with_repo, narrow_backbone, monkeypatch):
    shutil.copytree(supplied, here, dirs_exist_ok=True)
    for block in blocks_of(page.read_text()):
        if block.language == "bash":
            for words in commands_of(block.code):
                if block.reason is None:
                    run_command(words, MORE | hub_with_repo, monkeypatch)
                else:
                    check_command(words)


def test_the_table_of_models_is_that_of_the_library():
    lines = (ROOT / "docs" / "model-zoo.md").read_text().splitlines()
    rows = [
        f"| [`{info.name}`](../weights/{info.name}/README.md) | {info.config.architecture} "
        f"| {info.config.params / 1e6:.1f} M | {sum(info.files.values()) / 1e6:.0f} MB "
        f"| {'yes' if info.bundled else 'no'} | {info.config.license} | {info.config.training_data.split(',')[0]} |"
        for info in scemae.list_models()
    ]
    assert [line for line in lines if line.startswith("| [`")] == rows


# ---- the test itself


def test_a_block_that_is_not_run_needs_a_reason():
    run, skipped = blocks_of("```bash\na\n```\n<!-- not run: 8 GPUs -->\n```python\nb\n```\n")
    assert (run.reason, skipped.reason) == (None, " 8 GPUs ")
    assert (run.line, skipped.line) == (2, 6)
    with pytest.raises(AssertionError, match="reason is missing"):
        blocks_of("<!-- not run: -->\n```bash\na\n```\n")


@pytest.mark.parametrize("text", ["```sh\na\n```\n", "- a\n\n  ```bash\n  a\n  ```\n", "```bash title\na\n```\n"])
def test_a_block_in_another_spelling_is_refused(text):
    with pytest.raises(AssertionError, match="understood"):
        blocks_of(text)


def test_what_is_not_run_is_parsed(capsys):
    check_command(shlex.split("torchrun --nproc-per-node 2 -m scemae train stage1 --data pack --out run"))
    with pytest.raises(SystemExit):
        check_command(shlex.split("torchrun --nproc-per-node 2 -m scemae train stage1 --dater pack --out run"))
    assert "required: --data" in capsys.readouterr().err
    with pytest.raises(AssertionError):
        check_command(shlex.split('pip install "scemae[training]"'))


def test_a_command_that_fails_fails_the_test(monkeypatch, capsys):
    with pytest.raises(AssertionError, match="no-such-model"):
        run_command(["scemae", "info", "no-such-model"], {}, monkeypatch)
    with pytest.raises(AssertionError, match="say why not"):
        run_command(["accelerate", "launch"], {}, monkeypatch)
