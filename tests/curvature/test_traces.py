"""What every way to a trace keeps to: stacks, chunks, draws, host reads, refusals."""

import copy

import pytest
import torch
from curvature_cases import PIECEWISE_LINEAR
from torch.utils._python_dispatch import TorchDispatchMode

from genlib.curvature import trace
from genlib.network import Network
from genlib.sharpness import Objective


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_chunks_change_nothing(chunk_size):
    case = PIECEWISE_LINEAR["max pool"]()
    for method in ("exact", "xtrace"):
        torch.testing.assert_close(
            trace(*case, method=method, chunk_size=chunk_size).value, trace(*case, method=method).value
        )


@pytest.mark.parametrize("method", ["exact", "xtrace"])
def test_a_stack_gives_each_networks_own(method):
    built = [PIECEWISE_LINEAR["max pool"](seed) for seed in range(3)]
    modules, (_, inputs, labels) = [module for module, _, _ in built], built[0]
    found = trace(Network.stack(modules), inputs, labels, method=method)
    singles = [trace(module, inputs, labels, method=method) for module in modules]
    if method == "exact":
        torch.testing.assert_close(found.value, torch.stack([one.value for one in singles]))
        torch.testing.assert_close(found.by_layer["conv"], torch.stack([one.by_layer["conv"] for one in singles]))
    assert found.value.shape == found.standard_error.shape == (3,)
    each = trace(Network.stack(modules), inputs.expand(3, *inputs.shape), labels.expand(3, -1), method=method)
    torch.testing.assert_close(each.value, found.value)


@pytest.mark.parametrize("method", ["exact", "xtrace"])
def test_nothing_is_touched(method):
    module, inputs, labels = PIECEWISE_LINEAR["max pool"]()
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    before, state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    kept = inputs.clone()
    trace(module, inputs, labels, method=method)
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert all((p.grad == 1).all() and p.requires_grad for p in module.parameters())
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(inputs, kept)
    assert not any(layer._forward_hooks for layer in module.modules())


def test_draws_repeat_and_follow_the_generator():
    case = PIECEWISE_LINEAR["dense"]()
    for options in ({"cotangents": 2}, {"method": "xtrace", "vectors": 6}):
        first, again = (trace(*case, **options).value for _ in range(2))
        other = trace(*case, **options, generator=torch.Generator().manual_seed(1)).value
        assert first == again != other


@pytest.mark.parametrize("options", [{}, {"cotangents": 2}, {"method": "xtrace"}])
def test_the_host_reads_are_those_of_the_checks(options):
    class Count(TorchDispatchMode):
        reads = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.reads += function is torch.ops.aten._local_scalar_dense.default
            return function(*args, **(kwargs or {}))

    case = PIECEWISE_LINEAR["max pool"]()
    with Count() as checks:
        Objective.of(*case)
    with Count() as count:
        trace(*case, chunk_size=3, **options)
    assert count.reads <= checks.reads + 3  # the derivatives, the layers' rows, and whether the result is finite


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "error"}, "^loss is 'error'"),
        ({"loss": "hinge"}, "^loss is 'hinge'"),
        ({"method": "hutchinson"}, r"^method is 'hutchinson'; choose auto, exact or xtrace"),
        ({"cotangents": 1}, "^cotangents is 1"),
        ({"vectors": 5}, "^vectors is 5"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        trace(*PIECEWISE_LINEAR["dense"](), **options)


def test_bad_data_are_refused():
    module, inputs, labels = PIECEWISE_LINEAR["dense"]()
    with pytest.raises(ValueError, match=r"^labels has values outside"):
        trace(module, inputs, labels + 3)
    with pytest.raises(ValueError, match="not finite"):
        trace(module, inputs * torch.inf, labels)
    module, inputs, labels = PIECEWISE_LINEAR["max pool"]()
    with pytest.raises(ValueError, match="BatchNorm in training mode"):
        trace(module.train(), inputs, labels)


def test_the_shares_of_the_layers_carry_errors():
    case = PIECEWISE_LINEAR["max pool"]()
    exact = trace(*case)
    assert exact.errors_by_layer.keys() == exact.by_layer.keys()
    assert not any(exact.errors_by_layer.values()) and not exact.standard_error
    runs = [trace(*case, cotangents=2, generator=torch.Generator().manual_seed(seed)) for seed in range(100)]
    for layer, value in exact.by_layer.items():
        shares, errors = (torch.stack([getattr(r, of)[layer] for r in runs]) for of in ("by_layer", "errors_by_layer"))
        torch.testing.assert_close(errors.square().mean().sqrt(), shares.std(), rtol=0.3, atol=0)
        assert (shares.mean() - value).abs() < 4 * shares.std() / 10
