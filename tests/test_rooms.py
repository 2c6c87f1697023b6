"""The rooms of genlib: who may import whom, what the face of a wing is, and that each kind of fault is found."""

import ast
import functools
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

GENLIB = Path(__file__).parents[1] / "genlib"
FLOORS = [
    "network estimates scale progress",
    "norms margins features landscape sensitivity curvature sharpness pac_bayes bayes",
    "data models train optimizers",
    "measures ranking sweep",
    "book",
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}
OPEN = ("network.", "sharpness.noise", "sharpness.sigma")  # files that other rooms import past the face
FACE_LINES, FILE_LINES = 40, 350


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    """The files by name: `norms` is the face of a wing, `norms.layers` a file behind it, `margins` a room by itself."""
    paths = {path.relative_to(GENLIB).with_suffix("").parts: path for path in GENLIB.rglob("*.py")}
    return {".".join(parts).removesuffix(".__init__"): path.read_text("utf-8") for parts, path in paths.items()}


def faults(sources: dict[str, str]) -> list[str]:
    """What is wrong in the house, one line a fault."""
    wings = {_room(name) for name in sources if "." in name}
    imports = {name: imported(source, sources) for name, source in sources.items()}
    arrows = {room: set() for room in FLOOR}
    found = [f"{name} has no floor" for name in sources if _room(name) not in (*FLOOR, "__init__")]
    for name, source in sources.items():
        found += _faults_of_a_face(name, source, sources) if name in wings else _faults_of_a_file(name, source)
        for target in imports[name]:
            here, there = _room(name), _room(target)
            if here == there == target:
                found.append(f"{name} imports its own face")
            elif here != there and "." in target and not target.startswith(OPEN):
                found.append(f"{name} imports {target} past the face")
            if here != there:
                arrows[here].add(there)
            if FLOOR[there] > FLOOR[here]:
                found.append(f"{name} imports {target}, a floor above")
    return [*found, *_circles(arrows), *_circles(imports)]


def imported(source: str, sources: dict[str, str]) -> set[str]:
    """The files of genlib that a source imports, at its top or within a function."""
    found = set()
    for node in _import_nodes(source):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("genlib.") for alias in node.names if alias.name.startswith("genlib.")}
        elif (node.module or "").split(".")[0] == "genlib":
            module = node.module.removeprefix("genlib").removeprefix(".")
            names = (f"{module}.{alias.name}".removeprefix(".") for alias in node.names)
            found |= {name if name in sources else module for name in names}
    return found


@functools.cache  # each fault is planted in one file of many
def _import_nodes(source: str) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]


def _faults_of_a_face(name: str, source: str, sources: dict[str, str]) -> Iterator[str]:
    docstring, *rest = ast.parse(source).body
    handed_on = [node for node in rest if isinstance(node, ast.ImportFrom)]
    listed = [node for node in rest if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"]
    if len(handed_on) + len(listed) < len(rest) or not isinstance(docstring, ast.Expr):
        yield f"{name} holds code, and is a face"
    if len(source.splitlines()) - sum(node.end_lineno - node.lineno + 1 for node in listed) >= FACE_LINES:
        yield f"{name} is a face of {FACE_LINES} lines or more"
    names = {alias.name for node in handed_on for alias in node.names if node.module != f"genlib.{name}"}
    yield from (f"{name} hands on {one}, and a file has that name" for one in names if f"{name}.{one}" in sources)


def _faults_of_a_file(name: str, source: str) -> Iterator[str]:
    if name.rpartition(".")[2].startswith("_") and not name.endswith(("__init__", "__main__")):
        yield f"{name} has a private name"
    if len(source.splitlines()) > FILE_LINES:
        yield f"{name} has more than {FILE_LINES} lines: it holds two ideas"


def _circles(graph: dict[str, set[str]]) -> Iterator[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield f"a circle: {', '.join(error.args[1])}"


def _room(name: str) -> str:
    return name.split(".")[0]


def test_the_house_is_in_order(sources):
    assert faults(sources) == []


def test_every_floor_s_rooms_are_there(sources):
    assert {_room(name) for name in sources} - {"__init__"} == set(FLOOR)


@pytest.mark.parametrize("name", ["__init__", "book"])
def test_what_all_pass_through_imports_nothing(sources, name):
    assert _import_nodes(sources[name]) == []


@pytest.mark.parametrize(
    ("name", "planted", "fault"),
    [
        ("cellar", '"""A room."""', "cellar has no floor"),
        ("margins", "from genlib.train import fit", "margins imports train, a floor above"),
        ("margins", "from genlib import scale, sweep", "margins imports sweep, a floor above"),
        ("margins", "def late():\n    import genlib.measures", "margins imports measures, a floor above"),
        ("measures.formulas", "from genlib.book import plots", "measures.formulas imports book.plots, a floor above"),
        ("norms.layers", "from genlib.norms import OperatorNorm", "norms.layers imports its own face"),
        ("margins", "from genlib.norms.layers import conv_norm", "margins imports norms.layers past the face"),
        ("margins", "from genlib.norms import layers", "margins imports norms.layers past the face"),
        ("norms", "LIMIT = 5", "norms holds code, and is a face"),
        ("norms", "\n" * 40, "norms is a face of 40 lines or more"),
        ("norms", "from genlib.norms.paths import paths", "norms hands on paths, and a file has that name"),
        ("norms._helpers", '"""Help."""', "norms._helpers has a private name"),
        ("margins", "\n" * 350, "margins has more than 350 lines: it holds two ideas"),
        ("sharpness.noise", "from genlib.pac_bayes import kl_inverse", "a circle: "),
        ("norms.operators", "from genlib.norms.layers import conv_norm", "a circle: "),
    ],
)
def test_a_fault_is_found(sources, name, planted, fault):
    planted_there = faults(sources | {name: sources.get(name, "") + "\n" + planted})
    assert any(line.startswith(fault) for line in planted_there)
