"""The exact trace of networks that are piecewise linear, against that of the full Hessian."""

import copy
import warnings

import pytest
import torch
from curvature_cases import MEANS, PIECEWISE_LINEAR, SMOOTH, Merged, blocks, by_layer, made
from idioms import BENT, CONSTANT, LINEAR, MEETING, NEITHER, Between
from torch import nn
from torch.func import functional_call, jacrev

from genlib import models
from genlib.curvature import trace
from genlib.curvature.gauss_newton import obstacle
from genlib.network import Network


@pytest.mark.parametrize("loss", MEANS)
@pytest.mark.parametrize("name", PIECEWISE_LINEAR)
def test_the_exact_trace_is_that_of_the_full_hessian(name, loss):
    case = PIECEWISE_LINEAR[name]()
    found = trace(*case, loss=loss, method="exact")
    expected = blocks(*case, loss)
    torch.testing.assert_close(found.value, sum(expected.values()))
    torch.testing.assert_close(found.by_layer, by_layer(expected))
    assert found.standard_error == 0
    assert torch.equal(found.value, trace(*case, loss=loss).value)


WRITTEN = {**LINEAR, **CONSTANT, **MEETING, **{name: function for name, (function, _) in BENT.items()}}


@pytest.mark.parametrize("name", WRITTEN)
def test_the_exact_trace_hangs_on_no_way_of_writing(name):
    case = made(lambda: Between(WRITTEN[name]), (2, 5, 4), samples=5)
    found = trace(*case, method="exact")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vmap has no rule for some of them, and says so
        expected = sum(blocks(*case, "cross_entropy").values())
    torch.testing.assert_close(found.value, expected)


@pytest.mark.parametrize("name", NEITHER)
def test_what_is_not_piecewise_linear_has_no_exact_trace(name):
    function, *_ = NEITHER[name]
    module = Between(lambda x: x)
    module.function = function
    assert "is not piecewise linear" in obstacle(Network.of(module), "cross_entropy")


@pytest.mark.parametrize("loss", MEANS)
def test_a_stack_of_one_output_has_each_networks_exact_trace(loss):
    built = [PIECEWISE_LINEAR["one output"](seed) for seed in range(3)]
    modules, (_, inputs, labels) = [module for module, _, _ in built], built[0]
    found = trace(Network.stack(modules), inputs, labels, loss=loss, method="exact", cotangents=2, chunk_size=3)
    expected = torch.stack([sum(blocks(module, inputs, labels, loss).values()) for module in modules])
    torch.testing.assert_close(found.value, expected)
    assert (found.standard_error == 0).all() and found.passes == 2


def test_gram_matrices_and_products_agree():
    # Few places and wide layers, then many places and narrow ones: either way is the cheaper once.
    for channels, side in ((12, 2), (2, 8)):
        module, inputs, labels = made(
            lambda c=channels, s=side: nn.Sequential(
                nn.Conv2d(2, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=1), nn.Flatten(), nn.Linear(c * s * s, 3)
            ),
            (2, side, side),
        )
        expected = sum(blocks(module, inputs, labels, "cross_entropy").values())
        torch.testing.assert_close(trace(module, inputs, labels, method="exact").value, expected)


def test_a_network_with_tanh_has_another_trace_than_its_gauss_newton_part():
    module, inputs, labels = SMOOTH["tanh"]()
    expected = sum(blocks(module, inputs, labels, "cross_entropy").values())
    linear = copy.deepcopy(module)
    params = {name: p.detach() for name, p in module.named_parameters()}
    jacobians = jacrev(lambda p: functional_call(linear, p, (inputs,)))(params)
    j = torch.cat([part.flatten(2) for part in jacobians.values()], 2)
    p = module(inputs).detach().softmax(1)
    gauss_newton = torch.einsum("nap,nab,nbp->", j, torch.diag_embed(p) - p[:, :, None] * p[:, None], j) / len(p)
    assert (expected - gauss_newton).abs() > 0.05 * expected.abs()
    found = trace(module, inputs, labels, vectors=200)
    torch.testing.assert_close(found.value, expected)  # more vectors than parameters: nothing is left to chance


def test_single_precision_is_close():
    module, inputs, labels = PIECEWISE_LINEAR["max pool"]()
    found = trace(copy.deepcopy(module).float(), inputs.float(), labels)
    assert found.value.dtype == torch.float32
    torch.testing.assert_close(found.value.double(), trace(module, inputs, labels).value, rtol=1e-5, atol=0)


def test_half_precision_is_upcast():
    module = models.mlp(5, 4, width=6).bfloat16()
    inputs, labels = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4
    torch.testing.assert_close(
        trace(module, inputs, labels).value, trace(copy.deepcopy(module).float(), inputs, labels).value
    )


@pytest.mark.parametrize("loss", MEANS)
def test_sampled_cotangents_scatter_about_the_exact_trace_as_their_error_says(loss):
    case = PIECEWISE_LINEAR["dense"]()
    exact = trace(*case, loss=loss).value
    runs = [trace(*case, loss=loss, cotangents=2, generator=torch.Generator().manual_seed(seed)) for seed in range(150)]
    values, errors = torch.stack([r.value for r in runs]), torch.stack([r.standard_error for r in runs])
    assert (values.mean() - exact).abs() < 4 * values.std() / 150**0.5
    torch.testing.assert_close(errors.square().mean().sqrt(), values.std(), rtol=0.15, atol=0)


def test_a_hundred_classes_are_sampled_and_can_be_had_exactly():
    module, inputs, labels = made(lambda: models.mlp(5, 100, width=6, depth=2), (5,), classes=100)
    exact = trace(module, inputs, labels, cotangents=100)
    torch.testing.assert_close(exact.value, sum(blocks(module, inputs, labels, "cross_entropy").values()))
    found = trace(module, inputs, labels)
    assert (found.passes, exact.passes, exact.standard_error) == (17, 101, 0)
    assert 0 < found.standard_error < 0.2 * exact.value
    assert (found.value - exact.value).abs() < 4 * found.standard_error
    torch.testing.assert_close(sum(found.by_layer.values()), found.value)


def test_rows_that_are_no_samples_are_refused_by_the_name_of_their_layer():
    case = made(Merged, (4,))
    with pytest.raises(ValueError, match=r"^network: head sees other rows than one for each sample; .*xtrace"):
        trace(*case, method="exact")
    expected = sum(blocks(*case, "cross_entropy").values())
    torch.testing.assert_close(trace(*case, vectors=40).value, expected)


def test_statistics_of_the_batch_at_hand_are_refused():
    case = made(
        lambda: nn.Sequential(nn.Conv1d(1, 2, 1), nn.BatchNorm1d(2, track_running_stats=False), nn.Flatten()), (1, 4)
    )
    with pytest.raises(ValueError, match=r"^network: 1 normalizes by the batch at hand"):
        trace(*case, method="exact")
