"""Digits, few, and a network for them."""

import pytest

from genlib import data, models


@pytest.fixture(scope="session")
def digits():
    return data.load("digits", train=200, test=50, seed=3)


@pytest.fixture
def net():
    return models.mlp(64, 10, width=16, seed=1)
