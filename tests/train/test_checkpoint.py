"""A killed training goes on bit for bit, from a checkpoint of its own."""

import math

import pytest
from trained import Fading, Killed, identical
from training_cases import apart, build, dataset

from genlib import data, models
from genlib.train import Stop, fit, fit_many


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


@pytest.mark.parametrize("kind", ["buffer replaced", "attribute replaced", "spectral_norm", "weight's hook", "pruned"])
def test_state_beside_the_parameters_goes_on_too(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("genlib.train.checkpoint.SECONDS_BETWEEN_SAVES", 0.0)
    fading = Fading()
    kwargs = {"lr": 0.1, "batch_size": 10, "stop": Stop(epochs=3), "schedule": fading}
    whole = fit(build(kind, 1), dataset(), **kwargs)
    fading.calls, fading.limit = 0, 6
    with pytest.raises(Killed):
        fit(build(kind, 1), dataset(), checkpoint=tmp_path, **kwargs)
    fading.calls, fading.limit = 0, math.inf
    resumed = fit(build(kind, 1), dataset(), checkpoint=tmp_path, **kwargs)
    ended = fit(build(kind, 1), dataset(), checkpoint=tmp_path, **kwargs)
    assert fading.calls == 8
    assert apart(resumed.module, whole.module) == apart(ended.module, whole.module) == 0
