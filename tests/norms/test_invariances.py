"""What rescaling and reordering units change of a norm, and what they don't."""

import math

import torch
from cases import drawn, permuted, rescaled
from hypothesis import given, settings
from hypothesis import strategies as st

from genlib import models, norms


@settings(max_examples=15)
@given(
    depth=st.integers(1, 3),
    width=st.integers(1, 6),
    seed=st.integers(0, 99),
    logs=st.lists(st.floats(-3, 3), min_size=3, max_size=3),
)
def test_rescaling_units_leaves_path_norms_and_rescaling_layers_products(depth, width, seed, logs):
    network = drawn(models.mlp(4, 3, width=width, depth=depth), seed)
    generator = torch.Generator().manual_seed(seed)
    by_layer = [torch.full((width,), math.exp(log)) for log in logs]
    by_unit = [c * torch.randn(width, generator=generator).exp() for c in by_layer]
    for p in (1, 2):
        path = norms.log_path_norm(network, input_shape=(4,), p=p)
        torch.testing.assert_close(
            norms.log_path_norm(rescaled(network, by_unit), input_shape=(4,), p=p), path, rtol=0, atol=1e-4
        )
    other = rescaled(network, by_layer)
    for norm in (
        norms.frobenius_norms,
        lambda n: norms.spectral_norms(n, input_shape=(4,)),
        lambda n: norms.group_norms(n, 2, 1),
    ):
        torch.testing.assert_close(norms.log_product(norm(other)), norms.log_product(norm(network)), rtol=0, atol=1e-4)


def test_rescaling_units_changes_products():
    network = drawn(models.mlp(4, 3, width=5, depth=2))
    other = rescaled(network, [torch.arange(1.0, 6), torch.arange(1.0, 6)])
    assert norms.log_product(norms.frobenius_norms(other)) > norms.log_product(norms.frobenius_norms(network)) + 0.1


@settings(max_examples=15)
@given(seed=st.integers(0, 99), width=st.integers(2, 6))
def test_the_order_of_units_does_not_matter(seed, width):
    network = drawn(models.mlp(4, 3, width=width, depth=2), seed)
    other = permuted(network, torch.randperm(width, generator=torch.Generator().manual_seed(seed)))
    for measure in (
        norms.frobenius_norms,
        lambda n: norms.group_norms(n, 2, 1),
        lambda n: norms.stable_ranks(n, input_shape=(4,)),
        lambda n: norms.path_norm(n, input_shape=(4,)),
    ):
        torch.testing.assert_close(measure(other), measure(network), rtol=1e-4, atol=0)
