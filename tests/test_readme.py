"""README.md as a package index shows it: absolute links that lead to files of this repository, and measured numbers."""

import re
import runpy
import sys
import tomllib
from pathlib import Path

import matplotlib
import pytest
import yaml

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
REPOSITORY = "https://github.com/scemae/scemae"
RAW = "https://raw.githubusercontent.com/scemae/scemae/main/"
LINKS = sorted(set(re.findall(r"\]\(([^)]+)\)", README) + re.findall(r'<img src="([^"]+)"', README)))
PICTURES = ["readme-faces.jpg", "readme-few-shot.png"]


def anchors_of(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_are_absolute():
    assert len(LINKS) > 20
    assert [link for link in LINKS if not link.startswith("https://")] == []


@pytest.mark.parametrize("link", [link for link in LINKS if link.startswith((REPOSITORY, RAW))])
def test_link_leads_to_a_file(link):
    path, _, anchor = link.partition("#")
    for prefix in (f"{REPOSITORY}/blob/main/", f"{REPOSITORY}/tree/main/", RAW, REPOSITORY):
        path = path.removeprefix(prefix)
    assert (ROOT / path).exists()
    assert not anchor or anchor in anchors_of(ROOT / (path or "README.md"))


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_shown(name):
    assert f"{RAW}docs/pictures/{name}" in LINKS


def test_errors_are_those_of_the_benchmarks():
    benchmarks = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    [counts] = re.findall(r"^\| annotated faces \| (1 .*) \|$", benchmarks, re.MULTILINE)
    [row] = re.findall(r"^\| cascade on .*?\| (.*) \|$", benchmarks, re.MULTILINE)
    errors = [cell.split(" ± ")[0] for cell in row.split(" | ")]
    measured = dict(zip(counts.split(" | "), errors, strict=True))
    assert f"{measured['1']} % of the inter-ocular distance with 1 annotated face" in README
    assert f"{measured['10']} % with 10, {measured['100']} % with 100" in README
    assert set(re.findall(r"\d+\.\d\d(?= %)", README)) <= set(errors)


def test_citation_and_urls_agree_with_the_readme():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    paper = citation["preferred-citation"]
    assert paper["title"] in README.replace("{", "").replace("}", "")
    assert all(f"{author['family-names']}, {author['given-names']}" in README for author in paper["authors"])
    assert f"pages     = {{{paper['start']}--{paper['end']}}}" in README
    assert citation["repository-code"] == urls["Homepage"] == REPOSITORY
    assert paper["url"] == urls["Paper"]
    assert {paper["url"], urls["Documentation"], urls["Changelog"]} <= set(LINKS)


@pytest.mark.slow
def test_pictures_are_made_again(tmp_path, monkeypatch):
    script = ROOT / "examples" / "readme_pictures.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path)])
    with matplotlib.rc_context({"backend": "agg"}):
        runpy.run_path(str(script), run_name="__main__")  # in this process: torch is imported already
    assert sorted(path.name for path in tmp_path.iterdir()) == PICTURES
