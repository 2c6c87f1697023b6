"""Dry runs, and small files in place of the published ones."""

import shutil
from urllib.error import URLError

import pytest

from genlib.data import files


@pytest.fixture
def dry_run(monkeypatch):
    monkeypatch.setenv("GENLIB_DRY_RUN", "1")


@pytest.fixture
def placed(tmp_path, monkeypatch):
    """A function that places the small files of a set in a folder, and has genlib expect these and no network."""

    def place(name):
        made, source = files._stand_in(name)
        shutil.copytree(made, tmp_path, dirs_exist_ok=True)
        monkeypatch.setitem(files.SOURCES, name, source)
        return tmp_path, source

    def no_network(url, root):
        raise URLError("Name or service not known")

    monkeypatch.setattr(files, "download_url", no_network)
    return place
