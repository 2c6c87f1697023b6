"""Of a small network of each of five families, every row that applies equals an independent computation."""

import math

import pandas as pd
import pytest
import torch
import twins
from cases import WHOLE
from torch import nn

from genlib import norms
from genlib.book.networks import Recurrent
from genlib.measures import evaluate
from genlib.train import Run

SAMPLES, DRAWS = 36, 200
INCREASE, FLOOR, DELTA = 0.1, 1e-3, 0.05
# What ten draws of noise find, as good as the draws: judged by the spread over seeds.
BY_CHANCE, SEEDS = ["flatness", "flatness_magnitude", "pac_bayes_magnitude_start", "pac_bayes_scaled"], 6


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels):
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x):
        return x * self.up(nn.functional.silu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()


class Mixer(nn.Module):
    """A mixer of one block: four tokens of five features."""

    def __init__(self):
        super().__init__()
        self.norm, self.tokens, self.out = nn.LayerNorm(5), nn.Linear(4, 4), nn.Linear(4, 4)
        self.channels, self.head = (
            nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 5)),
            nn.Linear(5, 3),
        )

    def forward(self, x):
        x = x + self.out(nn.functional.gelu(self.tokens(self.norm(x).transpose(1, 2)))).transpose(1, 2)
        return self.head((x + self.channels(x)).mean(1))


def _convolutional():
    first = nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), Gate(4)
    return nn.Sequential(*first, nn.Conv2d(4, 3, 2), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))


def _transformer():
    layer = nn.TransformerEncoderLayer(4, 2, 5, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Flatten(), nn.Linear(12, 3))


FAMILIES = {
    "convolutional": (_convolutional, (2, 5, 5)),
    "transformer": (_transformer, (3, 4)),
    "mixer": (Mixer, (4, 5)),
    "LSTM": (lambda: Recurrent(nn.LSTM(3, 4, batch_first=True), 3), (4, 3)),
    "GRU": (lambda: Recurrent(nn.GRU(3, 4, batch_first=True), 3), (4, 3)),
}
LEAST = {"convolutional": 55, "transformer": 40, "mixer": 40, "LSTM": 35, "GRU": 35}


