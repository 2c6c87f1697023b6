"""`make repository` writes the address everywhere or nowhere."""

import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from genlib.book.repository import address, assignments, notebooks, set_address, setup_cell

ROOT = Path(__file__).parents[2]
HERE = "https://github.com/owner/name"


@pytest.fixture
def copy(tmp_path):
    for name in ("_config.yml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "chapters").mkdir()
    for path in notebooks(ROOT):
        shutil.copy(path, tmp_path / "chapters")
    for kind in ("release", "source"):
        shutil.copytree(ROOT / f"chapters/assignments/{kind}", tmp_path / f"chapters/assignments/{kind}")
    return tmp_path


def test_each_assignment_has_its_release():
    kinds = [path.parts[-3] for path in assignments(ROOT)]
    assert kinds.count("release") == kinds.count("source") > 0
    assert len(kinds) == 2 * kinds.count("source")


def _contents(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("url", [HERE, HERE + "/", HERE + ".git", f"  {HERE} "])
def test_address_stands_everywhere(copy, url):
    set_address(copy, url)
    assert address(copy) == HERE
    for path in notebooks(copy) + assignments(copy):
        assert nbformat.read(path, as_version=4).cells[1].source == setup_cell(HERE)


def test_round_trip_changes_nothing_else(copy):
    set_address(copy, "https://github.com/first/one")
    first = _contents(copy)
    set_address(copy, HERE)
    assert _contents(copy) != first
    set_address(copy, "https://github.com/first/one")
    assert _contents(copy) == first


def test_readme_gets_a_badge_for_every_notebook(copy):
    set_address(copy, HERE)
    badges = [line for line in (copy / "README.md").read_text().splitlines() if "colab-badge" in line]
    assert len(badges) == len(notebooks(copy))
    for path, badge in zip(notebooks(copy), badges, strict=True):
        assert f"github/owner/name/blob/main/chapters/{path.name})" in badge
        assert (ROOT / "chapters" / path.name).exists()


def test_only_the_address_changes(copy):
    before = _contents(copy)
    set_address(copy, "https://github.com/somewhere/else")
    for path, after in _contents(copy).items():
        if path.name == "README.md":
            continue
        changed = [line for line in after.splitlines() if line not in before[path].splitlines()]
        assert len(changed) == 1, path.name


@pytest.mark.parametrize(
    "url",
    [
        "",
        "owner/name",
        "http://github.com/owner/name",
        "https://github.com/owner",
        "https://github.com/owner/name/tree/main",
        "https://example.org/owner/name",
        "https://github.com/owner/..",
        'https://github.com/owner/name"; import os',
        "https://github.com/owner/na me",
        "git@github.com:owner/name",
    ],
)
def test_what_is_no_address_is_refused(copy, url):
    before = _contents(copy)
    with pytest.raises(ValueError, match="such as https"):
        set_address(copy, url)
    assert _contents(copy) == before


def test_a_changed_set_up_cell_stops_everything(copy):
    path = notebooks(copy)[-1]
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].source = "import sys"
    nbformat.write(notebook, path)
    before = _contents(copy)
    with pytest.raises(ValueError, match=path.name):
        set_address(copy, HERE)
    assert _contents(copy) == before


@pytest.fixture
def set_up(monkeypatch, tmp_path):
    """Runs the set-up cell of an address in an empty folder, and returns the commands that it gave."""
    given = []

    def run(command, check):
        given.append(command)
        (tmp_path / command[-1] / "chapters").mkdir(parents=True)
        (tmp_path / command[-1] / "genlib").mkdir()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", run)
    shell = Mock()
    shell.run_line_magic = lambda *words: given.append(list(words))

    def in_cell(url):
        given.clear()
        code = compile(TransformerManager().transform_cell(setup_cell(url)), "cell", "exec")
        exec(code, {"get_ipython": lambda: shell})
        return given

    return in_cell


@pytest.mark.parametrize("url", ["", HERE])
def test_set_up_cell_does_nothing_outside_colab(set_up, tmp_path, url):
    assert set_up(url) == []
    assert Path.cwd() == tmp_path


def test_set_up_cell_fetches_and_installs_on_colab_once(set_up, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "google.colab", Mock())
    install = ["pip", "install -q ./book"]
    assert set_up("") == []
    assert set_up(HERE) == [["git", "clone", "-q", "--depth", "1", "-b", "main", HERE, "book"], install]
    assert Path.cwd() == tmp_path / "book/chapters"
    assert set_up(HERE) == []  # run again in the same session
    monkeypatch.chdir(tmp_path)
    assert set_up(HERE) == [install]  # the runtime was started again, its disk is the same
