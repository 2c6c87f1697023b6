"""Parity, small."""

import pytest

from genlib import data


@pytest.fixture(scope="session")
def parity():
    return data.load("parity", train=40, test=20, dimension=16, seed=0)
