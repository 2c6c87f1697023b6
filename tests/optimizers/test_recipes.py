"""SAM, label noise and the projection are their definitions, in `fit` and in a loop of one's own."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizers_cases import double, loss_of, sam_gradient
from torch import nn
from trained import TEN_STEPS, distance

from genlib import data, models
from genlib.optimizers import SAM, LabelNoise, OneSAM, one_sam_gradient, project_first_layer
from genlib.train import Stop, fit, fit_many


def closure_of(module, optimizer, inputs, labels, loss):
    def closure():
        optimizer.zero_grad()
        value = loss(module(inputs), labels)
        value.backward()
        return value

    return closure


def test_sam_on_a_quadratic_by_hand():
    curvature, theta = torch.tensor([2.0, 8.0], dtype=torch.float64), torch.tensor([3.0, 0.5], dtype=torch.float64)
    p = nn.Parameter(theta.clone())
    optimizer = SAM(0.1)([p], lr=0.05)

    def closure():
        optimizer.zero_grad()
        value = (curvature * p.square()).sum() / 2
        value.backward()
        return value

    assert optimizer.step(closure).item() == pytest.approx(10.0)  # (2 · 9 + 8 · 1/4) / 2
    g = curvature * theta  # (6, 4), of norm √52
    expected = theta - 0.05 * curvature * (theta + 0.1 * g / 52**0.5)
    torch.testing.assert_close(p.detach(), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adadelta])
def test_a_group_of_parameters_has_its_own_radius(base):
    start = [torch.tensor([3.0, 0.5], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)]
    (a, b), plain = (
        [nn.Parameter(w.clone()) for w in start],
        [nn.Parameter(w.clone()) for w in start],
    )
    optimizer = SAM(0.1, base=base)([{"params": [a]}, {"params": [b], "rho": 0.4}], lr=0.05)
    own = 0.1 if base is torch.optim.Adadelta else 0.4  # whose own option has the name

    def loss(a, b):
        return a.square().sum() + (b**4).sum() + a.prod() * b.sum()

    def closure():
        optimizer.zero_grad()
        value = loss(a, b)
        value.backward()
        return value

    optimizer.step(closure)
    expected = base([{"params": [plain[0]]}, {"params": [plain[1]], "rho": 0.4}], lr=0.05)
    g = torch.autograd.grad(loss(*plain), plain)
    norm = torch.cat([part.flatten() for part in g]).norm()
    there = [
        (w + rho * part / norm).detach().requires_grad_() for w, rho, part in zip(plain, (0.1, own), g, strict=True)
    ]
    for w, part in zip(plain, torch.autograd.grad(loss(*there), there), strict=True):
        w.grad = part
    expected.step()
    torch.testing.assert_close([a.detach(), b.detach()], [w.detach() for w in plain], rtol=1e-12, atol=0)
    optimizer.param_groups[1]["rho"] = 0.0
    if base is torch.optim.SGD:
        with pytest.raises(ValueError, match=r"^rho is 0\.0; it must be positive and finite"):
            optimizer.step(closure)


BASES = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    "adam": (torch.optim.Adam, {"betas": (0.9, 0.999)}),
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.9}),
    torch.optim.AdamW: (torch.optim.AdamW, {}),
}


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("base", BASES)
def test_sam_is_its_definition_in_fit_and_in_a_loop_of_ones_own(parity, base, adaptive):
    parity = double(parity)
    net = models.two_layer(16, width=6).double()
    loss, (build, options) = loss_of("cross_entropy"), BASES[base]
    recipe, rest = SAM(0.1, base=base, adaptive=adaptive), {"lr": 0.01, "weight_decay": 0.02}
    run = fit(net, parity, optimizer=recipe, batch_size=8, stop=TEN_STEPS, seed=3, **rest)

    own, reference = copy.deepcopy(net), copy.deepcopy(net)
    optimizer, plain = recipe(own.parameters(), **options, **rest), build(reference.parameters(), **options, **rest)
    generator = torch.Generator().manual_seed(3)
    batches = itertools.chain.from_iterable(torch.randperm(40, generator=generator).split(8) for _ in range(2))
    for index in batches:
        x, y = parity.inputs[index], parity.labels[index]
        optimizer.step(closure_of(own, optimizer, x, y, loss))
        gradients = sam_gradient(reference, x, y, 0.1, loss, adaptive=adaptive)
        for p, g in zip(reference.parameters(), gradients, strict=True):
            p.grad = g
        plain.step()
    assert distance(net, reference) > 1e-2
    assert distance(own, reference) < 1e-12
    assert distance(run.module, reference) < 1e-12


@settings(max_examples=25)
@given(st.lists(st.floats(0.2, 5), min_size=6, max_size=6))
def test_no_rescaling_of_the_units_changes_the_adaptive_ascent(factors):
    dataset, c = double(data.load("parity", train=10, test=5, dimension=4, seed=0)), torch.tensor(factors).double()
    net = models.two_layer(4, width=6, bias=False).double()
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[0].weight.mul_(c[:, None])
        other[2].weight.div_(c)
    values = []
    for module in (net, other):
        seen = []
        optimizer = SAM(0.3, adaptive=True)(module.parameters(), lr=0.1)
        closure = closure_of(module, optimizer, dataset.inputs, dataset.labels, loss_of("mse"))
        optimizer.step(lambda closure=closure, seen=seen: seen.append(closure()) or seen[-1])
        values.append(seen[1].item())
    assert values[0] == pytest.approx(values[1], rel=1e-9)


def test_the_gradient_of_sam_drifts_along_that_of_the_gradients_norm(parity):
    net = models.two_layer(16, width=6, activation="softplus").double()
    x, y, loss, rho = parity.inputs.double(), parity.labels, loss_of("mse"), 1e-5
    params = list(net.parameters())
    g = torch.autograd.grad(loss(net(x), y), params, create_graph=True)
    drift = torch.autograd.grad(torch.cat([part.flatten() for part in g]).norm(), params)

    found = {}
    optimizer = SAM(rho)(params, lr=1.0)
    before = [p.detach().clone() for p in params]
    optimizer.step(closure_of(net, optimizer, x, y, loss))
    for i, (p, old, plain, along) in enumerate(zip(params, before, g, drift, strict=True)):
        found[i] = (old - p.detach() - plain.detach()) / rho
        torch.testing.assert_close(found[i], along, rtol=0, atol=1e-3 * along.abs().max().item())


@pytest.mark.parametrize("stacked", [False, True])
def test_the_statistics_of_batchnorm_are_those_of_one_pass_a_step(parity, stacked):
    net = nn.Sequential(nn.Linear(16, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    expected = copy.deepcopy(net)
    expected(parity.inputs)
    kwargs = {"lr": 0.1, "stop": Stop(steps=1), "optimizer": SAM(0.5)}
    run = fit_many([net, net], parity, stacked=True, **kwargs)[1] if stacked else fit(net, parity, **kwargs)
    own = copy.deepcopy(net)
    optimizer = SAM(0.5)(own.parameters(), lr=0.1, momentum=0.9)
    optimizer.step(closure_of(own, optimizer, parity.inputs, parity.labels, nn.functional.cross_entropy))
    for trained in (run.module, own):
        torch.testing.assert_close(trained[1].running_mean, expected[1].running_mean)
        torch.testing.assert_close(trained[1].running_var, expected[1].running_var)
        assert trained[1].num_batches_tracked == 1
        assert trained[1].track_running_stats
    assert distance(run.module, own) < 1e-6


def test_a_loop_of_ones_own_saves_loads_and_schedules_as_with_the_base(parity):
    loss = loss_of("mse")

    def steps(count, module, optimizer, schedule):
        for _ in range(count):
            optimizer.step(closure_of(module, optimizer, parity.inputs, parity.labels, loss))
            schedule.step()

    def fresh():
        module = models.two_layer(16, width=6)
        optimizer = SAM(0.1)(module.parameters(), lr=0.1, momentum=0.9)
        return module, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    whole = fresh()
    steps(6, *whole)
    assert whole[1].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**6)
    first, second = fresh(), fresh()
    steps(3, *first)
    for there, here in zip(second, first, strict=True):
        there.load_state_dict(here.state_dict())
    steps(3, *second)
    assert distance(whole[0], second[0]) == 0


def test_where_the_gradient_is_zero_nothing_is_perturbed():
    p = nn.Parameter(torch.zeros(3))
    optimizer = SAM(0.1)([p], lr=0.1)

    def closure():
        optimizer.zero_grad()
        value = p.square().sum()
        value.backward()
        return value

    assert optimizer.step(closure) == 0
    assert torch.equal(p.detach(), torch.zeros(3))


def test_an_error_in_the_closure_leaves_the_weights_where_they_were():
    p = nn.Parameter(torch.ones(3))
    optimizer, calls = SAM(0.1)([p], lr=0.1), []

    def closure():
        if calls:
            raise RuntimeError
        calls.append(1)
        value = p.square().sum()
        value.backward()
        return value

    with pytest.raises(RuntimeError):
        optimizer.step(closure)
    assert torch.equal(p.detach(), torch.ones(3))


def test_noise_replaces_labels_at_its_rate_by_any_class():
    labels = torch.full((40_000,), 2)
    noisy = LabelNoise(0.3).noisy(labels, 5, generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(noisy, minlength=5) / len(labels)
    expected = torch.tensor([0.06, 0.06, 0.76, 0.06, 0.06])
    assert (shares - expected).abs().max() < 4 * (0.76 * 0.24 / len(labels)) ** 0.5
    assert (labels == 2).all()
    again = LabelNoise(0.3).noisy(labels, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(noisy, again)
    always = LabelNoise(1.0).noisy(labels, 5, generator=torch.Generator().manual_seed(0))
    assert (torch.bincount(always, minlength=5) / len(labels) - 0.2).abs().max() < 0.01


def test_label_noise_is_the_base_on_drawn_labels(parity):
    net, recipe = models.two_layer(16, width=8), LabelNoise(0.5)
    run = fit(net, parity, optimizer=recipe, lr=0.1, momentum=0.0, loss="mse", stop=Stop(steps=3), seed=9)
    own, generator = copy.deepcopy(net), torch.Generator().manual_seed(9)
    optimizer = torch.optim.SGD(own.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of("mse")(own(parity.inputs), recipe.noisy(parity.labels, 2, generator=generator)).backward()
        optimizer.step()
    assert distance(run.module, own) < 1e-6


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SAM(0.0), "rho is 0.0; it must be positive"),
        (lambda: OneSAM(-1.0), "rho is -1.0"),
        (lambda: OneSAM(float("nan")), "rho is nan"),
        (lambda: SAM(float("inf")), "finite"),
        (lambda: SAM(0.1, base="lbfgs"), "base is 'lbfgs'; choose sgd, adam, rmsprop"),
        (lambda: OneSAM(0.1, base=torch.optim.LBFGS), "but LBFGS"),
        (lambda: LabelNoise(0.0), "probability is 0.0; it must be above 0"),
        (lambda: LabelNoise(1.5), "at most 1"),
        (lambda: LabelNoise(0.1, base="sdg"), "base is 'sdg'"),
        (lambda: project_first_layer(0.0), "norm is 0.0"),
    ],
)
def test_bad_recipes_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_bad_calls_are_named(parity):
    net, x, y = models.two_layer(16, width=8), parity.inputs, parity.labels
    with pytest.raises(ValueError, match=r"rho is 0\.0; it must be positive"):
        one_sam_gradient(net, x, y, 0.0)
    with pytest.raises(ValueError, match="method is 'closed'; choose auto, closed form"):
        one_sam_gradient(net, x, y, 0.1, method="closed")
    normalized = nn.Sequential(nn.Linear(16, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"1 is BatchNorm .* each sample is taken by itself"):
        fit(normalized, parity, optimizer=OneSAM(0.1), lr=0.1, stop=TEN_STEPS)
    for recipe in ("sgd", SAM(0.1), OneSAM(0.1), LabelNoise(0.1)):
        with pytest.raises(ValueError, match="batch_size is 41, but dataset has 40 training samples"):
            fit(net, parity, optimizer=recipe, lr=0.1, batch_size=41, stop=TEN_STEPS)
