"""A stack trains each network as `fit` does, as do a loop and processes."""

import joblib
import pytest
from trained import TEN_STEPS, distance

from genlib import data, models
from genlib.train import Stop, fit, fit_many


@pytest.mark.parametrize(
    ("name", "rates", "normalization"),
    # Not Adam with BatchNorm: the bias before it has no gradient but rounding, which Adam blows up to a full step.
    [("sgd", [0.1, 0.02, 0.05], None), ("sgd", [0.1, 0.02, 0.05], "batch"), ("adam", [1e-3, 3e-3, 1e-2], None)],
)
def test_a_stack_trains_each_network_as_fit_does(digits, name, rates, normalization):
    nets = [models.mlp(64, 10, width=12, depth=2, seed=s, normalization=normalization) for s in range(3)]
    sets = [digits, data.corrupt_labels(digits, 1.0, seed=1), data.shuffle_pixels(digits, seed=2)]
    decays = [0.0, 1e-2, 1e-3]
    shared = {"optimizer": name, "batch_size": 32, "stop": TEN_STEPS, "track_test": True}
    runs = fit_many(nets, sets, lr=rates, weight_decay=decays, seed=[7, 8, 9], stacked=True, **shared)
    for i, run in enumerate(runs):
        alone = fit(nets[i], sets[i], lr=rates[i], weight_decay=decays[i], seed=7 + i, **shared)
        assert distance(run.module, alone.module) < 1e-5
        columns = ["loss", "accuracy", "test_loss", "test_accuracy"]
        assert (run.history[columns] - alone.history[columns]).abs().max().max() < 1e-4


@pytest.mark.parametrize(("name", "lr"), [("sgd", 0.1), ("adam", 1e-3)])
def test_networks_leave_the_stack_in_the_middle_of_an_epoch_and_the_others_go_on(digits, name, lr):
    stops = [Stop(steps=3, every=3), Stop(steps=9, every=3), Stop(steps=14, every=3)]
    nets = [models.mlp(64, 10, width=12, seed=s) for s in range(3)]
    runs = fit_many(nets, digits, optimizer=name, lr=lr, batch_size=32, stop=stops, stacked=True)
    assert [run.steps for run in runs] == [3, 9, 14]
    for i, run in enumerate(runs):
        alone = fit(nets[i], digits, optimizer=name, lr=lr, batch_size=32, stop=stops[i], seed=i)
        assert alone.steps == run.steps
        assert distance(run.module, alone.module) < 1e-5


def test_loop_stack_and_processes_agree(digits):
    nets = [models.mlp(64, 10, width=12, seed=s) for s in range(2)]
    kwargs = {"lr": 0.1, "batch_size": 64, "stop": TEN_STEPS}
    stacked = fit_many(nets, digits, stacked=True, **kwargs)
    looped = fit_many(nets, digits, stacked=False, **kwargs)
    spread = fit_many(nets, digits, stacked=False, workers=2, **kwargs)
    parts = fit_many(nets, digits, stacked=True, workers=2, **kwargs)
    for a, b, c, d in zip(stacked, looped, spread, parts, strict=True):
        assert distance(a.module, b.module) < 1e-5
        assert distance(b.module, c.module) < 1e-6
        assert distance(a.module, d.module) < 1e-5


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_a_stack_in_parts_keeps_its_order_and_every_network(digits, workers):
    stops = [Stop(steps=steps, every=1) for steps in (3, 1, 4, 2, 5)]
    nets = [models.mlp(64, 10, width=6, seed=s) for s in range(5)]
    with joblib.parallel_config(backend="sequential"):
        runs = fit_many(nets, digits, lr=0.1, batch_size=32, stop=stops, stacked=True, workers=workers)
    assert [run.steps for run in runs] == [3, 1, 4, 2, 5]
    assert all(distance(run.initial, net) == 0 for run, net in zip(runs, nets, strict=True))


def test_stacks_of_different_shapes_sizes_or_counts_are_refused(digits, net):
    kwargs = {"lr": 0.1, "batch_size": 32, "stop": TEN_STEPS}
    with pytest.raises(ValueError, match=r"modules\[1\] differs from modules\[0\]"):
        fit_many([net, models.mlp(64, 10, width=8, seed=0)], digits, **kwargs)
    with pytest.raises(ValueError, match="different sizes"):
        fit_many([net, net], [digits, digits.subset(100, seed=0)], stacked=True, **kwargs)
    with pytest.raises(ValueError, match="lr holds 3 values for 2 modules"):
        fit_many([net, net], digits, **{**kwargs, "lr": [0.1, 0.2, 0.3]})
    with pytest.raises(ValueError, match="modules is empty"):
        fit_many([], digits, **kwargs)
    with pytest.raises(ValueError, match=r"stop\.every differs"):
        fit_many([net, net], digits, **{**kwargs, "stop": [TEN_STEPS, Stop(steps=10, every=5)]}, stacked=True)
    with pytest.raises(ValueError, match="one by one"):
        fit_many([net, net], digits, lr=1.0, optimizer="lbfgs", stop=TEN_STEPS, stacked=True)
