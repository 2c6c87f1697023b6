"""A stack is trained where it does what its networks do, and else they are trained one by one."""

import pytest
from torch import nn
from training_cases import FOUR_STEPS, Written, X, Y, apart, build, dataset, torchs_own

from genlib.train import fit, fit_many, loss_and_accuracy

STACKABLE = ["plain", "ReLU in place first", "input in place", "BatchNorm", "tied", "frozen", "subclass", "weight_norm"]


@torchs_own
@pytest.mark.parametrize("kind", STACKABLE)
def test_what_a_stack_can_train_it_does(kind):
    fit_many([build(kind, 0), build(kind, 1)], dataset(), stacked=True, **FOUR_STEPS)


@pytest.mark.parametrize("differ", ["hook", "frozen", "attribute", "precision"])
def test_networks_that_only_look_alike_are_trained_one_by_one(differ):
    nets = [Written(after=lambda self, h: self.scale * h).double() for _ in range(2)]
    for net in nets:
        net.scale = 1.0
    if differ == "hook":
        nets[1].a.register_forward_hook(lambda m, a, o: 3 * o)
    if differ == "frozen":
        nets[1].a.requires_grad_(False)
    if differ == "attribute":
        nets[1].scale = 3.0
    if differ == "precision":
        nets[1].float()
    runs = fit_many(nets, dataset(), **FOUR_STEPS)
    for seed, (run, net) in enumerate(zip(runs, nets, strict=True)):
        alone = fit(net, dataset(), seed=seed, **FOUR_STEPS)
        assert apart(run.module.double(), alone.module.double()) == 0
    with pytest.raises(ValueError, match="stacked is True, but"):
        fit_many(nets, dataset(), stacked=True, **FOUR_STEPS)


def test_dropout_comes_and_goes_with_the_mode():
    nets = [nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.9), nn.Linear(8, 3)).double() for _ in range(2)]
    runs = fit_many(nets, dataset(), stacked=True, **FOUR_STEPS)
    without = fit_many([nn.Sequential(net[0], net[1], net[3]) for net in nets], dataset(), stacked=True, **FOUR_STEPS)
    for run, plain in zip(runs, without, strict=True):
        measured = loss_and_accuracy(run.module, X, Y)[0]
        assert run.history.loss.iloc[-1] == pytest.approx(measured, rel=1e-12)
        assert abs(measured - plain.history.loss.iloc[-1]) > 1e-6
