"""Dry runs, and small files in place of the published ones."""

import shutil
from dataclasses import replace
from urllib.error import URLError

import pytest

from genlib.data import files


@pytest.fixture
def dry_run(monkeypatch):
    monkeypatch.setenv("GENLIB_DRY_RUN", "1")


@pytest.fixture
def alone(monkeypatch):
    """No network, and no files but those below the root: none of Debian's."""

    def no_network(url, root):
        raise URLError("Name or service not known")

    monkeypatch.setattr(files, "download_url", no_network)
    for name, source in files.SOURCES.items():
        below = [folder for folder in source.folders if not folder.startswith("/")]
        monkeypatch.setitem(files.SOURCES, name, replace(source, folders=below))


@pytest.fixture
def placed(tmp_path, monkeypatch, alone):
    """A function that places the small files of a set in a folder, and has genlib expect these and no others."""

    def place(name):
        made, source = files._stand_in(name)
        source = replace(source, folders=files.SOURCES[name].folders)
        shutil.copytree(made, tmp_path, dirs_exist_ok=True)
        monkeypatch.setitem(files.SOURCES, name, source)
        return tmp_path, source

    return place
