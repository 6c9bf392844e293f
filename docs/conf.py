"""How the site is built: python -m sphinx -W --keep-going -b html docs OUT. Neither that nor the site needs a network."""

import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

import scemae

project = "scemae"
author = "the scemae authors"
project_copyright = f"%Y, {author}"
version = release = scemae.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]

html_theme = "furo"
html_title = f"scemae {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
pygments_style, pygments_dark_style = "friendly", "github-dark"

# Docstrings are plain text with `code`, as they are read in an editor.
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_type_aliases = {}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False

# Links within the project are checked; those to other projects would need their inventories from the network.
nitpicky = True

# What GitHub's renderer knows and that of docutils does not.
TEX = {r"\\dots\b": r"\\ldots", r"\\(big|textstyle)\b": ""}


def write_inline(self: HTML5Translator, node: nodes.math) -> None:
    """A formula as MathML, which browsers draw without a script."""
    self.body.append(mathml(node, as_block=False))
    raise nodes.SkipNode


def write_block(self: HTML5Translator, node: nodes.math_block) -> None:
    """The same on a line of its own."""
    self.body.append(f'<div class="formula">{mathml(node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def mathml(node: nodes.Node, as_block: bool) -> str:
    """The formula of a node."""
    tex = node.astext()
    for pattern, known in TEX.items():
        tex = re.sub(pattern, known, tex)
    return tex2mathml(tex, as_block=as_block)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (write_inline, None), (write_block, None))
