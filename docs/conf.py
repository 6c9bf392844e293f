"""The site: python -m sphinx -W --keep-going -b html docs OUT. Neither building nor reading it needs a network."""

import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

import scemae
from scemae.training.run_config import CardFields, RunOptions
from scemae.training.training_config import TrainingConfig, field_help

project = "scemae"
author = "the scemae authors"
project_copyright = f"%Y, {author}"
version = release = scemae.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"scemae {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
pygments_style, pygments_dark_style = "friendly", "github-dark"

# Docstrings are plain text with `code`, as people read them in an editor.
default_role = "literal"
autodoc_member_order = "bysource"
smartquotes_action = "D"  # dashes; the quotes of docstrings are code
autodoc_type_aliases = {
    name: f"{module}.{name}"
    for module, names in {
        "scemae.images": ("ImageLike",),
        "scemae.extraction": ("Boxes", "Margin"),
        "scemae.detector.regressor": ("Images",),
        "scemae.model.config": ("Use",),
        "scemae.detector.mirror": ("Mirror",),
        "scemae.geometry": ("Array", "Box"),
    }.items()
    for name in names
}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False

# Links within the project are checked; those to other projects would need inventories from the network.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(collections|numpy|os|pathlib|PIL|torch|typing)\..*|Path|Tensor")]

# Commands that GitHub's renderer knows and docutils does not.
TEX = {
    r"\\dots\b": r"\\ldots",
    r"\\(big|textstyle)\b": "",
    r"(\\(?:hat|bar) \w)(?=_)": r"\1{}",  # or the index goes below the letter
}


def write_inline(self: HTML5Translator, node: nodes.math) -> None:
    """Write an inline formula as MathML, which browsers draw without a script."""
    self.body.append(to_mathml(node, as_block=False))
    raise nodes.SkipNode


def write_block(self: HTML5Translator, node: nodes.math_block) -> None:
    """Write a displayed formula."""
    self.body.append(f'<div class="formula">{to_mathml(node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def to_mathml(node: nodes.Node, as_block: bool) -> str:
    """The formula of a node as MathML."""
    tex = node.astext()
    for pattern, known in TEX.items():
        tex = re.sub(pattern, known, tex)
    return tex2mathml(tex, as_block=as_block)


# How Sphinx spells what the sources call NDArray, and aliases inside other types.
SPELLINGS = {
    r"~?numpy\.ndarray\[~?tuple\[~?typing\.Any, \.\.\.\], ~?numpy\.dtype\[([^]]+)\]\]": r"~numpy.typing.NDArray[\1]",
    r"TypeAliasForwardRef\('([\w.]+)'\)": r"\1",
}


def restore_types(_app: Sphinx, _what: str, _name: str, _subject: object, _options: object, *signature: str | None):
    """The signature with its types spelled as in the source."""
    for spelling, wanted in SPELLINGS.items():
        signature = tuple(part and re.sub(spelling, wanted, part) for part in signature)
    return signature


def add_field_help(_app: Sphinx, _what: str, _name: str, subject: object, _options: object, lines: list[str]) -> None:
    """Add to the docstring of a configuration what the help of the commands says of each field."""
    if isinstance(subject, type) and issubclass(subject, (TrainingConfig, RunOptions, CardFields)):
        lines += [f":param {name}: {text}" for name, text in field_help(subject).items()]


def link_downloads(_app: Sphinx, _page: str, source: list[str]) -> None:
    """Link documents outside the site, which MyST refuses, as copies to download."""
    source[0] = re.sub(r"\[`?([^]`]+)`?\]\((\.\./[^)]+\.md)\)", r"{download}`\1 <\2>`", source[0])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (write_inline, None), (write_block, None))
    app.connect("autodoc-process-signature", restore_types)
    app.connect("autodoc-process-docstring", add_field_help)
    app.connect("source-read", link_downloads)
