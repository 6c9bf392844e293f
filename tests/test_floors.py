"""Who may import whom: a module imports from lower floors only, and heads and hub are rooms (CONTRIBUTING.md)."""

import ast
from pathlib import Path

import pytest

import scemae

FLOORS = {
    -1: "errors",  # the ground: any module may raise them
    0: "arithmetic geometry config metrics draw output",
    1: "backbone projector alignment cover images features checkpoint card samples tables estimator",
    2: "model heads landmarks hub",
    3: "extraction zoo matching normalizer",
    4: "looks",
    5: "regressor",
    6: "export transfer",
    7: "__init__ cli cli_export cli_hub __main__",
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms.split()}
# The exceptions: the commands stand on the face, and some have a room of their own.
NEIGHBOURS = {
    ("cli", "__init__"),
    ("cli", "cli_export"),
    ("cli", "cli_hub"),
    ("cli_export", "__init__"),
    ("__main__", "cli"),
}
HOUSE = Path(scemae.__file__).parent
PATHS = sorted(HOUSE.rglob("*.py"))
MODULES = [path for path in PATHS if path.relative_to(HOUSE).parts[0] != "training"]
TRAINING = [path for path in PATHS if path not in MODULES]
# Training stands on floors 0 to 3; only these of its rooms see the face, and the others do not see them.
TRAINING_REACH = 3
ABOVE_TRAINING = ("cli", "evaluation")


def room_of(path):
    return path.relative_to(HOUSE).with_suffix("").parts[0]


def training_room_of(path):
    return path.relative_to(HOUSE / "training").with_suffix("").parts[0]


def imported_modules(path):
    """What a module imports of scemae, wherever in it, also that only for types: names split at their dots."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            # "from scemae import draw" imports a room, "from scemae import load_model" the face.
            of_package = node.module in ("scemae", "scemae.training")
            names = [f"{node.module}.{alias.name}" if of_package else str(node.module) for alias in node.names]
        else:
            continue
        modules |= {tuple(name.split(".")) for name in names}
    return {parts for parts in modules if parts[0] == "scemae"}


def imported_rooms(path):
    known = {*FLOOR_OF, "training"}
    return {parts[1] if len(parts) > 1 and parts[1] in known else "__init__" for parts in imported_modules(path)}


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


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: str(path.relative_to(HOUSE)))
def test_training_stands_on_the_tensor_world(path):
    above = training_room_of(path) in ABOVE_TRAINING
    for room in imported_rooms(path) - {"training"}:
        allowed = FLOOR_OF[room] <= TRAINING_REACH or (above and room == "__init__")
        assert allowed, f"training/{training_room_of(path)} imports {room} (floor {FLOOR_OF[room]})"
    rooms = {parts[2] for parts in imported_modules(path) if parts[1:2] == ("training",) and len(parts) > 2}
    assert above or not rooms & set(ABOVE_TRAINING)
