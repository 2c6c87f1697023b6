import copy
import math

import joblib
import pytest
import torch
from torch import nn

from genlib import data, models
from genlib.train import Stop, fit, fit_many, loss_and_accuracy
from genlib.train.loop import _loop_is_faster
from genlib.train.plan import Job

TEN_STEPS = Stop(steps=10, every=10)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", train=200, test=50, seed=3)


@pytest.fixture
def net():
    return models.mlp(64, 10, width=16, seed=1)


def distance(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs)


def identical(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def usual_loop(module, dataset, optimizer, batch_size, steps, seed):
    """What a textbook writes, over the order that `fit` promises: a new permutation from its seed each epoch."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for index in torch.randperm(len(dataset), generator=generator).split(batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(dataset.inputs[index]), dataset.labels[index]).backward()
            optimizer.step()
            steps -= 1
            if steps == 0:
                return module


@pytest.mark.parametrize(
    ("name", "lr", "build"),
    [
        ("sgd", 0.1, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3)),
        ("adam", 1e-3, lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=1e-3)),
        ("rmsprop", 1e-3, lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, weight_decay=1e-3)),
    ],
)
def test_fit_is_the_usual_loop(digits, net, name, lr, build):
    run = fit(net, digits, optimizer=name, lr=lr, weight_decay=1e-3, batch_size=64, stop=TEN_STEPS, seed=5)
    other = copy.deepcopy(net)
    usual_loop(other, digits, build(other.parameters()), 64, 10, seed=5)
    assert distance(run.module, other) < 1e-6
    own = fit(net, digits, optimizer=build, lr=lr, batch_size=64, stop=TEN_STEPS, seed=5)
    assert distance(own.module, run.module) < 1e-6


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


def test_networks_leave_the_stack_in_the_middle_of_an_epoch_and_the_others_go_on(digits, net):
    stops = [Stop(steps=3, every=3), Stop(steps=9, every=3), Stop(steps=14, every=3)]
    nets = [models.mlp(64, 10, width=12, seed=s) for s in range(3)]
    runs = fit_many(nets, digits, lr=0.1, batch_size=32, stop=stops, stacked=True)
    assert [run.steps for run in runs] == [3, 9, 14]
    for i, run in enumerate(runs):
        alone = fit(nets[i], digits, lr=0.1, batch_size=32, stop=stops[i], seed=i)
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


def test_targets_stop_training_and_caps_do_not_count_as_convergence(digits, net):
    run = fit(net, digits, lr=0.1, batch_size=32, stop=Stop(loss=0.5, accuracy=0.9, epochs=50))
    last = run.history.iloc[-1]
    assert run.converged and last.loss <= 0.5 and last.accuracy >= 0.9
    assert (run.history.loss.iloc[:-1] > 0.5).any()
    measured = loss_and_accuracy(run.module, digits.inputs, digits.labels)
    assert measured == pytest.approx((last.loss, last.accuracy), abs=1e-6)
    capped = fit(net, digits, lr=0.1, batch_size=32, stop=Stop(loss=1e-9, steps=4))
    assert not capped.converged and capped.steps == 4
    assert fit(net, digits, lr=0.1, batch_size=32, stop=Stop(steps=4)).converged


def test_full_batch_and_lbfgs(digits, net):
    run = fit(net, digits, lr=1.0, optimizer="lbfgs", stop=Stop(loss=0.01, steps=50))
    assert run.converged
    descent = fit(net, digits, lr=0.1, momentum=0.0, stop=Stop(steps=1))
    manual = copy.deepcopy(net)
    loss = nn.functional.cross_entropy(manual(digits.inputs), digits.labels)
    grads = torch.autograd.grad(loss, list(manual.parameters()))
    with torch.no_grad():
        for p, g in zip(manual.parameters(), grads, strict=True):
            p -= 0.1 * g
    assert distance(descent.module, manual) < 1e-6


def test_mean_squared_error_is_torchs(digits, net):
    inputs, labels = digits.inputs, digits.labels
    targets = nn.functional.one_hot(labels, 10).float()
    expected = nn.functional.mse_loss(net(inputs), targets).item()
    assert loss_and_accuracy(net, inputs, labels, loss="mse")[0] == pytest.approx(expected, rel=1e-6)


def test_schedule_is_a_factor_on_the_rate(digits, net):
    run = fit(net, digits, lr=0.2, batch_size=64, stop=TEN_STEPS, schedule=lambda epoch: 0.5, seed=2)
    assert identical(run.module, fit(net, digits, lr=0.1, batch_size=64, stop=TEN_STEPS, seed=2).module)
    epochs = []
    fit(net, digits, lr=0.1, batch_size=100, stop=Stop(epochs=2), schedule=lambda epoch: epochs.append(epoch) or 1.0)
    assert epochs == [0.0, 0.5, 1.0, 1.5]


def test_augment_sees_training_batches_alone(digits, net):
    sizes = []
    fit(net, digits, lr=0.1, batch_size=64, stop=Stop(epochs=1), augment=lambda x: sizes.append(len(x)) or x)
    assert sizes == [64, 64, 64, 8]


def test_fit_leaves_module_mode_and_random_state_as_they_were(digits):
    module = models.mlp(64, 10, width=8, dropout=0.5, normalization="batch", seed=0).train()
    before, random_state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    run = fit(module, digits, lr=0.1, batch_size=64, stop=Stop(epochs=1))
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert module.training and not run.module.training
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(p.grad is None for p in module.parameters())
    assert identical(run.initial, module)


def test_same_seed_same_bits_with_dropout(digits):
    module = models.mlp(64, 10, width=8, dropout=0.5, seed=0)
    one, other = (fit(module, digits, lr=0.1, batch_size=64, stop=Stop(epochs=2), seed=4) for _ in range(2))
    assert identical(one.module, other.module)
    assert not identical(one.module, fit(module, digits, lr=0.1, batch_size=64, stop=Stop(epochs=2), seed=5).module)


class Killed(Exception):
    pass


class Fading:
    """A schedule that counts its calls and dies at the `limit`th."""

    calls, limit = 0, math.inf

    def __call__(self, epoch):
        self.calls += 1
        if self.calls > self.limit:
            raise Killed
        return 0.9**epoch

    def __repr__(self):
        return "0.9 ** epoch"


@pytest.mark.parametrize("stacked", [False, True])
def test_a_killed_training_goes_on_bit_for_bit(digits, tmp_path, monkeypatch, stacked):
    monkeypatch.setattr("genlib.train.checkpoint.SECONDS_BETWEEN_SAVES", 0.0)
    nets = [models.mlp(64, 10, width=8, dropout=0.2, normalization="batch", seed=s) for s in range(3)]
    fading = Fading()

    def train_all(folder):
        stops = [Stop(epochs=2), Stop(epochs=6), Stop(epochs=6)]
        kwargs = {"lr": 0.1, "batch_size": 64, "optimizer": "adam", "schedule": fading, "checkpoint": folder}
        if stacked:
            return fit_many(nets, digits, stop=stops, stacked=True, **kwargs)
        return [
            fit(net, digits, stop=stop, seed=i, **kwargs) for i, (net, stop) in enumerate(zip(nets, stops, strict=True))
        ]

    whole = train_all(None)
    steps = fading.calls
    fading.calls, fading.limit = 0, steps * 2 // 3
    with pytest.raises(Killed):
        train_all(tmp_path)
    fading.calls, fading.limit = 0, math.inf
    resumed = train_all(tmp_path)
    assert 0 < fading.calls < steps * 0.7  # most of the work was not done again
    for a, b in zip(whole, resumed, strict=True):
        assert identical(a.module, b.module)
        assert a.history.drop(columns="seconds").equals(b.history.drop(columns="seconds"))
        assert (a.steps, a.converged) == (b.steps, b.converged)
    fading.calls = 0
    again = train_all(tmp_path)
    assert fading.calls == 0
    assert all(identical(a.module, b.module) for a, b in zip(whole, again, strict=True))


def test_a_checkpoint_is_of_one_training_only(digits, net, tmp_path):
    kwargs = {"batch_size": 64, "stop": Stop(epochs=1), "checkpoint": tmp_path}
    one = fit(net, digits, lr=0.1, **kwargs)
    assert not identical(fit(net, digits, lr=0.2, **kwargs).module, one.module)
    assert not identical(fit(net, data.corrupt_labels(digits, 1.0, seed=0), lr=0.1, **kwargs).module, one.module)
    assert len(list(tmp_path.glob("*.pt"))) == 3
    assert not list(tmp_path.glob("*.partial"))


def test_a_checkpoint_cut_short_is_refused_by_name(digits, net, tmp_path):
    kwargs = {"lr": 0.1, "batch_size": 64, "stop": Stop(epochs=1), "checkpoint": tmp_path}
    fit(net, digits, **kwargs)
    (file,) = tmp_path.glob("*.pt")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"{file.name}.*delete it"):
        fit(net, digits, **kwargs)


def test_divergence_is_told_with_its_step(digits, net):
    with pytest.raises(FloatingPointError, match="not finite at step 2; lower lr"):
        fit(net, digits, lr=1e20, batch_size=64, stop=Stop(epochs=3))
    runs = fit_many([net, net], digits, lr=[0.1, 1e20], batch_size=64, stop=Stop(epochs=3), stacked=True)
    assert [run.diverged_at for run in runs] == [None, 2]
    assert list(runs.converged) == [True, False]
    assert runs[0].steps == 12


def test_dry_run_takes_two_steps(digits, net, monkeypatch):
    monkeypatch.setenv("GENLIB_DRY_RUN", "1")
    assert fit(net, digits, lr=0.1, batch_size=64, stop=Stop(epochs=100)).steps == 2


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"optimizer": "sdg"}, "optimizer is 'sdg'; choose sgd, adam"),
        ({"loss": "hinge"}, "loss is 'hinge'; choose cross_entropy or mse"),
        ({"lr": 0.0}, "lr is 0.0; it must be positive"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"seed": True}, "seed is True; it must be a whole number"),
        ({"optimizer": "lbfgs", "batch_size": 10}, "full batch"),
    ],
)
def test_bad_arguments_are_named(digits, net, kwargs, message):
    with pytest.raises(ValueError, match=message):
        fit(net, digits, **{"lr": 0.1, "stop": Stop(epochs=1), **kwargs})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "never ends"),
        ({"steps": 0}, "stop.steps is 0"),
        ({"accuracy": 1.5}, "at most 1"),
        ({"loss": -1.0}, "positive"),
    ],
)
def test_a_bad_stop_is_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Stop(**kwargs)


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


def test_convolutions_and_wide_layers_loop_on_a_cpu(digits):
    job = lambda module: Job(module, digits, 0.1, 0.0, TEN_STEPS, 0)  # noqa: E731
    assert not _loop_is_faster(job(models.mlp(64, 10, width=64, seed=0)))
    assert _loop_is_faster(job(models.mlp(64, 10, width=512, seed=0)))
    assert _loop_is_faster(job(nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten())))


def test_killing_a_loop_of_networks_loses_none_that_had_finished(digits, tmp_path):
    nets = [models.mlp(64, 10, width=8, seed=s) for s in range(3)]
    fading = Fading()
    kwargs = {"lr": 0.1, "batch_size": 64, "stop": Stop(epochs=2), "schedule": fading, "checkpoint": tmp_path}
    fading.limit = 20  # of 8 steps a network: in the middle of the third
    with pytest.raises(Killed):
        fit_many(nets, digits, stacked=False, **kwargs)
    fading.calls, fading.limit = 0, math.inf
    runs = fit_many(nets, digits, stacked=False, **kwargs)
    assert fading.calls == 8
    assert [run.steps for run in runs] == [8, 8, 8]
