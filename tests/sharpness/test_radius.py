"""The largest radius at which an ascent stays below a rise."""

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, data, permuted, unchanged
from torch import nn
from torch.func import functional_call

from genlib.network import Network
from genlib.sharpness import largest_radius


def climbed(module, inputs, labels, room, of, steps):
    """The rise at the end of an ascent by the gradient's sign, half the box a step, by hand."""
    w = nn.utils.parameters_to_vector(module.parameters()).detach()

    def loss(vector):
        split = vector.split([p.numel() for p in module.parameters()])
        names = [name for name, _ in module.named_parameters()]
        params = {n: part.view_as(p) for n, part, p in zip(names, split, module.parameters(), strict=True)}
        return functional_call(module, params, (inputs,))

    point = w
    for _ in range(steps):
        leaf = point.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(loss(leaf), labels), leaf)
        point = (point + 0.5 * room * gradient.sign()).clamp(w - room, w + room)
    if of == "error":
        risk = [(loss(v).argmax(1) != labels).double().mean() for v in (w, point)]
    else:
        risk = [F.cross_entropy(loss(v), labels) for v in (w, point)]
    return (risk[1] - risk[0]).item()


def fitted(name):
    """A case with the labels that its network gives."""
    module, _, _ = CASES[name]()
    inputs, _ = data(samples=60, shape=CASES[name]()[1].shape[1:])
    return module, inputs, module(inputs).argmax(1)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("noise", ["isotropic", "magnitude"])
@pytest.mark.parametrize("of", ["error", "loss"])
def test_the_largest_radius_is_where_the_ascent_has_risen_so_far(of, noise, name):
    module, inputs, labels = fitted(name)
    w = nn.utils.parameters_to_vector(module.parameters()).detach()
    found = largest_radius(module, inputs, labels, of=of, noise=noise, increase=0.1, tolerance=1e-3)
    lower, upper = (
        climbed(module, inputs, labels, r if noise == "isotropic" else torch.hypot(r * w, torch.tensor(1e-3)), of, 5)
        for r in (found.lower, found.upper)
    )
    assert found.converged and found.standard_error == 0
    assert lower < 0.1 <= upper
    assert found.lower <= found.value <= found.upper <= 1.05 * found.lower or min(upper - 0.1, 0.1 - lower) < 1e-4


@pytest.mark.parametrize("seed", range(3))
def test_the_largest_radius_of_a_linear_loss_meets_the_corner(seed):
    # One sample's cross-entropy of two classes hangs on f₁ − f₀ alone, linear in the weights: the corner of the box
    # where it is least moves it by α (2|x|₁ + 2).
    torch.manual_seed(seed)
    module, x = nn.Sequential(nn.Linear(5, 2)).double(), torch.randn(1, 5, dtype=torch.float64)
    y = module(x).argmax(1)
    gap = (module(x)[0, y] - module(x)[0, 1 - y]).detach()
    rise = F.softplus(0.3 - gap) - F.softplus(-gap)  # at a gap that is less by 0.3
    found = largest_radius(module, x, y, of="loss", increase=rise.item(), tolerance=1e-9)
    torch.testing.assert_close(found.value, 0.3 / (2 * x.abs().sum() + 2), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_more_steps_find_no_larger_radius(name):
    # No search certifies a maximum, so each radius is an upper bound; a longer ascent comes closer.
    few, many = (largest_radius(*fitted(name), steps=steps, of="loss").value for steps in (2, 30))
    assert 0.5 * few < many <= 1.02 * few


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("noise", ["isotropic", "magnitude"])
def test_a_stack_has_each_networks_largest_radius(noise, name):
    modules, inputs, labels = zip(*(CASES[name](seed) for seed in range(3)), strict=True)
    stack = Network.stack(modules)
    found = largest_radius(stack, torch.stack(inputs), torch.stack(labels), of="loss", noise=noise)
    alone = [
        largest_radius(*case, of="loss", noise=noise, start=0.01) for case in zip(modules, inputs, labels, strict=True)
    ]
    torch.testing.assert_close(found.value, torch.stack([one.value for one in alone]))
    assert found.passes == max(one.passes for one in alone)


def test_the_largest_radius_does_not_see_the_order_of_hidden_units():
    module, inputs, labels = fitted("dense")
    there, here = (largest_radius(m, inputs, labels) for m in (permuted(module, [5, 0, 3, 1, 2, 4]), module))
    torch.testing.assert_close(there.value, here.value)


def test_a_box_of_each_weights_own_size():
    module, inputs, labels = fitted("dense")
    sizes = {name: torch.full_like(w, 0.01) for name, w in module.named_parameters()}
    found, expected = (largest_radius(module, inputs, labels, noise=noise) for noise in (sizes, "isotropic"))
    torch.testing.assert_close(0.01 * found.value, expected.value, rtol=0.05, atol=0)


def test_a_rise_out_of_reach_does_not_converge():
    found = largest_radius(*fitted("dense"), of="loss", increase=1e9, limits=(1e-3, 1.0))
    assert not found.converged and found.value == found.lower == 1 and found.upper.isinf()
    nowhere = largest_radius(*fitted("dense"), increase=1e-9, limits=(0.5, 1.0))
    assert not nowhere.converged and nowhere.value == nowhere.upper == 0.5 and nowhere.lower == 0


def test_the_largest_radius_costs_what_it_says(monkeypatch):
    calls = []
    module, inputs, labels = fitted("dense")
    network = Network.of(module)
    largest_radius(network, inputs, labels, steps=1)  # and now it is known
    original = Network.apply
    monkeypatch.setattr(Network, "apply", lambda *a, **k: calls.append(torch.is_grad_enabled()) or original(*a, **k))
    found = largest_radius(network, inputs, labels, steps=3)
    # A look at the classes for the loss, one for the error, and a gradient is three passes.
    assert found.passes == sum(3 if gradient else 1 for gradient in calls[2:])


def test_all_is_left_as_it_was_by_the_largest_radius():
    module, inputs, labels = fitted("residual")
    with unchanged(module, inputs):
        first = largest_radius(module, inputs, labels)
    assert torch.equal(largest_radius(module, inputs, labels).value, first.value)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("of is 'accuracy'; choose error or loss", {"of": "accuracy"}),
        ("increase is 0", {"increase": 0.0}),
        ("tolerance -1", {"tolerance": -1.0}),
        ("start nan", {"start": float("nan")}),
        ("the limits in order", {"limits": (1.0, 0.1)}),
        ("steps is 0; take at least 1", {"steps": 0}),
        ("noise is 'white'", {"noise": "white"}),
    ],
)
def test_a_bad_search_for_a_radius_is_refused(message, options):
    with pytest.raises(ValueError, match=message):
        largest_radius(*fitted("dense"), **options)
