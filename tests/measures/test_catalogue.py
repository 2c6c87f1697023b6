"""The catalogue: every exact row by brute force, and how each is described."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from measures_cases import (
    CLIMBED,
    DRAWN,
    OF_THE_RUN,
    SAMPLED,
    SEARCHED,
    SPECTRAL,
    WIDE,
    dense,
    hessian,
    loss_at,
    outputs_at,
)
from scipy import optimize
from sklearn.metrics import davies_bouldin_score
from torch import nn

from genlib.measures import CATALOGUE, evaluate


def paths(network, p):
    """Σ over paths Π |w|^p, one path after the other; a bias is a path that begins at its unit."""
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    matrices = [np.abs(layer.weight.detach().numpy()) ** p for layer in linear]
    biases = [np.abs(layer.bias.detach().numpy()) ** p for layer in linear]
    total = 0.0
    for first in range(len(matrices)):
        widths = [range(m.shape[0]) for m in matrices[first:]]
        for units in itertools.product(*widths):
            product = biases[first][units[0]] + (matrices[0][units[0]].sum() if first == 0 else 0)
            for layer, (a, b) in enumerate(itertools.pairwise(units), first + 1):
                product = product * matrices[layer][b, a]
            total += product
    return total


def by_brute_force(network, initial, inputs, labels):
    W = [p.detach().numpy() for p in network.parameters() if p.ndim == 2]
    W0 = [p.detach().numpy() for p in initial.parameters() if p.ndim == 2]
    w, w0 = (nn.utils.parameters_to_vector(n.parameters()).detach().numpy() for n in (network, initial))
    logits = network(inputs).detach().numpy()
    rivals = [np.delete(row, label).max() for row, label in zip(logits, labels, strict=True)]
    margins = logits[np.arange(len(labels)), labels] - rivals
    g10, g5, d, m = np.percentile(margins, 10), np.percentile(margins, 5), len(W), len(labels)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p = p / p.sum(1, keepdims=True)
    frobenius = np.array([np.linalg.norm(a) for a in W])
    spec = np.array([np.linalg.norm(a, 2) for a in W])
    moved = np.array([np.linalg.norm(a - b) for a, b in zip(W, W0, strict=True)])
    rows = np.array([np.linalg.norm(a - b, axis=1).sum() for a, b in zip(W, W0, strict=True)])
    h, most = np.array([len(a) for a in W]), max(max(a.shape) for a in W)
    l3 = [(np.linalg.norm(a, 3, axis=1) ** 1.5).sum() ** (1 / 1.5) for a in W]
    l2_path, l1_path = paths(network, 2), paths(network, 1)
    pf, ps = np.prod(frobenius**2), np.prod(spec**2)
    longest = max(np.linalg.norm(x) for x in inputs.numpy())
    prefactor = (84 * longest * np.sqrt(h).sum() + np.sqrt(np.log(4 * h.max() ** 2 * d))) ** 2
    jacobians = [torch.autograd.functional.jacobian(network, x).numpy() for x in inputs]
    toward = [
        np.linalg.norm(np.delete(j[label] - j, label, 0)[np.delete(row, label).argmax()])
        for j, row, label in zip(jacobians, logits, labels, strict=True)
    ]
    curved, gradients = hessian(network, inputs, labels), sample_gradients(network, inputs, labels)
    g = gradients.mean(0)
    with np.errstate(divide="ignore"):  # where nothing moves the output, no input is far enough
        distances = margins / toward
    q = np.exp(initial(inputs).detach().numpy())
    q = q / q.sum(1, keepdims=True)
    features = network[:-1](inputs).detach().numpy()
    of_softmax = [(np.diag(s) - np.outer(s, s)) @ j for s, j in zip(p, jacobians, strict=True)]
    return {
        "parameters": len(w),
        "vc_dimension": len(w) * d * np.log(len(w)),
        "l2": np.linalg.norm(w),
        "l2_distance": np.linalg.norm(w - w0),
        "parameter_norm": (frobenius**2).sum(),
        "frobenius_distance": (moved**2).sum(),
        "spectral_distance": sum(np.linalg.norm(a - b, 2) ** 2 for a, b in zip(W, W0, strict=True)),
        "product_frobenius": np.log(pf),
        "product_spectral": np.log(ps),
        "sum_frobenius": d * pf ** (1 / d),
        "sum_spectral": d * ps ** (1 / d),
        "stable_rank": (frobenius**2 / spec**2).sum(),
        "path": np.log(l2_path),
        "l1_path": np.log(l1_path**2),
        "inverse_margin": g10**-2,
        "product_frobenius_margin": np.log(pf / g10**2),
        "product_spectral_margin": np.log(ps / g10**2),
        "sum_frobenius_margin": d * (pf / g10**2) ** (1 / d),
        "sum_spectral_margin": d * (ps / g10**2) ** (1 / d),
        "spectral_from_origin": np.log(ps / g10**2 * (frobenius**2 / spec**2).sum()),
        "spectral_from_start": np.log(ps / g10**2 * (moved**2 / spec**2).sum()),
        "spectral_origin": np.log(prefactor * ps / g10**2 * (frobenius**2 / spec**2).sum()),
        "spectral_start": np.log(prefactor * ps / g10**2 * (moved**2 / spec**2).sum()),
        "path_margin": np.log(l2_path / g10**2),
        "l1_path_margin": np.log(l1_path**2 / g10**2),
        "l1_max_margin": np.log(np.prod([np.abs(a).sum(1).max() ** 2 for a in W]) / g10**2),
        "l3_margin": np.log(np.prod(np.square(l3)) / g10**2),
        "neyshabur_l2": np.log(np.prod(4 * frobenius**2) / g5**2),
        "neyshabur_l1_path": np.log((2**d * l1_path) ** 2 / g5**2),
        "neyshabur_l2_path": np.log(np.prod(4 * h) * l2_path / g5**2),
        "neyshabur_spectral": np.log(np.prod(h * spec**2) / g5**2),
        "spectral_complexity": np.log(
            np.prod(spec) * ((rows / spec) ** (2 / 3)).sum() ** 1.5 * np.linalg.norm(inputs) / m / g10
        ),
        "frobenius_complexity": np.log(
            d * most**0.5 * np.prod(spec) * (moved**2 / spec**2).sum() ** 0.5 / g10 / m**0.5
        ),
        "cross_entropy": -np.log(p[np.arange(m), labels]).mean(),
        "negative_entropy": (p * np.log(p)).sum(1).mean(),
        "lipschitz_bound": 2 * np.log(lipschitz(W)) - 2 * np.log(g10),
        "confidence": (1 - p.max(1)).mean(),
        "function_distance": (p * np.log(p / q)).sum(1).mean(),
        "feature_rank": -effective_rank(features),
        "class_separation": davies_bouldin_score(features, labels.numpy()),
        "input_margin": np.percentile(distances, 10) ** -2,
        "jacobian_norm": np.mean([np.linalg.norm(j) for j in of_softmax]),
        "input_gradient": np.mean([np.linalg.norm(j) ** 2 for j in jacobians]),
        "hessian_trace": np.trace(curved),
        "gradient_variance": gradient_variance(network, inputs, labels),
        "first_gradient_variance": gradient_variance(initial, inputs, labels),
        "fisher_rao": fisher_rao(network, inputs, labels),
        **criteria(network, inputs, p, gradients, -np.log(p[np.arange(m), labels]).mean()),
        "batch_sharpness": g @ curved @ g / (g @ g),
        "relative_flatness": relative_flatness(network, curved),
        "loss_curvature": np.mean([(q[:, None] * (j - q @ j) ** 2).sum() for q, j in zip(p, jacobians, strict=True)]),
        "sam_sharpness": sam(network, inputs, labels),
    }


def lipschitz(W):
    """ECLipsE-Fast as its paper writes it, with inverses and without logarithms."""
    X = np.eye(W[0].shape[1])
    for w in W[:-1]:
        m = w @ np.linalg.inv(X) @ w.T
        factor = 2 / np.linalg.eigvalsh(m).max()
        X = factor * np.eye(len(w)) - factor**2 / 4 * m
    return np.linalg.eigvalsh(W[-1] @ np.linalg.inv(X) @ W[-1].T).max() ** 0.5


def effective_rank(features):
    p = np.linalg.svd(features - features.mean(0), compute_uv=False) ** 2
    p = p[p > 0] / p.sum()
    return np.exp(-(p * np.log(p)).sum())


def sample_gradients(network, inputs, labels):
    w = nn.utils.parameters_to_vector(network.parameters()).detach()
    gradients = [
        torch.autograd.functional.jacobian(lambda v, x=x, y=y: loss_at(network, v, x, y), w)
        for x, y in zip(inputs.split(1), labels.split(1), strict=True)
    ]
    return torch.stack(gradients).numpy()


def gradient_variance(network, inputs, labels):
    return np.var(sample_gradients(network, inputs, labels), axis=0).sum()


def fisher_rao(network, inputs, labels):
    w = nn.utils.parameters_to_vector(network.parameters()).detach().numpy()
    return np.square(sample_gradients(network, inputs, labels) @ w).mean()


def criteria(network, inputs, p, gradients, loss):
    """By the matrices of all parameters; the evidence where it is largest on a grid."""
    w = nn.utils.parameters_to_vector(network.parameters()).detach()
    outputs = torch.autograd.functional.jacobian(lambda v: outputs_at(network, v, inputs), w).numpy()
    m, size = len(p), len(w)
    G = sum(j.T @ (np.diag(q) - np.outer(q, q)) @ j for q, j in zip(p, outputs, strict=True)) / m
    inverse = np.linalg.inv(G + 1e-3 * np.eye(size))

    def evidence(t):
        determinant = np.linalg.slogdet(m * G + np.exp(t) * np.eye(size))[1]
        return m * loss + np.exp(t) * (w @ w).item() / 2 + (determinant - size * t) / 2

    least = optimize.minimize_scalar(evidence, (-5, 5), options={"xtol": 1e-8})
    moment = gradients.T @ gradients / m
    return {"soft_rank": np.trace(G @ inverse), "tic": np.trace(moment @ inverse), "log_evidence": least.fun}


def relative_flatness(network, curved):
    W = network[-1].weight.detach().numpy()
    size, biases = W.size, len(W)
    blocks = curved[-size - biases : -biases, -size - biases : -biases].reshape(*W.shape, *W.shape)
    return (W @ W.T * np.einsum("ksls->kl", blocks)).sum()


def sam(network, inputs, labels):
    w = nn.utils.parameters_to_vector(network.parameters()).detach().requires_grad_()
    at_rest = loss_at(network, w, inputs, labels)
    (gradient,) = torch.autograd.grad(at_rest, w)
    return (loss_at(network, w + 0.05 * gradient / gradient.norm(), inputs, labels) - at_rest).item()


def test_every_exact_row_equals_its_twin(measured):
    network, initial, inputs, labels, table = measured
    twin = by_brute_force(network, initial, inputs, labels)
    assert set(twin) == set(CATALOGUE) - DRAWN - SAMPLED - SEARCHED - CLIMBED - SPECTRAL - OF_THE_RUN - WIDE
    found = table.loc[list(twin), "value"]
    np.testing.assert_allclose(found, list(twin.values()), rtol=1e-9)
    assert (table.loc[list(twin), "standard_error"] == 0).all()


def test_the_fisher_rao_norm_without_biases_is_what_its_layers_make_of_the_outputs():
    # (L+1)² mean ⟨∂ℓ/∂f, f⟩² for L hidden layers of ReLU (Liang et al. 2019), and ∂ℓ/∂f = p − y.
    generator = torch.Generator().manual_seed(0)
    for depth in (1, 2, 3):
        network = dense((5, *[6] * depth, 3), seed=depth)
        with torch.no_grad():
            for layer in network[::2]:
                layer.bias.zero_()
        inputs = torch.randn(40, 5, generator=generator, dtype=torch.float64)
        labels = torch.randint(3, (40,), generator=generator)
        logits = network(inputs).detach()
        slopes = logits.softmax(1) - nn.functional.one_hot(labels, 3)
        expected = (depth + 1) ** 2 * (slopes * logits).sum(1).square().mean()
        found = evaluate(network, (inputs, labels), names="fisher_rao").loc["fisher_rao", "value"]
        assert found == pytest.approx(expected.item(), rel=1e-9)


def test_the_catalogue_is_described():
    keys = set(re.findall(r"@\w+{([^,]+),", (Path(__file__).parents[2] / "chapters/references.bib").read_text("utf-8")))
    for name, measure in CATALOGUE.items():
        assert name == measure.name
        assert measure.citation in keys, measure.citation
        for text in (measure.symbol, measure.formula):
            assert text.count("{") == text.count("}") and text.count(r"\big(") == text.count(r"\big)")
    assert len(CATALOGUE) >= 48


def test_the_catalogue_is_read_only():
    with pytest.raises(TypeError):
        CATALOGUE["l2"] = CATALOGUE["path"]
