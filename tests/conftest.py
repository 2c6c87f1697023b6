"""One thread, no knobs from outside, an own cache, the same random examples every time."""

import os
import shutil
from pathlib import Path

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_modifyitems(items):
    """The longest first: begun last, it would run alone."""
    items.sort(key=lambda item: item.path.stem != "test_colab")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _knobs(monkeypatch, tmp_path_factory):
    for name in [name for name in os.environ if name.startswith("GENLIB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GENLIB_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def copy_sources():
    """A function that copies what git would keep of this project into a new folder, and gives it back."""
    root = Path(__file__).parents[1]
    left_out = [line.rstrip("/") for line in (root / ".gitignore").read_text("utf-8").split()]
    return lambda folder: shutil.copytree(root, folder, ignore=shutil.ignore_patterns(".git", *left_out))
