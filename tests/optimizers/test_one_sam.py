"""The mean gradient of 1-SAM, in closed form, against autograd sample by sample."""

import pytest
import torch
from cases import HostReads, unchanged
from hypothesis import given
from hypothesis import strategies as st
from memory import peak
from optimizers_cases import gradient, loss_of, mean_one_sam_gradient
from torch import nn

from genlib import data, models
from genlib.network import Network, objective
from genlib.optimizers import OneSAM, one_sam_gradient
from genlib.train import Stop, fit


def classes(seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(15, 5, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(4, (15,), generator=generator)


def binary():
    x, y = classes()
    return x, y % 2


def layers(seed, *between):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(5, 6), between[0], nn.Linear(6, 6), between[1], nn.Linear(6, 6), nn.Linear(6, 4)
    ).eval()


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
    "nothing between": (lambda s=0: layers(s, nn.Identity(), nn.Sigmoid()), classes(), "cross_entropy"),
    "dropout of nothing": (lambda s=0: layers(s, nn.Tanh(), nn.Dropout(0.0)), classes(), "mse"),
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


@pytest.mark.parametrize("scale", [1e3, 1e10, 1e16])
def test_inputs_of_any_size_leave_it_finite(scale):
    """A gradient that is next to nothing goes with a step length that is next to infinite."""
    torch.manual_seed(0)
    net, x = models.mlp(6, 3, width=8), scale * torch.randn(23, 6)
    y = net(x).argmax(1)
    y[0] = (y[0] + 1) % 3  # fitted but for one
    ours, theirs = (one_sam_gradient(net, x, y, 0.05, method=method)[1] for method in ("closed form", "per sample"))
    for name, found in ours.items():
        assert found.isfinite().all()
        torch.testing.assert_close(found, theirs[name], rtol=1e-4, atol=1e-5 * float(theirs[name].abs().max()))


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
