"""Who may import whom (CONTRIBUTING.md): a room, a module or package of `scemae`, imports from lower floors only."""

import ast
from pathlib import Path

import pytest

import scemae

FLOORS = {
    0: "errors geometry",
    1: "calibration metrics numerics output photo plots progress ridge symmetry warps draw boxes",
    2: "model patches tables",
    3: "features images weights samples",
    4: "landmarks face_boxes",
    5: "extraction",
    6: "landmark_input",
    7: "matching detector",
    8: "export",
    9: "datasets training",
    10: "__init__",  # the public face: names of the floors below, brought when they are asked for
    11: "evaluation",
    12: "cli",
    13: "__main__",
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms.split()}
# Extras of the package: no room below the command line imports them, and it does so only when their command is called.
EXTRAS = {"datasets", "training", "evaluation"}
# Training stands on tensors, files and models; the verbs and what is made of them are none of its business.
NOT_FOR_TRAINING = {"landmarks", "landmark_input", "detector", "export", "datasets"}
HOUSE = Path(scemae.__file__).parent
PATHS = sorted(HOUSE.rglob("*.py"))


def module_of(path):
    parts = path.relative_to(HOUSE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts


def imports_of(path):
    """Modules of scemae that a file imports, wherever in it, also those only for types: their names split at dots."""
    known = {module_of(other) for other in PATHS}
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]  # a module or a name in one
        else:
            continue
        for name in names:
            package, *parts = name.split(".")
            if package == "scemae":
                while parts and tuple(parts) not in known:
                    parts.pop()
                found.add(tuple(parts) or ("__init__",))
    return found


IMPORTS = {module_of(path): imports_of(path) for path in PATHS}


def test_every_room_has_a_floor():
    assert {module[0] for module in IMPORTS} == set(FLOOR_OF)


@pytest.mark.parametrize("module", IMPORTS, ids=".".join)
def test_imports_go_down(module):
    for other in IMPORTS[module]:
        room, lower = module[0], other[0]
        assert room == lower or FLOOR_OF[lower] < FLOOR_OF[room], f"{room} imports {'.'.join(other)}"
        if room == "training":
            assert lower not in NOT_FOR_TRAINING, f"training imports {'.'.join(other)}"


def test_no_two_modules_import_each_other():
    """Nor in a longer circle: take away the modules that import nothing that is left, until none is left."""
    left = {module: others - {module} for module, others in IMPORTS.items()}
    while free := {module for module, others in left.items() if not others & left.keys()}:
        left = {module: others for module, others in left.items() if module not in free}
    assert not left, f"there is a circle among {sorted('.'.join(module) for module in left)}"


@pytest.mark.parametrize("module", [module for module in IMPORTS if module[0] not in EXTRAS], ids=".".join)
def test_the_core_knows_nothing_of_the_extras(module):
    allowed = module[0] == "cli" and module[-1] in (
        "train_commands",
        "data_commands",
        "evaluate_commands",
        "data_check_command",
        "dataclass_options",
    )
    assert allowed or not {other[0] for other in IMPORTS[module]} & EXTRAS


def test_no_file_name_occurs_twice():
    names = [path.name for path in PATHS if path.name != "__init__.py"]
    assert sorted({name for name in names if names.count(name) > 1}) == []
