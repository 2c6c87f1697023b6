"""Each draw of noise is the loss of a perturbed copy."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, data, dense
from sharpness_cases import loss_at
from torch import nn

from genlib import models
from genlib.network.objective import seeded_generator
from genlib.sharpness import Objective, deviations, perturbed_losses


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("noise", ["isotropic", "scaled", "magnitude"])
def test_each_draw_is_the_loss_of_a_perturbed_copy(name, noise):
    module, inputs, labels = CASES[name]()
    found = perturbed_losses(
        Objective.of(module, inputs, labels),
        scale=0.1,
        noise=noise,
        draws=6,
        sampling="weights",
        generator=torch.Generator().manual_seed(3),
    )
    generator, naive = torch.Generator().manual_seed(3), []
    for _ in range(3):
        moved, mirrored = copy.deepcopy(module), copy.deepcopy(module)
        for w, plus, minus in zip(module.parameters(), moved.parameters(), mirrored.parameters(), strict=True):
            std = {
                "isotropic": torch.full_like(w, 0.1),
                "scaled": 0.1 * (10 * w.abs() + 1),
                "magnitude": (0.01 * w**2 + 1e-6).sqrt(),
            }[noise]
            step = std * torch.randn(w.shape, generator=generator, dtype=w.dtype)
            plus.data += step
            minus.data -= step
        naive += [F.cross_entropy(m(inputs), labels).detach() for m in (moved, mirrored)]
    torch.testing.assert_close(found, torch.stack(naive))


def test_auto_takes_preactivations_where_they_are_exact():
    inputs, labels = data()
    for module, same in ((dense(), True), (nn.Sequential(dense()), False)):
        objective = Objective.of(module, inputs, labels)
        auto, units = (
            perturbed_losses(objective, scale=0.1, draws=2, sampling=how)
            for how in ("auto", "preactivations" if same else "weights")
        )
        assert torch.equal(auto, units)


@pytest.mark.parametrize("name", CASES)
def test_draws_side_by_side_are_those_one_after_the_other(name):
    module, inputs, labels = CASES[name]()
    found = perturbed_losses(
        Objective.of(module, inputs, labels, chunk_size=3 * len(labels)),
        scale=0.1,
        draws=8,
        sampling="weights",
        generator=torch.Generator().manual_seed(3),
    )
    generator, naive = torch.Generator().manual_seed(3), []
    params = {name: w.detach() for name, w in module.named_parameters()}
    for block in (3, 1):
        noises = {
            name: torch.randn((block, *w.shape), generator=generator, dtype=w.dtype) for name, w in params.items()
        }
        for i in range(block):
            naive += [
                loss_at(module, {name: w + sign * noises[name][i] for name, w in params.items()}, inputs, labels)
                for sign in (0.1, -0.1)
            ]
    torch.testing.assert_close(found, torch.stack(naive))


def test_a_mapping_gives_every_weight_its_own_deviation():
    module, (inputs, labels) = dense(), data()
    objective = Objective.of(module, inputs, labels)
    own = deviations(objective.network.params, 1.0, "scaled")
    for sampling in ("weights", "preactivations"):
        named, given_ = (
            perturbed_losses(objective, scale=0.03, noise=noise, draws=4, sampling=sampling)
            for noise in ("scaled", own)
        )
        torch.testing.assert_close(named, given_)


def test_noise_is_never_the_start_of_the_network():
    """From the network's own seed its second draw would be: the constructor draws once, the initialization next."""
    network = models.mlp(64, 10, width=64, depth=3, bias=False, initialization="he", seed=0)
    start = [p.detach().flatten() for p in network.parameters()]

    def likeness(generator):
        draws = [[torch.randn(w.shape, generator=generator) for w in start] for _ in range(4)]
        pairs = [torch.stack(pair) for draw in draws for pair in zip(draw, start, strict=True)]
        return max(torch.corrcoef(pair)[0, 1].abs() for pair in pairs)

    assert likeness(torch.Generator().manual_seed(0)) > 0.9
    assert likeness(seeded_generator(None, torch.device("cpu"))) < 0.2


def test_magnitude_noise_may_follow_another_size():
    params = {"w": torch.tensor([3.0, 0.0, -1.0])}
    moved = {"w": torch.tensor([0.0, 2.0, -1.0])}
    found = deviations(params, 0.1, ("magnitude", moved))["w"]
    torch.testing.assert_close(found, (moved["w"].square() * 0.01 + 1e-6).sqrt())
    for noise, message in (
        (("given", moved), "noise is 'given'"),
        ("given", "noise is 'given'"),
        (("magnitude", {}), "lacks"),
    ):
        with pytest.raises(ValueError, match=message):
            deviations(params, 0.1, noise)
