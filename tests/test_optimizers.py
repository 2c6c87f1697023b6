import copy
import dataclasses
import itertools
import pickle

import joblib
import pytest
import torch
from cases import HostReads, unchanged
from hypothesis import given
from hypothesis import strategies as st
from memory import peak
from torch import nn

from genlib import data, models
from genlib.network import Network, objective
from genlib.optimizers import SAM, LabelNoise, OneSAM, one_sam_gradient, project_first_layer
from genlib.train import Stop, fit, fit_many

TEN_STEPS = Stop(steps=10, every=10)


@pytest.fixture(scope="module")
def parity():
    return data.load("parity", train=40, test=20, dimension=16, seed=0)


def double(dataset):
    return dataclasses.replace(dataset, inputs=dataset.inputs.double(), test_inputs=dataset.test_inputs.double())


def distance(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs)


def loss_of(name):
    """The mean loss, of one output with labels 0 and 1 as -1 and 1."""

    def mse(logits, labels):
        return (logits.squeeze(1) - (2 * labels - 1)).square().mean()

    def logistic(logits, labels):
        return nn.functional.softplus((1 - 2 * labels) * logits.squeeze(1)).mean()

    def of_classes(logits, labels):
        return (logits - nn.functional.one_hot(labels, logits.shape[1])).square().mean()

    def chosen(logits, labels):
        if name == "cross_entropy":
            return (nn.functional.cross_entropy if logits.shape[1] > 1 else logistic)(logits, labels)
        return (of_classes if logits.shape[1] > 1 else mse)(logits, labels)

    return chosen


def gradient(module, inputs, labels, loss):
    return torch.autograd.grad(loss(module(inputs), labels), list(module.parameters()))


def sam_gradient(module, inputs, labels, rho, loss, *, adaptive=False):
    """The definition, on a copy."""
    there = copy.deepcopy(module)
    g = gradient(module, inputs, labels, loss)
    t = [p.detach().abs() if adaptive else torch.ones_like(p) for p in module.parameters()]
    norm = torch.cat([(a * b).flatten() for a, b in zip(t, g, strict=True)]).norm()
    with torch.no_grad():
        for p, a, b in zip(there.parameters(), t, g, strict=True):
            p += rho * a**2 * b / norm if norm > 0 else 0
    return gradient(there, inputs, labels, loss)


def mean_one_sam_gradient(module, inputs, labels, rho, loss):
    found = [sam_gradient(module, x[None], y[None], rho, loss) for x, y in zip(inputs, labels, strict=True)]
    return [torch.stack(parts).mean(0) for parts in zip(*found, strict=True)]


# ---------------------------------------------------------------------------------------------------------------- SAM


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


# --------------------------------------------------------------------------------------------------------------- 1-SAM


