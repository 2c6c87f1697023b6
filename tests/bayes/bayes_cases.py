"""Models whose learning coefficient is known, and what the posterior gives at a finite temperature, by quadrature."""

import numpy as np
import torch
from torch import nn


def regression(seed=0, samples=60, d=4):
    """A linear model at its least squares, and the eigenvalues of its Hessian."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(0.7, 1.5, d, dtype=torch.float64)
    inputs = scales * torch.randn(samples, d, generator=generator, dtype=torch.float64)
    targets = inputs.sum(1, keepdim=True) + torch.randn(samples, 1, generator=generator, dtype=torch.float64)
    network = nn.Sequential(nn.Linear(d, 1, bias=False).double())
    with torch.no_grad():
        network[0].weight.copy_(torch.linalg.lstsq(inputs, targets).solution.T)
    return network, inputs, targets, torch.linalg.eigvalsh(2 * inputs.T @ inputs / samples)


def product(*matrices):
    """A chain of linear layers with these weights, and inputs by which its mean squared error is ‖BA − T‖²/rows."""
    layers = [nn.Linear(w.shape[1], w.shape[0], bias=False).double() for w in matrices]
    for layer, w in zip(layers, matrices, strict=True):
        layer.weight.data = w.double().clone()
    inputs = torch.eye(matrices[0].shape[1], dtype=torch.float64).repeat(3, 1) * matrices[0].shape[1] ** 0.5
    return nn.Sequential(*layers), inputs


def aoyagi_watanabe(inputs, outputs, hidden, rank):
    """λ and its multiplicity of reduced-rank regression (Aoyagi & Watanabe 2005, theorem 1), where no layer is wide."""
    M, N, s = inputs, outputs, hidden + rank
    assert N + rank <= M + hidden and M + rank <= N + hidden and s <= M + N
    odd = (M + N + s) % 2
    return (odd - s**2 - M**2 - N**2 + 2 * s * (M + N) + 2 * M * N) / 8, 1 + odd


def of_two_weights(t, gamma, target=0.0, center=0.0):
    """E[t(ab − target)²] where (a, b) has the density exp(−t(ab − target)² − γ/2 ‖(a, b) − center‖²).

    b is integrated by hand, a on a grid, finer next to zero.
    """
    s = np.exp(np.linspace(-30, 5, 40_001))
    a, weight = np.concatenate([-s[::-1], s]), np.concatenate([s[::-1], s])
    # In b: t(ab − T)² + γ/2 (b − c)² = (P/2)(b − m)² + rest, P = 2ta² + γ
    precision = 2 * t * a**2 + gamma
    mean = (2 * t * a * target + gamma * center) / precision
    rest = t * target**2 + gamma / 2 * center**2 - precision * mean**2 / 2 + gamma / 2 * (a - center) ** 2
    density = weight * np.exp(-(rest - rest.min())) / np.sqrt(precision)
    rise = t * ((a * mean - target) ** 2 + a**2 / precision)
    return (density * rise).sum() / density.sum()


def of_two_by_two(t, gamma):
    """E[t ‖BA‖²] of 2 × 2 matrices of density exp(−t‖BA‖² − γ/2 (‖A‖² + ‖B‖²)).

    B is integrated by hand, A over its singular values, of the density |s₁² − s₂²|.
    """
    s = np.exp(np.linspace(-14, 3, 3001)) / gamma**0.5
    one = s * np.exp(-gamma * s**2 / 2) / (gamma + 2 * t * s**2)
    share = 2 * t * s**2 / (gamma + 2 * t * s**2)
    density = np.abs(s[:, None] ** 2 - s**2) * one[:, None] * one
    return (density * (share[:, None] + share)).sum() / density.sum()
