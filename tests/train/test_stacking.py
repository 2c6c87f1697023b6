"""A stack is trained where it does what its networks do, and else they are trained one by one."""

import pytest
from training_cases import FOUR_STEPS, Written, apart, build, dataset, torchs_own

from genlib.train import fit, fit_many

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