def _drawn(build, shape):
    """The network, its start, and samples with the labels that it gives them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, initial = (build().double().eval() for _ in range(2))
        with torch.no_grad():
            for p in [*network.parameters(), *initial.parameters()]:
                p.add_(0.3 * torch.randn_like(p))
            x = torch.randn(SAMPLES, *shape, dtype=torch.float64)
            list(network.parameters())[-1].sub_(network(x).mean(0))  # so that no class has all samples
    return network, initial, x, network(x).argmax(1)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_that_applies_is_right(family):
    network, initial, x, y = _drawn(*FAMILIES[family])
    run = Run(network, initial, pd.DataFrame({"step": [3, 5], "loss": [0.1, 0.01]}), True, 7, 1.0)
    table = evaluate(network, (x, y), initial=initial, first_epoch=initial, run=run, names=WHOLE)
    there = table[table["value"].notna()]
    drawn = [evaluate(network, (x, y), initial=initial, names=BY_CHANCE, seed=seed)["value"] for seed in range(SEEDS)]
    true = twins.of_weights(network, initial) | twins.of_outputs(network, x, y)
    true |= twins.of_layers(network, initial, x, y, true, norms.unknown_parts(network))
    true |= twins.of_the_loss(network, network, x, y) | {"steps": 7, "first_steps": 3, "last_steps": 2}
    true |= twins.of_functions(network, initial, x, y) | {"training_area": 3 * 0.1 + 2 * (0.1 + 0.01) / 2}
    true["first_gradient_variance"] = twins.gradient_variance(initial, x, y)
    true |= _of_searches(network, initial, x, y, there)
    assert len(there) >= LEAST[family], table["reason"].to_dict()
    assert drawn[0].equals(table.loc[BY_CHANCE, "value"])
    for name, values in pd.concat(drawn, axis=1).iterrows():
        assert abs(values.mean() - true[name]) < 2 * values.std(), name
    wrong = [twins.wrong(name, there.loc[name], true[name]) for name in there.index.drop(BY_CHANCE)]
    assert not any(wrong), "\n".join(filter(None, wrong))


def _of_searches(network, initial, x, y, table):
    """What rests on the noise, and on the box, that the network bears: both are searched for anew, by bisection.

    Where a row gives what was found, the others must follow from that.
    """
    w = twins.flat(network.parameters())
    v = w - twins.flat(initial.parameters())
    c, generator = 4 * math.log(2 * len(w) / DELTA), torch.Generator().manual_seed(1)
    pairs = torch.randn(DRAWS // 2, len(w), generator=generator, dtype=w.dtype)
    sizes = {
        "isotropic": lambda s: torch.full_like(w, s),
        "magnitude": lambda s: (s**2 * w**2 + FLOOR**2).sqrt(),
        "displacement": lambda s: (s**2 * v**2 + FLOOR**2).sqrt(),
        "scaled": lambda s: s * (10 * w.abs() + 1),
    }

    def risen(by, of="error"):
        with torch.no_grad():
            logits = twins.moved(network, by)(x)
            twins.moved(network, -by)
            return nn.functional.cross_entropy(logits, y) if of == "loss" else (logits.argmax(1) != y).double().mean()

    def noisy(kind, s, of="error"):
        return sum(risen(sizes[kind](s) * z, of) for z in [*pairs, *-pairs]) / DRAWS

    def climbed(kind, s):
        room, by = sizes[kind](s), torch.zeros_like(w)
        for _ in range(20):
            uphill = twins.gradient(twins.moved(network, by), x, y).sign()
            twins.moved(network, -by)
            by = torch.clamp(by + room / 2 * uphill, -room, room)
        return risen(by)

    def isotropic(u, s):
        return (u.norm() ** 2 / (4 * s**2)).item() + math.log(SAMPLES / s) + 10

    def magnitude(u, s, c=1.0):
        above = FLOOR**2 + (s**2 + c) * u.square().mean()
        return (above / (FLOOR**2 + s**2 * u**2)).log().sum().item() / 4 + math.log(SAMPLES * c**0.5 / s) + 10

    def boxed(u, a):
        return isotropic(u, a / math.log(2 * len(w)) ** 0.5)

    at_rest = twins.loss(network, x, y).item()
    of_noise = {kind: _root(lambda s, kind=kind: noisy(kind, s) - INCREASE) for kind in list(sizes)[:3]}
    of_box = {kind: _root(lambda a, kind=kind: climbed(kind, a) - INCREASE) for kind in list(sizes)[:3]}
    scaled = _root(lambda s: noisy("scaled", s, "loss") - at_rest - 0.5)
    true = {"pac_bayes_scaled": (w / sizes["scaled"](scaled)).square().sum().item() / 2}
    for found, prefix, plain, by_size, origin in (
        (of_noise, "", isotropic, magnitude, "pac_bayes"),
        (of_box, "sharpness_", boxed, lambda u, a: magnitude(u, a, c), "sharpness"),
    ):
        for kind, name in (("isotropic", "flatness"), ("magnitude", "flatness_magnitude")):
            true[prefix + name] = _near(lambda s: s**-2, found[kind], prefix)
            found[kind] = table.loc[prefix + name, "value"] ** -0.5
        true[f"{origin}_origin"], true[f"{origin}_start"] = (plain(u, found["isotropic"]) for u in (w, v))
        true[f"{origin}_magnitude_origin"] = by_size(w, found["magnitude"])
        true[f"{origin}_magnitude_start"] = _near(lambda s, of=by_size: of(v, s), found["displacement"], prefix)
    return true


def _root(rise):
    """Where a rise becomes positive."""
    low, high = 1e-4, 10.0
    for _ in range(12):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if rise(middle) > 0 else (middle, high)
    return (low * high) ** 0.5


def _near(formula, s, prefix):
    """What a formula is of the place of a search; of one in a box, with what it is a hundredth away."""
    return (formula(s), abs(formula(1.01 * s) - formula(s))) if prefix else formula(s)
