"""The public names of `import scemae`: which they are, and that importing them is lazy and fast."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import scemae

ROOT = Path(__file__).parent.parent


def names_for_type_checkers():
    """Public name -> module, as `if TYPE_CHECKING` imports them."""
    [block] = [node for node in ast.parse(Path(scemae.__file__).read_text()).body if isinstance(node, ast.If)]
    return {name.asname: statement.module for statement in block.body for name in statement.names}


def names_in_the_reference():
    """The names of `scemae` itself that docs/api.md documents, and the base of all errors."""
    module, names = None, {"ScemaeError"}
    for directive, name in re.findall(r"^\.\. (\w+):: ([\w.]+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE):
        if directive == "currentmodule":
            module = name
        elif directive.startswith("auto") and module == "scemae" and "." not in name:
            names.add(name)
    return names


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_public_names_are_those_of_the_reference():
    assert set(scemae.__all__) == names_in_the_reference()
    assert names_for_type_checkers() == {name: f"scemae.{module}" for name, module in scemae._EXPORTS.items()}
    assert set(scemae._EXPORTS) == set(scemae.__all__) <= set(dir(scemae))
    assert all(getattr(scemae, name).__doc__ for name in scemae.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'load_modle'"):
        _ = scemae.load_modle


def test_import_and_listing_need_no_torch():
    code = "import sys, scemae; scemae.list_models(); print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert run(code).split() == ["False", "False"]


def test_import_is_fast():
    code = "import time; t = time.perf_counter(); import scemae; print(time.perf_counter() - t)"
    assert min(float(run(code)) for _ in range(3)) < 0.2
