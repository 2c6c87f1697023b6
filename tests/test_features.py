"""The features before the last layer, their effective rank, and how far classes lie apart in them."""

import copy

import numpy as np
import pytest
import torch
from cases import Residual, Untraceable, drawn, unchanged
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import davies_bouldin_score
from torch import nn

from genlib import features, models
from genlib.network import Network


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Tokens(nn.Module):
    """Logits by name, of the first token."""

    def __init__(self):
        super().__init__()
        self.each, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return {"logits": self.head(input=torch.tanh(self.each(x))[:, 0])}


CASES = {  # a network, the shape of a sample, and its features by hand
    "dense": (lambda: models.mlp(5, 4, width=7, depth=2, seed=0), (5,), lambda m, x: m[:-1](x)),
    "residual": (
        lambda: drawn(Residual()), (3, 4, 4),
        lambda m, x: torch.relu((h := torch.relu(m.first(x))) + m.norm(m.second(h))).mean((2, 3)),
    ),
    "untraceable": (
        lambda: Untraceable(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), (4,),
        lambda m, x: m.layers[:2](x),
    ),
    "tokens": (Tokens, (2, 4), lambda m, x: torch.tanh(m.each(x))[:, 0]),
    "one layer": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 2)), (3, 2), lambda m, x: x.flatten(1)),
    "a convolution": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.Flatten()), (2, 4, 4),
        lambda m, x: m[:2](x).flatten(1),
    ),
    "one output": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1), nn.Flatten(0)), (4,),
                   lambda m, x: m[:2](x)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_features_are_what_goes_into_the_last_layer(name):
    torch.manual_seed(0)
    build, shape, by_hand = CASES[name]
    network, inputs = build().double().eval(), normal(9, *shape)
    with unchanged(network, inputs):
        for chunk_size in (1024, 4):
            found = features.last_features(network, inputs, chunk_size=chunk_size)
            torch.testing.assert_close(found, by_hand(network, inputs).detach())
    if name != "untraceable":  # vmap doesn't follow it
        other = copy.deepcopy(network)
        next(other.parameters()).data.mul_(0.5)
        stack = features.last_features(Network.stack([network, other]), inputs)
        torch.testing.assert_close(stack[1], by_hand(other, inputs).detach())
        assert features.effective_rank(stack).shape == (2,)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.first(x) + self.second(x)


class Normalizing(nn.Module):
    """Returns features, too, which it scales once the logits have been taken."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x):
        z = self.body(x)
        logits = self.head(z)
        return {"logits": logits, "features": z.div_(z.norm(dim=1, keepdim=True))}


@pytest.mark.parametrize(
    ("network", "inputs", "message"),
    [
        (
            nn.Sequential(nn.Linear(4, 3), nn.Tanh()),
            normal(5, 4),
            "outputs aren't those of a dense or convolution",
        ),
        (Normalizing(), normal(5, 4), "outputs aren't those of a dense or convolution"),
        (nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True)), normal(5, 4), "outputs aren't those of a dense"),
        (Twice(), normal(5, 4), "outputs aren't those of a dense or convolution"),
        (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), normal(5, 4), "BatchNorm in training mode"),
        (
            nn.Linear(4, 3),
            torch.full((5, 4), torch.nan, dtype=torch.float64),
            "network: its output on these data is not finite",
        ),
        (nn.Linear(4, 3), normal(0, 4), "inputs is empty"),
    ],
)
def test_features_that_are_not_known_are_refused(network, inputs, message):
    with pytest.raises(ValueError, match=message):
        features.last_features(network.double(), inputs)


@settings(max_examples=30)
@given(samples=st.integers(3, 12), units=st.integers(2, 12), scale=st.floats(1e-30, 1e30), seed=st.integers(0, 99))
def test_the_effective_rank_counts_directions(samples, units, scale, seed):
    x = normal(samples, units, seed=seed)
    sigma = np.linalg.svd((x - x.mean(0)).numpy(), compute_uv=False)
    p = sigma[: min(samples - 1, units)] ** 2 / (sigma**2).sum()
    expected = np.exp(-(p * np.log(p)).sum())
    found = features.effective_rank(x)
    assert found.item() == pytest.approx(expected, rel=1e-9)
    assert 1 - 1e-9 <= found.item() <= min(samples - 1, units) + 1e-9
    torch.testing.assert_close(features.effective_rank(scale * x + scale), found, rtol=1e-6, atol=0)
    turn = torch.linalg.qr(normal(units, units, seed=seed + 1)).Q
    torch.testing.assert_close(features.effective_rank(x @ turn), found)


def test_equal_directions_count_fully_and_a_single_one_is_one():
    signs = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert features.effective_rank(signs).item() == pytest.approx(2)
    assert features.effective_rank(signs[:, :1].expand(-1, 5)).item() == pytest.approx(1)
    with pytest.raises(ValueError, match="features are the same for all samples"):
        features.effective_rank(torch.full((4, 3), 0.1))


@settings(max_examples=30)
@given(samples=st.integers(6, 20), units=st.integers(1, 5), classes=st.integers(2, 4), seed=st.integers(0, 99))
def test_class_separation_is_the_index_of_davies_and_bouldin(samples, units, classes, seed):
    x, labels = normal(samples, units, seed=seed), torch.arange(samples) % classes * 3
    found = features.class_separation(x, labels)
    assert found.item() == pytest.approx(davies_bouldin_score(x.numpy(), labels.numpy()), rel=1e-6)
    assert features.class_separation(7 * x + 3, labels).item() == pytest.approx(found.item(), rel=1e-9)
    torch.testing.assert_close(features.class_separation(torch.stack([x, 2 * x]), labels), found.expand(2))


def test_classes_that_do_not_lie_apart_are_refused():
    with pytest.raises(ValueError, match="labels are all the same"):
        features.class_separation(normal(4, 2), torch.zeros(4).long())
    with pytest.raises(ValueError, match="two classes have the same mean"):
        features.class_separation(torch.zeros(4, 2), torch.arange(4) % 2)


@settings(max_examples=30)
@given(samples=st.integers(6, 120), units=st.integers(1, 5), seed=st.integers(0, 99), single=st.booleans())
def test_what_differs_by_rounding_alone_is_the_same(samples, units, seed, single):
    """Of equal rows in another order each class has the same mean, though not to the last digit."""
    dtype, labels = (torch.float32 if single else torch.float64), torch.arange(samples) % 3
    x = normal(samples, units, seed=seed).to(dtype)
    constant = (x[:1] * (1 + torch.finfo(dtype).eps * torch.randint(-2, 3, (samples, 1)))).to(dtype)
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    alike, of_two = torch.cat([x, x[order]]), torch.arange(2).repeat_interleave(samples)
    with pytest.raises(ValueError, match="features are the same for all samples"):
        features.effective_rank(constant)
    for rows, classes in ((constant, labels), (alike, of_two)):
        with pytest.raises(ValueError, match="two classes have the same mean"):
            features.class_separation(rows, classes)


def test_a_network_that_tells_no_input_apart_has_neither_rank_nor_classes():
    """Rows of one matrix product may differ by rounding where the inputs are equal."""
    network, labels = models.mlp(6, 3, width=9, depth=2, seed=0), torch.arange(101) % 3
    found = features.last_features(network, torch.ones(101, 6), chunk_size=7)
    for refused in (lambda: features.effective_rank(found), lambda: features.class_separation(found, labels)):
        with pytest.raises(ValueError, match="the same"):
            refused()
