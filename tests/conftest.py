"""One thread, no knobs from outside, an own cache, the same random examples every time."""

import itertools
import os
import re
import shutil
from pathlib import Path

import hypothesis
import jaxtyping
import pytest
import torch

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")
_CACHES = itertools.count()
# Of files whose tests run tables of all measures: checks of types double their time, and are made kernel by kernel.
_TABLES = re.compile(
    "test_(arguments|costs|evaluation|families|grammar|invariances|losses|networks|options|outputs|samples|whole_tables)"
)


def pytest_collection_modifyitems(items):
    """The longest first: begun last, they would run alone, and those of `test_sweep` each start workers of its own."""
    longest = ["test_colab", "test_sweep"]
    items.sort(key=lambda item: longest.index(item.path.stem) if item.path.stem in longest else len(longest))


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _knobs(monkeypatch, tmp_path_factory):
    for name in [name for name in os.environ if name.startswith("GENLIB_")]:
        monkeypatch.delenv(name)
    # A folder that is made when it is asked for: few tests do, and making it takes longer than most tests.
    monkeypatch.setenv("GENLIB_CACHE", str(tmp_path_factory.getbasetemp() / f"cache-{next(_CACHES)}"))


@pytest.fixture(autouse=True)
def _nothing_unexpected(monkeypatch):
    """What a user would be asked to report fails here."""

    def raised(error):
        raise error

    monkeypatch.setattr("genlib.measures.evaluation.unexpected", raised)


@pytest.fixture(autouse=True)
def _types(request):
    jaxtyping.config.update("jaxtyping_disable", _TABLES.fullmatch(request.path.stem) is not None)


@pytest.fixture
def unchecked(_types):
    """Without the type checks of the tests, which would refuse a wrong type before genlib can."""
    jaxtyping.config.update("jaxtyping_disable", True)


@pytest.fixture(scope="session")
def copy_sources():
    """A function that copies what git would keep of this project into a new folder, and gives it back."""
    root = Path(__file__).parents[1]
    left_out = [line.rstrip("/") for line in (root / ".gitignore").read_text("utf-8").split()]
    return lambda folder: shutil.copytree(root, folder, ignore=shutil.ignore_patterns(".git", *left_out))
