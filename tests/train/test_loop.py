"""`fit` is the usual loop, from a seed, and leaves everything as it was."""

import copy

import pytest
import torch
from torch import nn
from trained import TEN_STEPS, distance, identical

from genlib import models
from genlib.train import Stop, fit, fit_many, loss_and_accuracy
from genlib.train.loop import _loop_is_faster
from genlib.train.plan import Job


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
        ({"momentum": 1.0}, "momentum is 1.0; it must be at least 0 and below 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"seed": True}, "seed is True; it must be a whole number"),
        ({"optimizer": "lbfgs", "batch_size": 10}, "full batch"),
    ],
)
def test_bad_arguments_are_named(digits, net, kwargs, message):
    with pytest.raises(ValueError, match=message):
        fit(net, digits, **{"lr": 0.1, "stop": Stop(epochs=1), **kwargs})


def test_convolutions_and_wide_layers_loop_on_a_cpu(digits):
    job = lambda module: Job(module, digits, 0.1, 0.0, TEN_STEPS, 0)  # noqa: E731
    assert not _loop_is_faster(job(models.mlp(64, 10, width=64, seed=0)))
    assert _loop_is_faster(job(models.mlp(64, 10, width=512, seed=0)))
    assert _loop_is_faster(job(nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten())))
