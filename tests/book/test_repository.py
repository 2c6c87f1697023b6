"""`make repository` writes the address everywhere or nowhere."""

import shutil
import sys
from pathlib import Path
from unittest.mock import Mock, call

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from repository import address, notebooks, set_address, setup_cell

ROOT = Path(__file__).parents[2]
HERE = "https://github.com/owner/name"


@pytest.fixture
def copy(tmp_path):
    shutil.copy(ROOT / "_config.yml", tmp_path)
    (tmp_path / "chapters").mkdir()
    for path in notebooks(ROOT):
        shutil.copy(path, tmp_path / "chapters")
    return tmp_path


def _contents(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("url", [HERE, HERE + "/", HERE + ".git", f"  {HERE} "])
def test_address_stands_everywhere(copy, url):
    set_address(copy, url)
    assert address(copy) == HERE
    for path in notebooks(copy):
        assert nbformat.read(path, as_version=4).cells[1].source == setup_cell(HERE)


def test_round_trip_changes_nothing_else(copy):
    set_address(copy, "https://github.com/first/one")
    first = _contents(copy)
    set_address(copy, HERE)
    assert _contents(copy) != first
    set_address(copy, "https://github.com/first/one")
    assert _contents(copy) == first


def test_only_the_address_changes(copy):
    before = _contents(copy)
    set_address(copy, "https://github.com/somewhere/else")
    for path, after in _contents(copy).items():
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


@pytest.mark.parametrize("url", ["", HERE])
def test_set_up_cell_is_python_and_installs_on_colab_alone(url, monkeypatch):
    shell = Mock()
    code = compile(TransformerManager().transform_cell(setup_cell(url)), "cell", "exec")
    exec(code, {"get_ipython": lambda: shell})
    shell.run_line_magic.assert_not_called()
    monkeypatch.setitem(sys.modules, "google.colab", Mock())
    exec(code, {"get_ipython": lambda: shell})
    line = 'install -q "generalization-measures @ git+{REPOSITORY}@{TAG}"'
    assert shell.run_line_magic.call_args_list == ([call("pip", line)] if url else [])