def classes(seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(15, 5, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(4, (15,), generator=generator)


def binary():
    x, y = classes()
    return x, y % 2


CASES = {
    "bias": (lambda s=0: models.two_layer(5, width=7, seed=s), binary(), "mse"),
    "no bias": (lambda s=0: models.two_layer(5, width=7, bias=False, seed=s), binary(), "mse"),
    "LayerNorm": (lambda s=0: models.two_layer(5, width=7, normalization="layer", seed=s), binary(), "mse"),
    "LayerNorm, near 0": (
        lambda s=0: models.two_layer(5, width=7, normalization="layer", epsilon=0.7, seed=s),
        binary(),
        "mse",
    ),
    "three layers": (lambda s=0: models.two_layer(5, width=7, depth=2, seed=s), binary(), "cross_entropy"),
    "softplus": (lambda s=0: models.two_layer(5, width=7, activation="softplus", seed=s), binary(), "mse"),
    "classes": (lambda s=0: models.mlp(5, 4, width=6, depth=3, seed=s), classes(), "cross_entropy"),
    "classes, mse": (lambda s=0: models.mlp(5, 4, width=6, activation="tanh", seed=s), classes(), "mse"),
    "linear": (lambda s=0: models.mlp(5, 4, depth=0, seed=s), classes(), "cross_entropy"),
}


@pytest.mark.parametrize("method", ["closed form", "per sample"])
@pytest.mark.parametrize("case", CASES)
def test_the_mean_of_one_sam_is_that_of_autograds_gradients_sample_by_sample(case, method):
    build, (x, y), name = CASES[case]
    net, loss = build().double(), loss_of(name)
    mean, found = one_sam_gradient(net, x, y, 0.3, loss=name, method=method)
    assert mean.item() == pytest.approx(loss(net(x), y).item(), rel=1e-12)
    assert list(found) == [name for name, _ in net.named_parameters()]
    expected = mean_one_sam_gradient(net, x, y, 0.3, loss)
    for ours, theirs in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert max((a - b).abs().max() for a, b in zip(expected, gradient(net, x, y, loss), strict=True)) > 1e-3


def test_what_the_closed_form_does_not_cover_goes_sample_by_sample():
    x = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    torch.manual_seed(0)
    one, other = nn.Linear(10, 10), nn.Linear(10, 10)
    other.weight = one.weight
    nets = {
        "network has the layer 0, Conv1d": nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(9, 3)),
        "uses a weight twice": nn.Sequential(nn.Flatten(), one, nn.Tanh(), other, nn.Linear(10, 3)),
        "aren't flattened": nn.Sequential(nn.Linear(5, 2), nn.Flatten(), nn.Linear(4, 3)),
    }
    for why, net in nets.items():
        net, loss = net.double(), nn.functional.cross_entropy
        with unchanged(net, x, y):
            _, found = one_sam_gradient(net, x, y, 0.3)
        for ours, theirs in zip(found.values(), mean_one_sam_gradient(net, x, y, 0.3, loss), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        with pytest.raises(ValueError, match=f"method is 'closed form', but .*{why}.*dense layers"):
            one_sam_gradient(net, x, y, 0.3, method="closed form")


def test_batchnorm_over_the_training_set_goes_sample_by_sample():
    x, y = binary()
    net = models.two_layer(5, width=4, normalization="batch", training_inputs=x).double()
    _, found = one_sam_gradient(net, x, y, 0.1, loss="mse")
    for ours, theirs in zip(found.values(), mean_one_sam_gradient(net, x, y, 0.1, loss_of("mse")), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", ["closed form", "per sample"])
def test_a_sample_without_gradient_is_not_perturbed(method):
    net = models.two_layer(5, width=7).double()
    x, y = binary()
    x[0] = 0
    with torch.no_grad():
        net[0].bias.copy_(-net[0].bias.abs())  # all units silent there, so f = 0 and its gradient is nothing
    mean, found = one_sam_gradient(net, x, y, 0.2, loss="mse", method=method)
    assert mean.isfinite() and all(g.isfinite().all() for g in found.values())
    rest = mean_one_sam_gradient(net, x[1:], y[1:], 0.2, loss_of("mse"))
    for ours, theirs in zip(found.values(), rest, strict=True):
        torch.testing.assert_close(ours, theirs * 14 / 15, rtol=1e-12, atol=1e-12)


@given(st.sampled_from(sorted(CASES)), st.integers(0, 5))
def test_with_a_small_radius_it_is_the_gradient(case, seed):
    build, (x, y), name = CASES[case]
    net = build(seed).double()
    _, found = one_sam_gradient(net, x, y, 1e-9, loss=name)
    for ours, theirs in zip(found.values(), gradient(net, x, y, loss_of(name)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", ["closed form", "per sample"])
@pytest.mark.parametrize("case", ["bias", "LayerNorm", "classes"])
def test_a_stack_gives_each_network_its_own(case, method):
    build, (x, y), name = CASES[case]
    nets = [build(seed).double() for seed in range(3)]
    mean, found = one_sam_gradient(Network.stack(nets), x, y, 0.2, loss=name, method=method)
    inputs, labels = torch.stack([x, 2 * x, -x]), torch.stack([y, y.flip(0), y])
    _, of_each = one_sam_gradient(Network.stack(nets), inputs, labels, 0.2, loss=name, method=method)
    for i, net in enumerate(nets):
        alone_mean, alone = one_sam_gradient(net, x, y, 0.2, loss=name)
        _, other = one_sam_gradient(net, inputs[i], labels[i], 0.2, loss=name)
        assert mean[i].item() == pytest.approx(alone_mean.item(), rel=1e-12)
        for key in alone:
            torch.testing.assert_close(found[key][i], alone[key], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(of_each[key][i], other[key], rtol=1e-12, atol=1e-12)


def test_a_loss_of_ones_own(parity):
    net, x, y = models.two_layer(16, width=6).double(), parity.inputs.double(), parity.labels

    def smoothed(logits, labels):
        margins = (2 * labels - 1) * logits.squeeze(1)
        return 0.8 * nn.functional.softplus(-margins) + 0.2 * nn.functional.softplus(margins)

    _, found = one_sam_gradient(net, x, y, 0.2, loss=smoothed, method="closed form")
    expected = mean_one_sam_gradient(net, x, y, 0.2, lambda logits, labels: smoothed(logits, labels).mean())
    for ours, theirs in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_chunks_change_nothing_but_the_memory(monkeypatch):
    net, (x, y) = models.mlp(5, 4, width=60, depth=2).double(), classes()
    x, y = x.repeat(20, 1), y.repeat(20)
    for method in ("closed form", "per sample"):

        def run(samples, method=method):
            return one_sam_gradient(net, x[:samples], y[:samples], 0.2, method=method)

        whole = run(300)
        with monkeypatch.context() as patch:
            patch.setattr(objective, "samples_at_once", lambda *_: 16)
            mean, found = run(300)
            few, many = (peak(run, samples) for samples in (48, 300))
        assert mean.item() == pytest.approx(whole[0].item(), rel=1e-12)
        for name, part in found.items():
            torch.testing.assert_close(part, whole[1][name], rtol=1e-12, atol=1e-12)
        assert many <= 1.05 * few


def test_it_leaves_everything_as_it_was_and_reads_nothing_from_the_device():
    net, (x, y) = models.two_layer(5, width=7, normalization="layer").double(), binary()
    for method in ("closed form", "per sample"):
        with unchanged(net, x, y):
            one_sam_gradient(net, x, y, 0.2, loss="mse", method=method)
    recipe = OneSAM(0.2)
    with HostReads() as reads:
        fit(net, data.Dataset(x, y, x, y, ("0", "1")), optimizer=recipe, lr=0.1, loss="mse", stop=Stop(steps=2))
    few = reads.count
    with HostReads() as reads:
        fit(net, data.Dataset(x, y, x, y, ("0", "1")), optimizer=recipe, lr=0.1, loss="mse", stop=Stop(steps=9))
    assert reads.count == few


# ---------------------------------------------------------------------------------------------------------- in training


def test_one_sam_with_batches_of_one_is_sam(parity):
    net = models.two_layer(16, width=6).double()
    kwargs = {"lr": 0.02, "batch_size": 1, "loss": "mse", "stop": TEN_STEPS, "seed": 4}
    one, sam = (fit(net, double(parity), optimizer=recipe, **kwargs) for recipe in (OneSAM(0.1), SAM(0.1)))
    assert distance(one.module, sam.module) < 1e-12


def test_one_sam_steps_with_its_mean_gradient(parity):
    parity = double(parity)
    net = models.two_layer(16, width=6).double()
    run = fit(
        net, parity, optimizer=OneSAM(0.2), lr=0.1, momentum=0.0, weight_decay=0.3, loss="mse", stop=Stop(steps=1)
    )
    expected = copy.deepcopy(net)
    gradients = mean_one_sam_gradient(net, parity.inputs, parity.labels, 0.2, loss_of("mse"))
    with torch.no_grad():
        for p, g in zip(expected.parameters(), gradients, strict=True):
            p -= 0.1 * (g + 0.3 * p)
    assert distance(run.module, expected) < 1e-12


def test_frozen_weights_are_neither_perturbed_nor_trained(parity):
    parity = double(parity)
    net = models.two_layer(16, width=6).double()
    net[0].requires_grad_(False)
    for recipe in (OneSAM(0.2), SAM(0.2)):
        kwargs = {
            "optimizer": recipe,
            "lr": 0.1,
            "momentum": 0.0,
            "loss": "mse",
            "batch_size": 1,
            "stop": Stop(steps=1),
        }
        alone = fit(net, parity, seed=1, **kwargs).module
        stacked = fit_many([net, net], parity, seed=[0, 1], stacked=True, **kwargs)[1].module
        index = torch.randperm(40, generator=torch.Generator().manual_seed(1))[:1]
        hidden = net[1](net[0](parity.inputs[index]))
        (g,) = sam_gradient(net[2], hidden, parity.labels[index], 0.2, loss_of("mse"))
        for trained in (alone, stacked):
            assert torch.equal(trained[0].weight, net[0].weight)
            torch.testing.assert_close(trained[2].weight, net[2].weight - 0.1 * g, rtol=1e-12, atol=1e-12)


RECIPES = [
    SAM(0.05),
    SAM(0.05, base="adam", adaptive=True),
    OneSAM(0.05),
    OneSAM(0.05, base="adam"),
    LabelNoise(0.3),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
@pytest.mark.parametrize("batch_size", [None, 16])
def test_a_stack_trains_each_network_as_fit_does(parity, recipe, batch_size):
    nets = [models.two_layer(16, width=8, normalization="layer", seed=s) for s in range(3)]
    sets = [data.load("parity", train=40, test=20, dimension=16, seed=s) for s in range(3)]
    shared = {
        "optimizer": recipe,
        "loss": "cross_entropy",
        "batch_size": batch_size,
        "schedule": lambda epoch: 0.9**epoch,
    }
    each = {"lr": [0.01, 0.02, 0.03], "weight_decay": [0.0, 0.01, 0.1], "seed": [5, 6, 7]}
    stops = [Stop(steps=4, every=2), Stop(steps=10, every=2), Stop(steps=10, every=2)]
    runs = fit_many(nets, sets, stop=stops, stacked=True, **shared, **each)
    for i, run in enumerate(runs):
        alone = fit(nets[i], sets[i], stop=stops[i], **shared, **{key: values[i] for key, values in each.items()})
        assert distance(run.module, alone.module) < 1e-5
        assert distance(run.module, nets[i]) > 1e-3


def test_a_class_as_base_trains_one_by_one_and_workers_agree(parity):
    nets = [models.two_layer(16, width=8, seed=s) for s in range(2)]
    kwargs = {"optimizer": OneSAM(0.1, base=torch.optim.AdamW), "lr": 0.01, "stop": TEN_STEPS}
    looped = fit_many(nets, parity, **kwargs)
    with joblib.parallel_config(backend="sequential"):
        spread = fit_many(nets, parity, workers=2, **kwargs)
    assert all(distance(a.module, b.module) == 0 for a, b in zip(looped, spread, strict=True))
    with pytest.raises(ValueError, match="one by one"):
        fit_many(nets, parity, stacked=True, **kwargs)


@pytest.mark.parametrize("recipe", [*RECIPES, SAM(0.1, base=torch.optim.AdamW), project_first_layer(1.0)], ids=repr)
def test_recipes_travel_to_other_processes(recipe):
    assert pickle.loads(pickle.dumps(recipe)) == recipe


class Killed(Exception):
    pass


class Ending:
    """A schedule that dies after so many calls."""

    left = 100

    def __call__(self, epoch):
        self.left -= 1
        if self.left < 0:
            raise Killed
        return 0.9**epoch

    def __repr__(self):
        return "0.9 ** epoch"


KILLED = [(recipe, stacked) for recipe in RECIPES for stacked in (False, True)]


@pytest.mark.parametrize(("recipe", "stacked"), [*KILLED, (SAM(0.05, base=torch.optim.AdamW), False)])
def test_a_killed_training_goes_on_bit_for_bit(parity, tmp_path, monkeypatch, recipe, stacked):
    monkeypatch.setattr("genlib.train.checkpoint.SECONDS_BETWEEN_SAVES", 0.0)
    nets, schedule = [models.two_layer(16, width=8, seed=s) for s in range(2)], Ending()

    def train(folder):
        kwargs = {"optimizer": recipe, "lr": 0.01, "batch_size": 10, "stop": Stop(epochs=4)}
        kwargs |= {"schedule": schedule, "project": project_first_layer(2.0), "checkpoint": folder}
        return fit_many(nets, parity, stacked=True, **kwargs)[1] if stacked else fit(nets[1], parity, seed=1, **kwargs)

    whole = train(None)
    schedule.left = 10
    with pytest.raises(Killed):
        train(tmp_path)
    schedule.left = 8  # of 16 steps
    assert distance(train(tmp_path).module, whole.module) == 0


def test_recipes_have_checkpoints_of_their_own(parity, tmp_path):
    net = models.two_layer(16, width=8)
    recipes = ["sgd", SAM(0.1), SAM(0.1, adaptive=True), SAM(0.2), SAM(0.1, base="adam"), OneSAM(0.1), LabelNoise(0.1)]
    for recipe in recipes:
        fit(net, parity, optimizer=recipe, lr=0.1, stop=Stop(steps=1), checkpoint=tmp_path)
    for norm in (1.0, 2.0):
        project = project_first_layer(norm)
        fit(net, parity, lr=0.1, stop=Stop(steps=1), project=project, checkpoint=tmp_path)
    assert len(list(tmp_path.glob("*.pt"))) == len(recipes) + 2


def test_projection_keeps_the_norm_of_the_first_layer(parity):
    nets = [models.two_layer(16, width=8, normalization="layer", seed=s) for s in range(2)]
    kwargs = {"optimizer": OneSAM(0.1), "lr": [0.1, 0.2], "loss": "mse", "stop": TEN_STEPS, "seed": [0, 1]}
    kwargs["project"] = project_first_layer(10.0)
    stack = fit_many(nets, parity, stacked=True, **kwargs)
    loop = fit_many(nets, parity, stacked=False, **kwargs)
    for a, b in zip(stack, loop, strict=True):
        first = a.module[0]
        assert torch.cat([first.weight.flatten(), first.bias]).norm().item() == pytest.approx(10, rel=1e-6)
        assert distance(a.module, b.module) < 1e-5


# ------------------------------------------------------------------------------------------------------- noisy labels


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


# ---------------------------------------------------------------------------------------------------------- bad input


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


def test_dry_runs_take_two_steps_of_what_there_is(parity, monkeypatch):
    monkeypatch.setenv("GENLIB_DRY_RUN", "1")
    net = models.two_layer(16, width=8)
    assert fit(net, parity, optimizer=OneSAM(0.1), lr=0.1, batch_size=64, stop=Stop(epochs=100)).steps == 2
