"""Architectures by their name have the published numbers of parameters."""

import pytest
import torch
from models_cases import parameters

from genlib.models import build


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("small_inception", {}, 1_649_402),
        ("small_inception", {"batch_norm": False}, 1_649_402),
        ("small_alexnet", {}, 1_387_786),
        ("mlp 3x512", {}, 1_735_178),
        ("mlp 1×512", {}, 1_209_866),
    ],
)
def test_published_parameter_counts_and_logits(name, options, count):
    network = build(name, (3, 28, 28), 10, **options)
    assert parameters(network) == count
    assert network.eval()(torch.zeros(2, 3, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: build("small_alexnet", (784,), 10), r"input_shape is \(784,\)"),
        (
            lambda: build("small_inceptoin", (3, 28, 28), 10),
            "name 'small_inceptoin' is unknown; nearest: small_inception",
        ),
        (lambda: build("mlp", (3, 28, 28), 10), "nearest: mlp 1x512"),
    ],
)
def test_bad_input_names_the_argument_and_the_mend(call, says):
    with pytest.raises(ValueError, match=says):
        call()
