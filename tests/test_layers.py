"""The order of genlib's modules: one imports from its own layer or from below, and never in a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

GENLIB = Path(__file__).parents[1] / "genlib"
LAYERS = [
    "network estimates scale progress data augment models "
    "_by_hand _flattest _memorizing _normalizations _losses _precision _files _mnist1d _streams",
    "norms margins sensitivity curvature sharpness pac_bayes _weights _operators _paths _sample_gradients "
    "_objective _pieces _hessian _lanczos _sketches _gauss_newton _noise _ascent _divergences _sigma _pairs",
    "optimizers _one_sam train landscape ranking _bases _plan _engines _checkpoint",
    "measures sweep records _shared _quantities",
    "claims plots",
]
LAYER = {module: number for number, line in enumerate(LAYERS) for module in line.split()}


def imported(source: str) -> set[str]:
    """The modules of genlib that a source imports, at its top or within a function."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "genlib":
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("genlib."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.add(f"relative import: {node.module}")
        elif isinstance(node, ast.Import):
            found |= {name.name.split(".")[1] for name in node.names if name.name.startswith("genlib.")}
    return found


def upward(imports: dict[str, set[str]]) -> list[str]:
    """The imports that lead to a higher layer."""
    return [f"{a} imports {b}" for a, names in imports.items() for b in sorted(names) if LAYER[b] > LAYER[a]]


@pytest.fixture(scope="module")
def imports():
    files = [path for path in GENLIB.glob("*.py") if path.stem != "__init__"]
    return {path.stem: imported(path.read_text("utf-8")) for path in files}


def test_every_module_has_a_layer(imports):
    assert set(imports) <= set(LAYER)
    assert set().union(*imports.values()) <= set(LAYER)


def test_imports_lead_down(imports):
    assert upward(imports) == []


def test_no_circles(imports):
    TopologicalSorter(imports).prepare()


def test_the_package_itself_imports_nothing():
    assert imported((GENLIB / "__init__.py").read_text("utf-8")) == set()


def test_an_upward_import_is_found():
    source = "from genlib import scale, claims\nfrom genlib.train import fit\nimport genlib.plots"
    assert imported(source) == {"scale", "claims", "train", "plots"}
    assert upward({"data": imported(source)}) == [f"data imports {name}" for name in ("claims", "plots", "train")]


def test_a_circle_is_found():
    with pytest.raises(CycleError):
        TopologicalSorter({"data": {"models"}, "models": {"data"}}).prepare()
