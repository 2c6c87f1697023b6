"""Dense chains in closed form train as autograd does; what is more than such a chain is left to autograd."""

import random
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from trained import distance, identical
from training_cases import Threefold

from genlib import data
from genlib.network import ELEMENTWISE
from genlib.network.chains import dense_chain, loss_and_slope
from genlib.network.losses import per_sample_loss, sample_losses
from genlib.network.normalizations import SimplifiedLayerNorm
from genlib.optimizers import SAM, project_first_layer
from genlib.train import Stop, engines, fit, fit_many

SHAPES = ((6,), (2, 3))
CE = nn.functional.cross_entropy


def dataset(shape=(6,), classes=3, precision=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(23, *shape, generator=generator, dtype=torch.float64).to(precision)
    y = torch.randint(max(classes, 2), (23,), generator=generator)
    return data.Dataset(x, y, x, y, tuple("abc"[: max(classes, 2)]))


def chain(seed, classes, *, weights=0, dropout=False):
    """Up to four dense layers with any elementwise operations between them, as the seed has it."""
    draw = random.Random(seed)
    torch.manual_seed(weights)
    layers, width = [nn.Flatten()], 6
    for _ in range(draw.randrange(4)):
        units = draw.randint(1, 9)
        layers += [nn.Linear(width, units, bias=draw.random() < 0.7)]
        layers += [draw.choice([*(kind() for kind in ELEMENTWISE), nn.ReLU(inplace=True), SimplifiedLayerNorm(0.5)])]
        layers += [nn.Dropout(0.3)] if dropout and draw.random() < 0.5 else []
        width = units
    return nn.Sequential(*layers, nn.Linear(width, classes, bias=draw.random() < 0.7))


def recipe(seed):
    draw = random.Random(seed)
    return {
        "lr": 0.01,
        "optimizer": draw.choice(["sgd", "sgd", SAM(0.1), SAM(0.1, adaptive=True)]),
        "loss": draw.choice(["cross_entropy", "mse"]),
        "momentum": draw.choice([0.0, 0.9]),
        "weight_decay": draw.choice([0.0, 0.01]),
        "batch_size": draw.choice([None, 1, 4, 16]),
    }


@pytest.fixture
def by_autograd(monkeypatch):
    """A function that trains as training was before there were chains."""

    def trained(train, *args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(engines, "_chain", lambda *_: None)
            return train(*args, **kwargs)

    return trained


@pytest.mark.parametrize(
    ("precision", "steps", "close", "seeds"),
    [(torch.float32, 10, 1e-5, range(50)), (torch.float64, 100, 1e-9, range(0, 75, 5))],
)
def test_chains_alone_and_in_stacks_are_trained_as_by_autograd(
    precision, steps, close, seeds, by_autograd, monkeypatch
):
    passes, moved, networks = counted(monkeypatch), 0, 0
    for seed in seeds:
        classes, stacked = (3, 2, 1)[seed % 3], bool(seed % 2)
        samples = dataset(SHAPES[seed // 2 % 2], classes, precision)
        kwargs = recipe(seed) | {"stop": Stop(steps=steps, every=steps)}
        # A stack draws all masks of dropout at once, autograd's each network's own.
        nets = [chain(seed, classes, weights=i, dropout=not stacked) for i in range(3 if stacked else 1)]
        nets, kwargs["stacked"] = [net.to(precision) for net in nets], stacked
        before = passes[0]
        found = fit_many(nets, samples, **kwargs)
        assert passes[0] - before == steps * (2 if isinstance(kwargs["optimizer"], SAM) else 1)
        for run, other, net in zip(found, by_autograd(fit_many, nets, samples, **kwargs), nets, strict=True):
            assert distance(run.module, other.module) < close, (seed, net, kwargs)
            moved, networks = moved + (distance(run.module, net) > 1e-3), networks + 1
    assert moved > 0.8 * networks  # the others are silent from the start


def counted(monkeypatch):
    passes, original = [0], engines.loss_and_gradient

    def counting(*args):
        passes[0] += 1
        return original(*args)

    monkeypatch.setattr(engines, "loss_and_gradient", counting)
    return passes


def mlp(activation=nn.ReLU, *, seed=1, **options):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 9, **options), activation(), nn.Linear(9, 3, **options))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", SAM(0.1)])
@pytest.mark.parametrize("activation", [*ELEMENTWISE, lambda: nn.ReLU(inplace=True), lambda: nn.Dropout(0.4)])
def test_fit_is_autograds_bit_for_bit(activation, optimizer, by_autograd):
    for bias in (True, False):
        net, samples = mlp(activation, bias=bias), dataset()
        kwargs = {"lr": 0.1, "batch_size": 5, "optimizer": optimizer, "stop": Stop(steps=20)}
        found = fit(net, samples, weight_decay=0.01, **kwargs)
        assert identical(found.module, by_autograd(fit, net, samples, weight_decay=0.01, **kwargs).module)


class Doubled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


class Skipping(nn.Sequential):
    """Without its activations, which it holds all the same."""

    def __iter__(self):
        return (layer for layer in self._modules.values() if isinstance(layer, nn.Linear))


def held(net, kind, *, buffer):
    """The first layer's weight or bias as a buffer or a plain tensor, so that it stays as it is."""
    tensor = 2 * getattr(net[0], kind).detach() + 1
    delattr(net[0], kind)
    net[0].register_buffer(kind, tensor) if buffer else setattr(net[0], kind, tensor)


def changed(change, net=None):
    net = net or mlp()
    change(net)
    return net


def tied(kind):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    setattr(net[2], kind, getattr(net[0], kind))
    return net


OTHERS = {
    "forward hook": lambda: changed(lambda net: net[0].register_forward_hook(lambda m, x, y: 2 * y)),
    "backward hook": lambda: changed(lambda net: net[1].register_full_backward_hook(lambda m, x, y: (2 * x[0],))),
    "weight's hook": lambda: changed(lambda net: net[0].weight.register_hook(lambda g: 2 * g)),
    "frozen bias": lambda: changed(lambda net: net[0].bias.requires_grad_(False)),
    "weight twice": lambda: tied("weight"),
    "bias twice": lambda: tied("bias"),
    "bias as a buffer": lambda: changed(lambda net: held(net, "bias", buffer=True)),
    "bias as a tensor": lambda: changed(lambda net: held(net, "bias", buffer=False)),
    "weight as a buffer": lambda: changed(lambda net: held(net, "weight", buffer=True)),
    "an order of its own": lambda: Skipping(*mlp()),
    "forward of its own": lambda: Doubled(*mlp()),
    "layer's own forward": lambda: nn.Sequential(Threefold(6, 9), nn.ReLU(), nn.Linear(9, 3)),
    "another layer": lambda: nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.Linear(9, 3)),
    "parametrized": lambda: changed(lambda net: parametrizations.weight_norm(net[0])),
    "bfloat16": lambda: mlp().bfloat16(),
}


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("kind", [*OTHERS, "loss"])
def test_what_is_more_than_a_chain_takes_autograd(kind, by_autograd, monkeypatch):
    net = OTHERS.get(kind, mlp)()
    kwargs = {"lr": 0.1, "batch_size": 8, "loss": "cross_entropy", "stop": Stop(steps=4)}
    if kind == "loss":
        kwargs["loss"] = lambda logits, labels: 2 * CE(logits, labels, reduction="none")
    passes, plain = counted(monkeypatch), fit(mlp(), dataset(), **kwargs | {"loss": "cross_entropy"})
    assert passes == [4]
    found = fit(net, dataset(), **kwargs)
    assert passes == [4]
    assert identical(found.module, by_autograd(fit, net, dataset(), **kwargs).module)
    assert kind in ("bfloat16", "parametrized") or found.history.loss.iloc[-1] != plain.history.loss.iloc[-1]


def test_inputs_that_require_a_gradient_get_none_and_change_nothing():
    samples, kwargs = dataset(), {"lr": 0.1, "stop": Stop(steps=4)}
    watched = samples.inputs.clone().requires_grad_()
    found = fit(mlp(), replace(samples, inputs=watched), batch_size=8, **kwargs)
    assert watched.grad is None and identical(found.module, fit(mlp(), samples, batch_size=8, **kwargs).module)


@pytest.mark.parametrize("stacked", [True, False])
def test_projections_and_augmentations_see_what_they_saw(stacked, by_autograd):
    kwargs = {"lr": 0.1, "stop": Stop(steps=4), "project": project_first_layer(2.0), "augment": lambda x: 2 * x}
    nets = [mlp(seed=1), mlp(seed=2)]
    kwargs |= {"stacked": stacked, "batch_size": 8}
    found, others = fit_many(nets, dataset(), **kwargs), by_autograd(fit_many, nets, dataset(), **kwargs)
    for run, other in zip(found, others, strict=True):
        assert distance(run.module, other.module) < 1e-6
        first = nn.utils.parameters_to_vector(run.module[0].parameters())
        assert first.norm().item() == pytest.approx(2.0, rel=1e-6)


def test_a_batch_of_another_width_is_named():
    with pytest.raises(ValueError, match=r"network: its forward pass fails on inputs of shape \(8, 5\)"):
        fit(mlp(), dataset(), lr=0.1, batch_size=8, stop=Stop(steps=1), augment=lambda x: x[:, 1:])


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", lambda z, y: CE(z, y, reduction="none") ** 2])
@pytest.mark.parametrize("models", [(), (2,)])
def test_the_slope_of_each_loss_is_autograds(models, loss):
    generator = torch.Generator().manual_seed(0)
    for classes in (1, 2, 5) if isinstance(loss, str) else (2, 5):
        z = 3 * torch.randn(*models, 7, classes, generator=generator, dtype=torch.float64).requires_grad_()
        y = torch.randint(max(classes, 2), (*models, 7), generator=generator)
        losses, slope = loss_and_slope(loss, y, z.detach(), 0.3)
        expected = sample_losses(per_sample_loss(loss), z, y)
        torch.testing.assert_close(losses, expected.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(slope, torch.autograd.grad(0.3 * expected.sum(), z)[0], rtol=1e-12, atol=1e-12)


def test_the_slope_is_of_the_logits_precision():
    torch.set_default_dtype(torch.float64)
    try:
        for loss in ("cross_entropy", "mse"):
            found = loss_and_slope(loss, torch.tensor([0, 1]), torch.tensor([[0.5], [2.0]], dtype=torch.float32))
            assert [each.dtype for each in found] == [torch.float32] * 2
    finally:
        torch.set_default_dtype(torch.float32)


def test_inputs_must_come_flat():
    net = mlp()
    moving = dict(net.named_parameters())
    assert dense_chain(net, moving, (6,))[0] is not None
    assert "aren't flattened" in dense_chain(net, moving, (2, 6))[1]
    assert dense_chain(nn.Sequential(nn.Flatten(), *net), {f"{int(n[0]) + 1}{n[1:]}" for n in moving}, (2, 3))[0]
