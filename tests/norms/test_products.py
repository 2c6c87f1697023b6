"""Products over layers, by hand, as logarithms that neither overflow nor underflow."""

import math

import pytest
import torch
from cases import drawn
from norms_cases import Block

from genlib import models, norms
from genlib.network import Network


def test_spectral_complexity_by_hand():
    start, end = (models.mlp(6, 3, width=5, depth=2, seed=seed) for seed in range(2))
    weights = [
        (e.weight.detach().double(), s.weight.detach().double()) for e, s in zip(end[1::2], start[1::2], strict=True)
    ]
    sigma = [torch.linalg.svdvals(w)[0].item() for w, _ in weights]
    moved = [(w - w0).norm(dim=1).sum().item() for w, w0 in weights]
    by_hand = math.prod(sigma) * sum((m / s) ** (2 / 3) for m, s in zip(moved, sigma, strict=True)) ** 1.5
    measured = norms.spectral_complexity(end, start, input_shape=(6,))
    assert measured.dtype == torch.float64
    assert measured.item() == pytest.approx(by_hand, rel=1e-5)
    squares = [(w - w0).square().sum().item() for w, w0 in weights]
    by_hand = 3 * math.prod(sigma) * (6 * sum(q / s**2 for q, s in zip(squares, sigma, strict=True))) ** 0.5
    measured = norms.log_frobenius_complexity(end, start, input_shape=(6,))
    assert measured.item() == pytest.approx(math.log(by_hand), rel=1e-5)


def test_gaussian_noise_is_as_large_as_the_frobenius_complexity_takes_it():
    """E‖U‖₂ ≤ σ(√outputs + √inputs) ≤ 2σ√h with h the larger of both, and not with h the number of outputs."""
    generator = torch.Generator().manual_seed(0)
    for outputs, inputs in ((10, 400), (400, 10), (40, 40)):
        noise = torch.randn(50, outputs, inputs, generator=generator)
        mean = torch.linalg.matrix_norm(noise, 2).mean().item()
        assert mean <= outputs**0.5 + inputs**0.5 <= 2 * max(outputs, inputs) ** 0.5
        assert mean > 2 * outputs**0.5 or inputs <= outputs


def test_complexities_of_a_stack():
    ends, starts = ([drawn(Block(), seed) for seed in seeds] for seeds in (range(3), range(5, 8)))
    for complexity in (norms.log_spectral_complexity, norms.log_frobenius_complexity):
        together = complexity(Network.stack(ends), Network.stack(starts), input_shape=(3, 5, 5))
        each = [complexity(end, start, input_shape=(3, 5, 5)) for end, start in zip(ends, starts, strict=True)]
        torch.testing.assert_close(together, torch.stack(each), rtol=1e-5, atol=0)


def test_products_of_many_layers_neither_overflow_nor_underflow():
    for scale in (1e-20, 1e20):
        product = norms.log_product(torch.full((400,), scale))
        assert product.item() == pytest.approx(400 * math.log(scale), rel=1e-6)
    assert norms.log_product(torch.tensor([1.0, 0.0])) == -math.inf
