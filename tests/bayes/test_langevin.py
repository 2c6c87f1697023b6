"""The sampler: the law of its steps on a normal distribution, and one way through a network beside another."""

import math

import numpy as np
import pytest
import torch
from cases import CASES, Untraceable, data, dense
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import solve_discrete_lyapunov
from torch import nn

from genlib.bayes.langevin import Chains
from genlib.network.objective import Objective


def chains_of(network, inputs, labels, loss, count=3, chunk_size=None, seed=0, nbeta=5.0, gamma=2.0):
    objective = Objective.of(network, inputs, labels, loss, chunk_size)
    generator = torch.Generator().manual_seed(seed)
    return Chains(objective, loss, count, inverse_temperature=nbeta, localization=gamma, generator=generator)


@settings(max_examples=30, deadline=None)
@given(
    nbeta=st.floats(1e-2, 1e3), gamma=st.floats(1e-2, 1e3), stride=st.sampled_from([0.5, 1.0, 1.9]), seed=st.integers(0)
)
def test_the_variance_on_a_normal_distribution_is_exact_at_any_stable_step(nbeta, gamma, stride, seed):
    # L = (w − 1)², so that U'' = 2nβ + γ; a step takes (w, p) to A(w, p) + Bz, whose law S = ASAᵀ + BBᵀ is solved for.
    network = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(network.weight)
    curvature = 2 * nbeta + gamma
    size = stride / math.sqrt(curvature)

    def after(w, p):
        chains = chains_of(
            network, torch.ones(1, 1).double(), torch.ones(1).double(), "mse", 1, seed=seed % 2**32, nbeta=nbeta,
            gamma=gamma,
        )  # fmt: skip
        chains._momenta["weight"].fill_(p)
        chains.weights["weight"].add_(w)
        chains.losses, chains.gradient = chains._evaluate(chains.weights)
        state = chains._generator.get_state()
        chains.step(size)
        chains._generator.set_state(state)
        noise = torch.randn(1, 1, 1, generator=chains._generator, dtype=torch.float64).item()
        return np.array([chains.weights["weight"].item() - 1, chains._momenta["weight"].item()]), noise

    moved, noise = after(0, 0)
    A = np.stack([after(1, 0)[0] - moved, after(0, 1)[0] - moved], 1)
    law = solve_discrete_lyapunov(A, np.outer(moved, moved) / noise**2)
    assert law[0, 0] * curvature == pytest.approx(1, rel=1e-6)


WAYS = {
    "closed form": ("cross_entropy", lambda network: network, None),
    "in chunks": ("cross_entropy", lambda network: network, 5),
    "one by one": (nn.CrossEntropyLoss(), lambda network: network, None),
    "one by one in chunks": (nn.CrossEntropyLoss(), lambda network: network, 5),
    "side by side": (nn.CrossEntropyLoss(), lambda network: network, 36),
    "untraceable": ("cross_entropy", lambda network: Untraceable(*network), None),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_through_a_network_is_the_same(way):
    loss, changed, chunk_size = WAYS[way]
    network, (inputs, labels) = dense(), data()
    chains = chains_of(changed(network), inputs, labels, loss, chunk_size=chunk_size)
    for _ in range(3):
        chains.step(0.1)
    for i in range(3):
        weights = [w[i].clone().requires_grad_() for w in chains.weights.values()]
        names = [name for name, _ in network.named_parameters()]
        logits = torch.func.functional_call(network, dict(zip(names, weights, strict=True)), (inputs,))
        value = nn.functional.cross_entropy(logits, labels)
        gradient = torch.autograd.grad(value, weights)
        torch.testing.assert_close(chains.losses[i], value.detach())
        for part, expected in zip(chains.gradient.values(), gradient, strict=True):
            torch.testing.assert_close(part[i], expected)
        out = sum(((w.detach() - p) * g).sum() for w, p, g in zip(weights, network.parameters(), gradient, strict=True))
        torch.testing.assert_close(chains.slopes[i], out.detach())


def test_chains_move_by_themselves_and_of_convolutions_too():
    network, inputs, labels = CASES["residual"]()
    chains = chains_of(network, inputs, labels, "cross_entropy")
    chains.step(0.1)
    assert len(set(chains.losses.tolist())) == 3
