"""A chapter on Colab: a notebook alone in a folder, the torch and the libraries that are there, the book from git."""

import importlib.metadata
import json
import os
import subprocess
import venv
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from packaging.requirements import Requirement

from genlib.book.repository import address, chapters, notebooks, setup_cell

ROOT = Path(__file__).parents[2]
THERE = ("numpy", "pandas", "matplotlib", "ipykernel", "jedi")  # newest ones, as on Colab; torch is ours, made visible
ADDRESS = "https://github.com/owner/name"
COLAB = {"COLAB_RELEASE_TAG": "release-colab", "COLAB_JUPYTER_IP": "172.28.0.12", "COLAB_BACKEND_VERSION": "next"}
EVERY = os.environ.get("GENLIB_COLAB") == "all"
ONE = "07_predicting_generalization"  # up to where it reads a population's record; all of all take a quarter of an hour


@pytest.fixture(scope="module")
def repository(tmp_path_factory, copy_sources):
    """What would be pushed now, as a repository with the branch main."""
    folder = copy_sources(tmp_path_factory.mktemp("repository") / "book")
    author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q", "-b", "main"], ["add", "."], [*author, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder.as_uri()


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """A Python like Colab's: its folder, and the environment variables that a kernel of it gets."""
    folder = tmp_path_factory.mktemp("colab")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv/bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", *THERE], check=True)
    site = next((folder / "venv/lib").glob("python*/site-packages"))
    for name in sorted(_closure("torch") | _closure("torchvision")):
        _make_visible(name, site)
    stub = folder / "stub/google/colab"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text("")
    (folder / "stub/sitecustomize.py").write_text("import google.colab\n")  # Colab's kernel has imported it
    kernel = folder / "jupyter/kernels/python3/kernel.json"
    kernel.parent.mkdir(parents=True)
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": command, "display_name": "Python 3", "language": "python"}))
    knobs = {name: value for name, value in os.environ.items() if not name.startswith(("GENLIB_", "PYTHON", "VIRTUAL"))}
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    return folder, knobs | COLAB | {"PYTHONPATH": str(folder / "stub"), "PATH": path}


def _closure(name, found=None):
    """A distribution with all that it requires, as far as it is installed here."""
    found = set() if found is None else found
    try:
        required = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return found
    found.add(name)
    for line in map(Requirement, required):
        if line.name not in found and (line.marker is None or line.marker.evaluate({"extra": ""})):
            _closure(line.name, found)
    return found


def _make_visible(name, site):
    """Link what a distribution installed into another site, unless that has it already."""
    files = importlib.metadata.files(name) or []
    for top in {file.parts[0] for file in files if file.parts[0] not in ("..", "__pycache__")}:
        source, target = Path(importlib.metadata.distribution(name).locate_file(top)), site / top
        if not target.exists() and source.exists():
            target.symlink_to(source)


def _instead(repository):
    """Git's settings that take a local repository for the one at the address."""
    return {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{repository}.insteadOf", "GIT_CONFIG_VALUE_0": ADDRESS}


def _versions(folder, environment):
    code = "import torch, numpy, pandas; print(torch.__version__, numpy.__version__, pandas.__version__)"
    python = folder / "venv/bin/python"
    return subprocess.run([python, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "path", [path for path in notebooks(ROOT) if EVERY or path.stem == ONE], ids=lambda path: path.stem
)
def test_chapter_runs_on_colab(path, colab, repository, tmp_path, monkeypatch):
    folder, environment = colab
    before = _versions(folder, environment)
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[1].source == setup_cell(address(ROOT))
    notebook.cells[1].source = setup_cell(ADDRESS)
    if not EVERY:
        reads = [i for i, cell in enumerate(notebook.cells) if "= records.population(" in cell.source]
        notebook.cells = notebook.cells[: reads[0] + 1]
    (tmp_path / path.name).write_text(nbformat.writes(notebook))
    monkeypatch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
    resources = {"metadata": {"path": str(tmp_path)}}
    client = NotebookClient(notebook, timeout=1200, kernel_name="python3", resources=resources)
    client.execute(env=environment | _instead(repository))
    installed = json.loads(
        subprocess.run(
            [folder / "venv/bin/python", "-m", "pip", "list", "--format", "json"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    assert "generalization-measures" in {entry["name"] for entry in installed}
    assert _versions(folder, environment) == before
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    if path in chapters(ROOT):
        assert "scale small" in printed, "the banner says scale, seeds and device"
        assert "verdicts are those of the record" in printed or not EVERY
    assert (tmp_path / "book/chapters/records").is_dir()
