"""The largest rise in a ball, by ascents that stay in it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, data, dense, first_logit, linear
from sharpness_cases import loss_at
from torch import nn

from genlib.network import Network
from genlib.sharpness import keskar_sharpness, sam_sharpness, worst_case_sharpness


def gradient_of(module, inputs, labels):
    value = first_logit(module(inputs), labels).mean()
    return torch.autograd.grad(value, list(module.parameters()))


@pytest.mark.parametrize("seed", range(3))
def test_the_maximum_of_a_linear_loss(seed):
    module, (inputs, labels) = linear(seed), data(seed)
    gradients, weights = gradient_of(module, inputs, labels), [p.detach() for p in module.parameters()]
    pairs = list(zip(gradients, weights, strict=True))
    exact = {
        "box": sum((g.abs() * (w.abs() + 1)).sum() for g, w in pairs),
        "l2": sum(g.square().sum() for g, _ in pairs).sqrt(),
        "adaptive": sum((g * w).square().sum() for g, w in pairs).sqrt(),
    }
    for ball, most in exact.items():
        found = worst_case_sharpness(module, inputs, labels, radius=0.1, ball=ball, steps=40, loss=first_logit)
        assert 0.999 * 0.1 * most < found.value <= 0.1 * most * (1 + 1e-9)


def test_the_maximum_of_a_small_network_by_a_grid():
    module = nn.Sequential(nn.Linear(1, 2, bias=False)).double()
    inputs, labels = torch.tensor([[1.0], [-2.0]]).double(), torch.tensor([0, 1])
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.5], [-0.5]]))
        at_rest = F.cross_entropy(module(inputs), labels)
    axis = torch.linspace(-0.3, 0.3, 61).double()
    grid = torch.cartesian_prod(axis * 2.5, axis * 1.5)
    losses = [F.cross_entropy(inputs @ (module[0].weight.detach() + step[:, None]).T, labels) for step in grid]
    found = worst_case_sharpness(module, inputs, labels, radius=0.3, steps=20)
    torch.testing.assert_close(found.value, torch.stack(losses).max() - at_rest)


@pytest.mark.parametrize("ball", ["box", "l2", "adaptive"])
@pytest.mark.parametrize("name", CASES)
def test_every_point_that_is_tried_lies_in_the_ball(name, ball, monkeypatch):
    module, inputs, labels = CASES[name]()
    weights, tried, network = dict(module.named_parameters()), [], Network.of(module)
    worst_case_sharpness(network, inputs, labels, radius=0.1, steps=1)  # and now it is known
    apply = Network.apply
    monkeypatch.setattr(
        Network, "apply", lambda self, params, x, **k: tried.append(params) or apply(self, params, x, **k)
    )
    worst_case_sharpness(network, inputs, labels, radius=0.1, ball=ball, steps=9, restarts=2)
    assert len(tried) == 1 + 2 * (9 + 1)  # a look at the classes; 9 gradients and one forward, twice
    for params in tried:
        steps = [((params[n] - w).detach(), w.detach()) for n, w in weights.items()]
        size = {
            "box": max((s.abs() / (w.abs() + 1)).max() for s, w in steps),
            "l2": sum(s.square().sum() for s, _ in steps).sqrt(),
            "adaptive": sum((s[w != 0] / w[w != 0]).square().sum() for s, w in steps).sqrt(),
        }[ball]
        assert size <= 0.1 * (1 + 1e-9)
        if ball == "adaptive":
            assert all((s[w == 0] == 0).all() for s, w in steps)


def test_the_history_rises_to_the_value_and_restarts_add_to_it():
    module, inputs, labels = CASES["dense"]()
    once, thrice = (worst_case_sharpness(module, inputs, labels, radius=0.1, steps=6, restarts=n) for n in (1, 3))
    assert once.history.shape == (6,)
    assert (once.history.diff() >= 0).all()
    assert once.value == once.history[-1]
    assert thrice.value >= once.value
    assert (once.passes, thrice.passes) == (19, 57)


def test_the_ascent_beats_random_places_in_the_ball():
    module, inputs, labels = CASES["dense"]()
    weights, generator = dict(module.named_parameters()), torch.Generator().manual_seed(0)
    found = worst_case_sharpness(module, inputs, labels, radius=0.05, steps=20).value
    for _ in range(50):
        moved = {
            name: w + 0.05 * (w.abs() + 1) * torch.randn(w.shape, generator=generator).sign()
            for name, w in weights.items()
        }
        assert loss_at(module, moved, inputs, labels) - loss_at(module, weights, inputs, labels) < found


def test_a_loss_that_is_not_finite_is_an_infinite_rise():
    module, (inputs, labels) = linear(), data()
    height = module(inputs).detach().amax()
    found = worst_case_sharpness(
        module,
        inputs,
        labels,
        radius=0.5,
        steps=10,
        loss=lambda logits, _: torch.where(logits > height + 1, torch.inf, logits).amax(-1),
    )
    assert found.history[0].isfinite()
    assert found.value == torch.inf
    assert not found.history.isnan().any()


def test_keskar_is_a_percentage_of_one_plus_the_loss():
    module, inputs, labels = CASES["residual"]()
    rise = worst_case_sharpness(module, inputs, labels, radius=0.01, steps=5)
    found = keskar_sharpness(module, inputs, labels, radius=0.01, steps=5)
    loss = F.cross_entropy(module(inputs), labels).detach()
    torch.testing.assert_close(found.value, 100 * rise.value / (1 + loss))
    torch.testing.assert_close(found.history, 100 * rise.history / (1 + loss))
    assert found.passes == rise.passes


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("ball", ["box", "l2", "adaptive"])
def test_sam_is_one_step_along_the_gradient(name, ball):
    module, inputs, labels = CASES[name]()
    before = F.cross_entropy(module(inputs), labels)
    gradients = torch.autograd.grad(before, list(module.parameters()))
    moved = copy.deepcopy(module)
    scales = [p.detach().abs() if ball == "adaptive" else torch.ones_like(p) for p in module.parameters()]
    norm = sum((g * c).square().sum() for g, c in zip(gradients, scales, strict=True)).sqrt()
    for p, w, g, c in zip(moved.parameters(), module.parameters(), gradients, scales, strict=True):
        p.data += 0.1 * ((w.detach().abs() + 1) * g.sign() if ball == "box" else c * c * g / norm)
    after = F.cross_entropy(moved(inputs), labels)
    found = sam_sharpness(module, inputs, labels, radius=0.1, ball=ball)
    torch.testing.assert_close(found, (after - before).detach())


def test_no_gradient_no_step():
    module, (inputs, labels) = linear(), data()
    found = sam_sharpness(module, inputs, labels, radius=0.1, loss=lambda logits, _: 0 * logits[:, 0])
    assert found == 0


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("radius is 0", {"radius": 0.0}),
        ("radius is nan", {"radius": float("nan")}),
        ("ball is 'l1'", {"ball": "l1"}),
        ("steps is 0", {"steps": 0}),
        ("restarts 0", {"restarts": 0}),
        ("no gradient", {"loss": "error"}),
    ],
)
def test_a_bad_search_is_refused(message, options):
    with pytest.raises(ValueError, match=message):
        worst_case_sharpness(dense(), *data(), **{"radius": 0.1, "steps": 2, **options})
