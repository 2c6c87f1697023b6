"""The radius of a basin: where the loss has risen by the increase, along random directions."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, LOOKS, HostReads, data, first_logit, flat, linear, rescaled
from hypothesis import given, settings
from hypothesis import strategies as st
from landscape_cases import cross_entropy, moved
from torch.func import functional_call

from genlib.landscape import basin_radius, filter_normalized_directions
from genlib.network import Network, chunks


def unit_directions(network, count, seed):
    """Gaussian directions of unit length, drawn parameter by parameter."""
    generator, directions = torch.Generator().manual_seed(seed), []
    for _ in range(count):
        draw = {n: torch.randn(w.shape, generator=generator, dtype=w.dtype) for n, w in network.named_parameters()}
        length = torch.cat([d.flatten() for d in draw.values()]).norm()
        directions.append({name: d / length for name, d in draw.items()})
    return directions


def test_the_radius_of_a_parabola_is_its_root():
    network, (inputs, labels) = linear(), data()
    found = basin_radius(
        network, inputs, labels, increase=0.3, directions=20, loss="mse", generator=torch.Generator().manual_seed(2)
    )

    def squares(params):
        return (functional_call(network, params, (inputs,)) - F.one_hot(labels, 4)).square().mean()

    at_rest = squares(dict(network.named_parameters()))
    for radius, direction in zip(found.radii, unit_directions(network, 20, 2), strict=True):
        plus, minus = (
            squares(dict(moved(network, direction).named_parameters())),
            squares(dict(moved(network, direction, -1).named_parameters())),
        )
        a, b = (plus + minus) / 2 - at_rest, (plus - minus) / 2
        root = (-b + (b**2 + 4 * a * 0.3).sqrt()) / (2 * a)
        assert abs(radius / root - 1) < 0.01
    assert found.unbounded == 0


@settings(max_examples=10)
@given(st.floats(1e-3, 10), st.floats(0.1, 100), st.integers(0, 5))
def test_the_radius_along_a_slope_or_none(increase, largest, seed):
    network, (inputs, labels) = linear(), data()
    found = basin_radius(
        network, inputs, labels, increase=increase, directions=8, largest=largest, loss=first_logit,
        generator=torch.Generator().manual_seed(seed), tolerance=1e-3,
    )  # fmt: skip
    at_rest = first_logit(network(inputs), labels).mean()
    for radius, direction in zip(found.radii, unit_directions(network, 8, seed), strict=True):
        slope = first_logit(moved(network, direction)(inputs), labels).mean() - at_rest
        expected = increase / slope if slope > 0 else math.inf
        if expected < 0.999 * largest:
            assert abs(radius / expected - 1) < 1e-3
        elif expected > 1.001 * largest:
            assert radius == torch.inf
    assert found.unbounded == found.radii.isinf().sum() and found.largest == largest


@pytest.mark.parametrize("filter_normalized", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_loss_has_risen_by_the_increase_at_the_radius(name, filter_normalized):
    network, inputs, labels = CASES[name]()
    found = basin_radius(
        network, inputs, labels, increase=0.05, directions=6, tolerance=1e-6, filter_normalized=filter_normalized,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    if filter_normalized:
        directions = filter_normalized_directions(network, 6, generator=torch.Generator().manual_seed(1))
    else:
        directions = unit_directions(network, 6, 1)
    assert found.radii.isfinite().all()
    for radius, direction in zip(found.radii, directions, strict=True):
        rise = cross_entropy(moved(network, direction, radius), inputs, labels) - cross_entropy(network, inputs, labels)
        torch.testing.assert_close(rise, torch.full_like(rise, 0.05), rtol=1e-4, atol=0)


def test_the_radius_of_errors_brackets_the_jump():
    network, inputs, labels = CASES["dense"]()
    labels = network(inputs).argmax(1)
    found = basin_radius(network, inputs, labels, increase=0.2, directions=6, loss="error", tolerance=1e-3)
    again = torch.Generator().manual_seed(int.from_bytes(b"noise"))
    for radius in found.radii:
        draw = {n: torch.randn(w.shape, generator=again, dtype=w.dtype) for n, w in network.named_parameters()}
        length = torch.cat([d.flatten() for d in draw.values()]).norm()
        below, above = (
            (moved(network, draw, radius * factor / length)(inputs).argmax(1) != labels).double().mean()
            for factor in (0.999, 1.001)
        )
        assert below < 0.2 <= above


@pytest.mark.parametrize("filter_normalized", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_radii_of_a_stack_side_by_side_and_in_parts(name, filter_normalized, monkeypatch):
    networks = [CASES[name](seed=seed)[0] for seed in (0, 1)]
    _, inputs, labels = CASES[name]()

    def radii(network, **options):
        return basin_radius(
            network, inputs, labels, increase=0.1, directions=5, largest=20.0, filter_normalized=filter_normalized,
            **options,
        )  # fmt: skip

    each = torch.stack([radii(network).radii for network in networks])
    stacked = radii(Network.stack(networks))
    torch.testing.assert_close(stacked.radii, each)
    assert stacked.unbounded.shape == stacked.largest.shape == (2,)
    for chunk_size in (25, 12, 5):
        torch.testing.assert_close(radii(networks[0], chunk_size=chunk_size).radii, each[0])
    numbers = sum(w.numel() for w in networks[0].parameters())
    monkeypatch.setattr(chunks, "_NUMBERS", 2 * numbers)  # two directions at a time
    parts = radii(networks[0])
    torch.testing.assert_close(parts.radii, each[0])


@settings(max_examples=10)
@given(st.lists(st.floats(0.2, 5), min_size=1, max_size=2))
def test_the_filter_normalized_radius_does_not_see_the_scale_of_layers(factors):
    network, inputs, labels = CASES["dense"]()
    other = rescaled(network, [torch.full((6,), c, dtype=torch.float64) for c in factors])
    options = {"increase": 0.1, "directions": 5, "filter_normalized": True}
    before, after = (basin_radius(n, inputs, labels, **options).radii for n in (network, other))
    torch.testing.assert_close(before, after)


def test_the_radius_sees_the_scale_of_layers():
    network, inputs, labels = CASES["dense"]()
    other = rescaled(network, [torch.full((6,), 20.0, dtype=torch.float64)])
    before, after = (basin_radius(n, inputs, labels, increase=0.1, directions=20).radii for n in (network, other))
    assert after.median() < before.median() / 2


def test_a_loss_that_never_rises_is_unbounded():
    network, inputs, labels = CASES["dense"]()
    found = basin_radius(
        network, inputs, labels, increase=1.0, directions=3, loss=lambda logits, labels: 0 * logits[:, 0]
    )
    torch.testing.assert_close(found.largest, 10 * flat(network).norm())
    assert found.radii.isinf().all() and found.unbounded == 3


def test_a_loss_that_is_not_finite_has_risen():
    network, inputs, labels = linear(), *data()
    edge = first_logit(network(inputs), labels).max().item() + 0.1

    def walled(logits, labels):
        value = first_logit(logits, labels)
        return torch.where(value < edge, 0 * value, torch.nan)

    found = basin_radius(network, inputs, labels, increase=1e6, directions=10, loss=walled, tolerance=1e-3)
    assert found.radii.isfinite().any()
    for radius, direction in zip(found.radii, unit_directions(network, 10, int.from_bytes(b"noise")), strict=True):
        if radius.isfinite():
            below, above = (
                first_logit(moved(network, direction, radius * f)(inputs), labels).max() for f in (0.999, 1.001)
            )
            assert below < edge <= above


def test_the_cost_is_counted():
    network, inputs, labels = CASES["residual"]()
    passes = []
    network.register_forward_hook(lambda *_: passes.append(1))
    found = basin_radius(network, inputs, labels, increase=0.1, directions=7)
    assert found.passes == len(passes) - LOOKS - 1  # what runs is looked at besides, for the hook hides the graph
    assert 7 * 4 < found.passes < 7 * 15


def test_a_search_reads_once_a_step():
    network, inputs, labels = CASES["dense"]()

    def reads(directions):
        with HostReads() as mode:
            found = basin_radius(network, inputs, labels, increase=0.1, directions=directions)
        return mode.count - (found.passes - 1) / directions

    assert reads(4) == reads(12)
