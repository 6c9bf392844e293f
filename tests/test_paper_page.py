"""docs/paper.md: its code exists, its commands parse, its settings are those of the presets, its numbers are found."""

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from doc_blocks import FENCE, parse_words

from scemae.evaluation import paper_results
from scemae.training.run_config import STAGE1_PRESETS
from scemae.training.stage2_config import stage2_preset

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "paper.md").read_text()
PROSE = FENCE.sub("", PAGE)  # test_docs.py sees to the blocks of code
LINES = [line for line in PROSE.splitlines() if line.startswith("| ")]
TABLES = [[cell.strip() for cell in line[1:-1].split("|")] for line in LINES]
MAPPED = [row for row in TABLES if re.match(r"Abstract|Sec\.|Fig\.|Table|Supplementary", row[0])]
EQUATIONS, TABLE_NAMES = [f"Eq. {n}" for n in range(1, 8)], [f"Table {n}" for n in range(1, 5)]
SECTIONS = [f"Sec. {name}" for name in ("1", "2", "3.1", "3.2", "3.3", "4", "4.1", "4.2", "4.3", "5")]
FIGURES = [f"Fig. {n}" for n in range(1, 6)]
WORDS = ["MAE", "CARB", "LCR", "cover-and-stride", "attentive", "density peak clustering", "NME", "IOD", "soft-argmax"]
WORDS += ["hypercolumn", "projector", "temperature", "repellence", "t-SNE"]
CODE = re.compile(r"`(scemae/[\w/]+\.py)(?:: (\w+))?`")
COMMANDS = sorted(set(re.findall(r"`scemae ([a-z][^`]*)`", PROSE)))
GROUPS = ("train", "eval", "data")  # commands with commands of their own
LEFT_OUT = {"eval": "--data FOLDER --out OUT", "train": "--data PACK --out RUN"}  # as the page says
SETTINGS = [row for row in TABLES if row[0] in ("stage 1", "stage 2")]


def mentions(label, text):
    """Whether a text has a label such as Eq. 1, and not only Eq. 10 or Sec. 4.1 for Sec. 4."""
    return re.search(rf"\b{re.escape(label)}(?![\d]|\.\d)", text) is not None


@cache
def names_in(path):
    """The classes, functions, methods and constants that a file of the repository defines."""
    nodes = list(ast.walk(ast.parse((ROOT / path).read_text())))
    defined = {node.name for node in nodes if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    return defined | {
        target.id for node in nodes if isinstance(node, ast.Assign) for target in node.targets if hasattr(target, "id")
    }


@pytest.mark.parametrize("label", [*SECTIONS, *EQUATIONS, *TABLE_NAMES, *FIGURES])
def test_each_part_of_the_paper_has_a_row(label):
    assert any(mentions(label, row[0]) for row in MAPPED)


def test_each_row_has_a_verdict():
    assert all(len(row) == 4 and row[3] for row in MAPPED)


@pytest.mark.parametrize("label", [*EQUATIONS, *TABLE_NAMES, "Fig. 5"])
def test_the_code_names_the_part_of_the_paper(label):
    """grep -rn "Eq. 3" scemae leads to one of the files that the page names."""
    files = {path for row in MAPPED if mentions(label, row[0]) for path, _ in CODE.findall(row[1])}
    assert any(mentions(label, (ROOT / path).read_text()) for path in files - {"scemae/evaluation/paper_results.py"})


@pytest.mark.parametrize("word", WORDS)
def test_the_words_of_the_field_are_on_the_page(word):
    assert word in PAGE


@pytest.mark.parametrize(("path", "name"), sorted(set(CODE.findall(PROSE))))
def test_the_code_exists(path, name):
    assert not name or name in names_in(path)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_parse(command):
    words = shlex.split(command)
    if len(words) == 1 or (len(words) == 2 and words[0] in GROUPS):  # only named
        with pytest.raises(SystemExit) as end:
            parse_words([*words, "--help"])
        assert end.value.code == 0
        return
    words += LEFT_OUT.get(words[0], "").split()
    if words[0] == "train" and words[1] != "stage1":
        words += ["--model", "local-dir:RUN1/model"]
    parse_words(words)


def test_the_settings_are_those_of_the_presets():
    seen = 0
    presets = {"stage 1": STAGE1_PRESETS["paper"], "stage 2": stage2_preset("paper", "deit-tiny")}
    for stage, names, values, source in SETTINGS:
        fields = re.findall(r"`(\w+)`", names)
        wanted = ast.literal_eval("(" + re.sub(r"`(\S+?)`", r"'\1'", values) + ",)")
        assert tuple(getattr(presets[stage], name) for name in fields) == wanted
        assert source
        seen += len(fields)
    assert seen > 30


def test_the_numbers_are_measured_or_published():
    known = (ROOT / "docs" / "benchmarks.md").read_text() + Path(paper_results.__file__).read_text()
    numbers = re.findall(r"\b\d+\.\d+\b", PROSE.partition("## Numbers")[2].partition("## Differences")[0])
    assert len(numbers) > 15
    for number in numbers:
        assert re.search(rf"\b{re.escape(number.rstrip('0'))}0*\b", known), number


def test_each_difference_is_explained_and_referred_to():
    explained = set(re.findall(r"^### (D\d+)", PAGE, re.MULTILINE))
    assert explained == set(re.findall(r"\bD\d+\b", PROSE.partition("## Differences")[0]))
