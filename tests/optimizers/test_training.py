"""The recipes in training: alone, in stacks, and after a kill."""

import copy
import pickle

import joblib
import pytest
import torch
from optimizers_cases import double, loss_of, mean_one_sam_gradient, sam_gradient
from trained import TEN_STEPS, Fading, Killed, distance

from genlib import data, models
from genlib.optimizers import SAM, LabelNoise, OneSAM, project_first_layer
from genlib.train import Stop, fit, fit_many


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


KILLED = [(recipe, stacked) for recipe in RECIPES for stacked in (False, True)]


@pytest.mark.parametrize(("recipe", "stacked"), [*KILLED, (SAM(0.05, base=torch.optim.AdamW), False)])
def test_a_killed_training_goes_on_bit_for_bit(parity, tmp_path, monkeypatch, recipe, stacked):
    monkeypatch.setattr("genlib.train.checkpoint.SECONDS_BETWEEN_SAVES", 0.0)
    nets, schedule = [models.two_layer(16, width=8, seed=s) for s in range(2)], Fading()

    def train(folder):
        kwargs = {"optimizer": recipe, "lr": 0.01, "batch_size": 10, "stop": Stop(epochs=4)}
        kwargs |= {"schedule": schedule, "project": project_first_layer(2.0), "checkpoint": folder}
        return fit_many(nets, parity, stacked=True, **kwargs)[1] if stacked else fit(nets[1], parity, seed=1, **kwargs)

    whole = train(None)
    schedule.calls, schedule.limit = 0, 10
    with pytest.raises(Killed):
        train(tmp_path)
    schedule.calls, schedule.limit = 0, 8  # of 16 steps
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


def test_dry_runs_take_two_steps_of_what_there_is(parity, monkeypatch):
    monkeypatch.setenv("GENLIB_DRY_RUN", "1")
    net = models.two_layer(16, width=8)
    assert fit(net, parity, optimizer=OneSAM(0.1), lr=0.1, batch_size=64, stop=Stop(epochs=100)).steps == 2
