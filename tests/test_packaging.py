"""The wheel builds and installs without a network, the dependencies are stated, the pins are pins."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from genlib import measures

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
SOURCES = sorted((ROOT / "genlib").rglob("*.py"))
# Of genlib.book, these need no extra.
IN_CHAPTERS = ("__init__", "claims", "criteria", "inference", "parts", "plots", "records", "sentences")
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}
NOTEBOOK_ONLY = {"IPython", "matplotlib_inline"}  # imported where a notebook asks for it, which has it
OPTIONAL = {"distributed"}  # of the extra [cluster]
UNSEEN = {"pyarrow"}  # that pandas imports, to read and write Parquet
UNSEEN_IN_THE_BOOK = {"ruff", "tabulate"}  # which lay out signatures and, from pandas, tables
BARE_INSTALL = re.compile(r"""\bpip3? install (?:-\S+ )*["']?genlib\b""")
TEXTS = {".py", ".md", ".ipynb", ".toml", ".txt", ".yml", ".yaml", ".cff", ""}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "genlib", source / "genlib", ignore=shutil.ignore_patterns("__pycache__"))
    _pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", source, source)
    (built,) = source.glob("*.whl")
    return built


def _pip(*arguments):
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    subprocess.run(command, check=True)


def _files():
    for folder in (ROOT, *(ROOT / name for name in ("chapters", "genlib", "tests", ".github", ".ci"))):
        inside = folder.glob("*") if folder == ROOT else folder.rglob("*")
        yield from (path for path in inside if path.is_file() and path.suffix in TEXTS and ".cache" not in path.parts)


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {name for name in names if ".dist-info/" not in name}
    assert package == {path.relative_to(ROOT).as_posix() for path in SOURCES} | {"genlib/py.typed"}
    assert len({name.split("/")[1].removesuffix(".py") for name in package}) == 23  # the rooms, __init__, py.typed
    assert "genlib/py.typed" in package
    assert any(name.endswith("/LICENSE") for name in names)


def test_wheel_installs_and_imports(wheel, tmp_path):
    _pip("install", "--no-compile", "--no-deps", "--no-index", "--target", tmp_path, wheel)
    parts = [path.relative_to(ROOT).with_suffix("").parts for path in SOURCES if path.parent.name != "book"]
    modules = sorted(".".join(part).removesuffix(".__init__") for part in parts)
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        f"import {', '.join(modules)}, genlib.book.claims, genlib.book.plots, genlib.book.records\n"
        "import genlib, importlib.metadata\n"
        "print(genlib.__file__, genlib.__version__, importlib.metadata.version('generalization-measures'))"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    run = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert run.stdout.split() == [str(tmp_path / "genlib/__init__.py"), PROJECT["version"], PROJECT["version"]]


def _needed(sources):
    """The distributions that these sources import."""
    imported = set()
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    needed = imported - set(sys.stdlib_module_names) - NOTEBOOK_ONLY - OPTIONAL - {"genlib"}
    return {DISTRIBUTIONS.get(name, name) for name in needed}


def _names(dependencies):
    return {re.match(r"[\w.-]+", dependency)[0] for dependency in dependencies}


def test_what_genlib_imports_is_a_dependency_and_what_builds_the_book_an_extra():
    tools = {path for path in SOURCES if path.parent.name == "book" and path.stem not in IN_CHAPTERS}
    assert _needed(set(SOURCES) - tools) | UNSEEN == _names(PROJECT["dependencies"])
    of_the_book = _names(PROJECT["optional-dependencies"]["book"])
    assert (_needed(tools) | UNSEEN_IN_THE_BOOK) - _names(PROJECT["dependencies"]) == of_the_book


def test_package_has_lower_bounds_and_the_book_exact_pins():
    extras = [dependency for extra in PROJECT["optional-dependencies"].values() for dependency in extra]
    for dependency in PROJECT["dependencies"] + extras:
        assert re.fullmatch(r"[\w.-]+>=[\d.]+\w*", dependency)
    for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines():
        assert re.fullmatch(r"(#.*)?|[\w.-]+==[\w.]+", line)


def test_version_is_the_same_everywhere():
    places = {
        "genlib/__init__.py": '__version__ = "{}"',
        "CITATION.cff": "version: {}",
        "chapters/index.md": "= {{{}}},",
    }
    places |= {"_config.yml": "version {},", "chapters/changelog.md": "## {}"}
    for name, phrase in places.items():
        assert phrase.format(PROJECT["version"]) in (ROOT / name).read_text("utf-8"), name


def test_nobody_is_told_to_install_the_stranger_of_that_name():
    """On PyPI `genlib` is another project; this one is generalization-measures."""
    found = [str(path) for path in _files() if BARE_INSTALL.search(path.read_text("utf-8"))]
    assert found == []


@pytest.mark.parametrize("line", ["pip install {}", "%pip install -q {}", "python -m pip3 install -U '{}==1'"])
def test_a_bare_install_is_found(line):
    assert BARE_INSTALL.search(line.format("genlib"))


def test_what_the_readme_names_is_there():
    readme = (ROOT / "README.md").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", readme)) <= targets
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", readme) if not link.startswith("https://")]
    assert links and all((ROOT / link).exists() for link in links)
    titles = {path.read_text("utf-8").splitlines()[0].lstrip("# ") for path in (ROOT / "chapters").glob("*.md")}
    notebooks = (ROOT / "chapters").glob("[a-z]*.ipynb")
    titles |= {json.loads(path.read_text("utf-8"))["cells"][0]["source"][0].lstrip("# ").strip() for path in notebooks}
    pages = re.findall(r"\*([A-Z][^*\n]{5,40})\*", readme.replace("\n", " "))
    assert pages and {page.lower() for page in pages} <= {title.lower().removeprefix("the ") for title in titles}


def test_the_readme_s_examples_run(capsys):
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    names, shown = {}, []
    for example in examples:
        exec(compile(example, "README.md", "exec"), names)
        shown.append(capsys.readouterr().out)
    digits, transformer, loader, regression = shown
    assert "inverse_margin" in digits and "standard_error" in digits
    assert "over part of the network" in transformer and "unexpected" not in transformer
    assert "seconds" in loader and "hessian_trace" in loader and "stable_rank" in loader
    assert "labels are no classes" in regression and "gradient_norm" in regression


def test_the_catalogue_s_example_adds_a_measure():
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "chapters/catalogue.md").read_text("utf-8"), re.DOTALL)
    try:
        exec(compile(example, "catalogue.md", "exec"), {})
        network = nn.Linear(3, 2)
        found = measures.evaluate(network, (torch.zeros(1, 3), torch.tensor([0])), names=["largest_weight"])
        assert found.value["largest_weight"] == max(w.abs().max() for w in network.parameters())
    finally:
        del measures.measure.registry["largest_weight"]
