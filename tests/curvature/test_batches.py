"""The curvature of a batch along its gradient, against the full Hessian."""

import pytest
import torch
from curvature_cases import MEANS, PIECEWISE_LINEAR, TWINS, full, made
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from genlib import models
from genlib.curvature import batch_sharpness, top_eigenvalues
from genlib.network import Network


def by_the_full_hessian(module, inputs, labels, loss="cross_entropy"):
    g = torch.autograd.grad(MEANS[loss](module(inputs), labels), list(module.parameters()))
    g = torch.cat([part.flatten() for part in g])
    return g @ full(module, inputs, labels, loss) @ g / g.square().sum()


@pytest.mark.parametrize("loss", MEANS)
@pytest.mark.parametrize("name", TWINS)
def test_a_batch_of_all_samples_is_exact(name, loss):
    case = TWINS[name]()
    for size in (7, 64):
        found = batch_sharpness(*case, batch_size=size, loss=loss)
        torch.testing.assert_close(found.value, by_the_full_hessian(*case, loss))
        assert found.standard_error == 0 and found.passes == 12
    torch.testing.assert_close(batch_sharpness(*case, loss=loss, chunk_size=3).value, found.value)
    assert found.value <= top_eigenvalues(*case, 1, loss=loss).values[0] * (1 + 1e-4)


@pytest.mark.parametrize("name", ["dense", "tanh"])
def test_batches_scatter_about_the_mean_over_all_of_them(name):
    module, inputs, labels = TWINS[name]()
    pairs = torch.combinations(torch.arange(7))
    exact = torch.stack([by_the_full_hessian(module, inputs[pair], labels[pair]) for pair in pairs])
    found = batch_sharpness(module, inputs, labels, batch_size=2, batches=400)
    assert abs(found.value - exact.mean()) < 4 * found.standard_error
    torch.testing.assert_close(found.standard_error, exact.std() / 20, rtol=0.2, atol=0)
    assert found.passes == 12 * 400 * 2 / 7


@given(seed=st.integers(0, 2**16), widths=st.lists(st.integers(1, 6), max_size=2), scale=st.floats(1e-6, 1e6))
@settings(max_examples=15)
def test_the_loss_times_a_constant_is_as_much_sharper(seed, widths, scale):
    def build():
        sizes = [4, *widths]
        hidden = [part for a, b in zip(sizes, widths, strict=False) for part in (nn.Linear(a, b), nn.Tanh())]
        return nn.Sequential(*hidden, nn.Linear(sizes[-1], 3))

    case = made(build, (4,), seed=seed)
    torch.testing.assert_close(batch_sharpness(*case).value, by_the_full_hessian(*case))
    scaled = batch_sharpness(*case, loss=lambda logits, y: scale * nn.functional.cross_entropy(logits, y))
    torch.testing.assert_close(scaled.value, scale * by_the_full_hessian(*case))


@pytest.mark.parametrize("options", [{"weight": torch.tensor([0.1, 4.0, 1.0])}, {"ignore_index": 0}])
def test_the_weights_of_classes_are_over_each_batch(options):
    """As in training: the loss of torch over a batch is a mean by the weights that are in it."""
    module, inputs, _ = made(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (4,), samples=8)
    labels = torch.tensor([0, 1, 2, 1, 0, 2, 1, 0])
    loss, params = nn.CrossEntropyLoss(**options).double(), list(module.parameters())
    exact = []
    orders = torch.Generator().manual_seed(5)
    for batch in (torch.randperm(8, generator=orders)[:4] for _ in range(10)):
        g = torch.autograd.grad(loss(module(inputs[batch]), labels[batch]), params, create_graph=True)
        along = sum((part * part.detach()).sum() for part in g)
        h = torch.autograd.grad(along, params)
        square = sum(part.detach().square().sum() for part in g)
        exact.append(sum((a * b).sum() for a, b in zip(g, h, strict=True)).detach() / square)
    for network in (module, Network.stack([module] * 2)):
        drawn = {"batch_size": 4, "batches": 10, "generator": torch.Generator().manual_seed(5)}
        found = batch_sharpness(network, inputs, labels, loss=loss, **drawn)
        torch.testing.assert_close(found.value.flatten()[-1], torch.stack(exact).mean())
    with pytest.raises(ValueError, match=r"^labels of a batch are all such as loss ignores"):
        batch_sharpness(module, inputs, labels, batch_size=1, loss=nn.CrossEntropyLoss(ignore_index=0))


def test_a_stack_has_each_models_batches():
    built = [PIECEWISE_LINEAR["max pool"](seed) for seed in range(2)]
    modules, (_, inputs, labels) = [module for module, _, _ in built], built[0]
    found = batch_sharpness(Network.stack(modules), inputs, labels, batch_size=3)
    each = [batch_sharpness(module, inputs, labels, batch_size=3) for module in modules]
    torch.testing.assert_close(found.value, torch.stack([one.value for one in each]))
    torch.testing.assert_close(found.standard_error, torch.stack([one.standard_error for one in each]))


def test_a_network_that_fits_ever_better_keeps_a_direction_in_single_precision():
    module, inputs, labels = made(lambda: models.mlp(5, 3, width=6), (5,))
    with torch.no_grad():
        module[-1].weight.mul_(20)
        labels = module(inputs).argmax(1)
    exact = batch_sharpness(module, inputs, labels).value
    found = batch_sharpness(module.float(), inputs.float(), labels).value
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": 1}, "^batches is 1; draw at least 2"),
        ({"batch_size": 0}, "^batch_size is 0"),
        ({"loss": "error"}, "^loss is 'error'"),
        ({"loss": lambda logits, y: 0 * logits.sum(1)}, "^network: its gradient over a batch is zero"),
    ],
)
def test_bad_requests_for_batches_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        batch_sharpness(*PIECEWISE_LINEAR["dense"](), **options)
