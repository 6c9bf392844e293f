"""Who may import whom: a module imports from lower floors only, and heads is one room (docs/architecture.md)."""

import ast
from pathlib import Path

import pytest

import scemae

FLOORS = {
    -1: "errors",  # the ground: any module may raise them
    0: "geometry config metrics draw output",
    1: "backbone projector alignment cover images features checkpoint card samples tables estimator",
    2: "model heads landmarks",
    3: "extraction zoo matching",
    4: "regressor",
    5: "export",
    6: "__init__ cli cli_export __main__",
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms.split()}
# The one exception: the commands stand on the face.
NEIGHBOURS = {("cli", "__init__"), ("cli", "cli_export"), ("cli_export", "__init__"), ("__main__", "cli")}
HOUSE = Path(scemae.__file__).parent
MODULES = sorted(path for path in HOUSE.rglob("*.py") if path.relative_to(HOUSE).parts[0] != "training")


def room_of(path):
    return path.relative_to(HOUSE).with_suffix("").parts[0]


def imported_rooms(path):
    """The rooms of scemae that a module imports, wherever in it, also those only for types."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            # "from scemae import draw" imports a room, "from scemae import load_model" the face.
            bare = node.module == "scemae"
            names = [f"scemae.{alias.name}" if bare else str(node.module) for alias in node.names]
        else:
            continue
        parts = [name.split(".") for name in names if name.split(".")[0] == "scemae"]
        known = {*FLOOR_OF, "training"}
        rooms |= {part[1] if len(part) > 1 and part[1] in known else "__init__" for part in parts}
    return rooms


def test_every_module_has_a_floor():
    assert {room_of(path) for path in MODULES} <= set(FLOOR_OF)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_imports_go_down(path):
    room = room_of(path)
    for other in imported_rooms(path) - {room}:
        lower = other != "training" and FLOOR_OF[other] < FLOOR_OF[room]
        assert lower or (room, other) in NEIGHBOURS, f"{room} (floor {FLOOR_OF[room]}) imports {other}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_only_the_command_line_names_training(path):
    """By importlib, when a training command is called; `test_imports_go_down` refuses an import statement."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert room_of(path) == "cli" or not any(text.startswith("scemae.training") for text in texts)
