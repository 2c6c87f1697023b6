"""The fused optimizers step as torch.optim's do."""

import subprocess
import sys

import pytest
import torch

from genlib.train.bases import Fused, build

OPTIONS = {"lr": 0.1, "momentum": 0.8, "weight_decay": 1e-2}
SHAPES = [(3, 4, 5), (3, 6), (3,)]
TWINS = {
    "sgd": lambda params, momentum, **rest: torch.optim.SGD(params, momentum=momentum, **rest),
    "adam": lambda params, momentum, **rest: torch.optim.Adam(params, betas=(momentum, 0.999), **rest),
}


def random_params(dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    params = [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]
    return [params[0].mT.contiguous().mT, *params[1:]]  # the first transposed in memory


def stepped(name, params, *, steps, options=OPTIONS, absent=frozenset(), form=lambda g: g, between=lambda *_: None):
    """Fused steps beside torch.optim's, over random gradients, of which the `absent` (step, parameter) are None."""
    ours, theirs = params, [p.clone() for p in params]
    fused, twin = build(name, ours, **options), TWINS[name](theirs, **options)
    assert isinstance(fused, Fused)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        grads = [
            None if (step, i) in absent else torch.randn(p.shape, generator=generator, dtype=p.dtype)
            for i, p in enumerate(theirs)
        ]
        fused.update([None if g is None else form(g) for g in grads])
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g
        twin.step()
        between(step, fused, twin)
    return fused.param_groups[0]["params"], theirs


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [OPTIONS, {"lr": 0.01, "momentum": 0.0, "weight_decay": 0.0}])
def test_each_step_is_that_of_torch_optim(name, dtype, options):
    rounding = 20 * torch.finfo(dtype).eps

    def same(_, fused, twin):
        pairs = zip(fused.param_groups[0]["params"], twin.param_groups[0]["params"], strict=True)
        assert all(torch.allclose(a, b, rtol=rounding, atol=rounding) for a, b in pairs)

    absent = {(0, 1), (3, 0), *((7, i) for i in range(3))}  # one from the first step on, and all of a step
    before = random_params(dtype)
    after, _ = stepped(name, random_params(dtype), steps=12, options=options, absent=absent, between=same)
    assert not any(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize(
    "form",
    [lambda g: g.to_sparse(), lambda g: g.mT.contiguous().mT if g.dim() > 1 else g],
    ids=["sparse", "transposed"],
)
def test_gradients_of_another_layout_step_as_dense_ones(name, form):
    ours, theirs = stepped(name, random_params(torch.float64), steps=4, form=form)
    assert all(torch.allclose(a, b, rtol=1e-13, atol=1e-13) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", TWINS)
def test_a_state_taken_up_goes_on_bit_for_bit(name):
    def swap(step, fused, _):
        if step == 2:
            saved = {"state": [{n: t.clone() for n, t in s.items()} for s in fused.state_dict()["state"]]}
            fused.state = build(name, fused.param_groups[0]["params"], **OPTIONS).state
            fused.load_state_dict(saved)

    absent = {(1, 1)}
    whole, _ = stepped(name, random_params(torch.float32), steps=6, absent=absent)
    resumed, _ = stepped(name, random_params(torch.float32), steps=6, absent=absent, between=swap)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


@pytest.mark.parametrize("name", TWINS)
def test_what_no_fused_kernel_takes_is_left_to_torch_optim(name):
    mixed = [torch.zeros(2), torch.zeros(2, dtype=torch.float64)]
    for params in ([torch.zeros(2, dtype=torch.complex64)], mixed):
        assert isinstance(build(name, params, **OPTIONS), torch.optim.Optimizer)


@pytest.mark.parametrize("name", TWINS)
def test_training_imports_no_compiler(name):
    code = f"""
import sys, torch
from genlib import models
from genlib.data import Dataset
from genlib.train import Stop, fit, fit_many
x, y = torch.rand(8, 6), torch.arange(8) % 3
data = Dataset(x, y, x, y, ("a", "b", "c"))
how = dict(lr=0.1, optimizer="{name}", batch_size=4, stop=Stop(steps=3))
fit(models.mlp(6, 3, width=4), data, **how)
fit_many([models.mlp(6, 3, width=4, seed=s) for s in range(2)], data, **how)
assert not {{"torch._dynamo", "sympy"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
