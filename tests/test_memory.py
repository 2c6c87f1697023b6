"""No kernel takes more memory than is said of it, however many the draws, the steps, and the samples."""

import pytest
import torch
from kernels import case, kernels
from memory import BOUNDS, Live, eigenvalue_memory, jacobian_memory, measured, peak

from genlib import margins, sensitivity
from genlib.network import chunks, objective
from genlib.sensitivity import jacobians

OF = {name: bound for bounds in BOUNDS.values() for name, bound in bounds.items()}


def test_live_sees_what_lives_at_once():
    def three_of_a_thousand_floats():
        for _ in range(10):
            a = torch.zeros(1000) + torch.ones(1000)
            a.add_(1)
            a.view(10, 100)

    assert peak(three_of_a_thousand_floats) == 4 * 4000  # the last a is there while the next is made


def test_live_sees_what_a_backward_pass_keeps():
    x = torch.ones(1000, requires_grad=True)
    with Live() as live:
        y = x.exp()
        assert live.peak == 4000
        (y.exp() + y.sin()).sum().backward()
    assert live.peak >= 4 * 4000


@pytest.mark.parametrize("name", OF)
def test_memory_is_what_is_said(name):
    parameters, activations = measured(name)
    assert parameters <= OF[name][0]
    assert activations <= max(OF[name][1], 0.01)


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize(("k", "at_most"), [(1, 16), (8, 30), (10, 30), (20, 50)])
def test_largest_eigenvalues_take_as_many_vectors_as_are_said(k, at_most, chunk_size):
    parameters = eigenvalue_memory(k, chunk_size)
    assert at_most - 4 <= parameters <= at_most


@pytest.mark.parametrize("norm", ["frobenius", "spectral"])
@pytest.mark.parametrize("of", ["probabilities", "logits", ("probabilities", "logits")])
def test_jacobians_of_many_classes_stay_within_their_limit(of, norm, monkeypatch):
    # 1,000 classes: of these a square matrix alone is 3.8 MB
    monkeypatch.setattr(jacobians, "_JACOBIAN_BYTES", 2 * 2**20)
    assert jacobian_memory(of, norm, 1_000) <= 2


BY_CHUNKS = {
    **{name: kernels()[name] for group in ("perturbed weights", "curvature") for name in BOUNDS[group]},
    "output_margins": lambda n, s, x, y: margins.output_margins(n, x, y, chunk_size=24),
    "layer_margins": lambda n, s, x, y: margins.layer_margins(n, x, y, chunk_size=24),
    "input_margins": lambda n, s, x, y: margins.input_margins(n, x, y, chunk_size=24),
    "jacobian_norms": lambda n, s, x, y: sensitivity.jacobian_norms(n, x, chunk_size=24),
    "mean_squared_jacobian_norm": lambda n, s, x, y: sensitivity.mean_squared_jacobian_norm(n, x, chunk_size=24),
    "transitions": lambda n, s, x, y: sensitivity.transitions(n, x, chunk_size=24),
}


@pytest.mark.parametrize("name", BY_CHUNKS)
def test_memory_does_not_grow_with_chunks(name, monkeypatch):
    monkeypatch.setattr(objective, "samples_at_once", lambda *_: 24)
    network, initial, inputs, labels = case("convolutional")
    few, many = (
        peak(BY_CHUNKS[name], network, initial, inputs.repeat(times, 1, 1, 1), labels.repeat(times)) for times in (2, 5)
    )
    numbers_a_sample = 8  # of four bytes: results and logits, one number each, or one a layer
    assert many - few <= 4 * numbers_a_sample * (5 - 2) * len(labels)


@pytest.mark.parametrize("name", ["expected_sharpness", "expected_sharpness by weights", "worst_case_sharpness",
                                  "keskar_sharpness", "pac_bayes_bound", "sharpness_kl", "line", "plane", "surface",
                                  "basin_radius"])  # fmt: skip
def test_memory_does_not_grow_with_draws_or_steps(name, monkeypatch):
    monkeypatch.setattr(chunks, "_NUMBERS", 1)  # what lies side by side beyond one
    network, initial, inputs, labels = case("dense")
    few, many = (
        peak(kernels(draws=draws, steps=steps)[name], network, initial, inputs, labels)
        for draws, steps in ((8, 3), (24, 9))
    )
    assert many <= few + 4 * 24 * 24
