"""A network is its module as a function, a stack its modules side by side."""

import copy

import pytest
import torch
from cases import CASES, HostReads, Residual, Untraceable, dense, unchanged
from torch import nn

from genlib import models
from genlib.network import Network, without_hooks


def some(name, seed=0):
    torch.manual_seed(seed)
    return {
        "dense": lambda: (models.mlp(12, 5, width=7, depth=2, seed=seed), torch.randn(6, 12)),
        "images to dense": lambda: (models.mlp(48, 5, width=7, seed=seed), torch.randn(6, 3, 4, 4)),
        "without bias": lambda: (models.mlp(12, 5, width=7, bias=False, seed=seed), torch.randn(6, 12)),
        "residual": lambda: (Residual().eval(), torch.randn(6, 3, 4, 4)),
        "untraceable": lambda: (Untraceable(nn.Linear(4, 3)), torch.randn(6, 4)),
    }[name]()


@pytest.mark.parametrize("name", ["dense", "images to dense", "without bias", "residual", "untraceable"])
def test_apply_is_the_module(name):
    module, inputs = some(name)
    network = Network.of(module)
    assert torch.equal(network.apply(network.params, inputs), module(inputs))
    assert Network.of(network) is network


@pytest.mark.parametrize("name", ["dense", "images to dense", "without bias", "residual"])
def test_a_stack_is_its_modules_side_by_side(name):
    modules, batches = zip(*(some(name, seed) for seed in range(3)), strict=True)
    stack = Network.stack(modules)
    shared = stack.apply(stack.params, batches[0])
    of_each = stack.apply(stack.params, torch.stack(batches), inputs_of_each=True)
    for i, (module, batch) in enumerate(zip(modules, batches, strict=True)):
        torch.testing.assert_close(shared[i], module(batches[0]), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(of_each[i], module(batch), rtol=1e-5, atol=1e-6)


def test_training_mode_and_weights_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match=r"norm is BatchNorm in training mode; call module\.eval"):
        Network.of(Residual().train()).require_eval()
    with pytest.raises(ValueError, match=r"3 is dropout in training mode; call module\.eval"):
        Network.of(models.mlp(3, 2, width=4, dropout=0.5, seed=0).train()).require_eval()
    broken = models.mlp(3, 2, width=4, seed=0)
    with torch.no_grad():
        next(broken.parameters())[0, 0] = torch.nan
    for network in (lambda: Network.of(broken), lambda: Network.stack([models.mlp(3, 2, width=4, seed=0), broken])):
        with pytest.raises(ValueError, match=r"the weights of 1\.weight are not finite"):
            network()


def test_different_shapes_do_not_stack():
    with pytest.raises(ValueError, match=r"modules\[1\] differs from modules\[0\]"):
        Network.stack([models.mlp(4, 2, width=3, seed=0), models.mlp(4, 2, width=5, seed=0)])
    with pytest.raises(ValueError, match=r"modules\[1\] differs"):
        Network.stack([nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Sequential(nn.Linear(2, 2), nn.Tanh())])


def test_networks_leave_modules_as_they_were():
    module, inputs = some("residual")
    with unchanged(module, inputs):
        network, stack = Network.of(module), Network.stack([module, module])
        network.apply(network.params, inputs)
        stack.params["head.weight"].add_(1.0)


def test_hooks_run_where_there_are_any():
    module, inputs = some("dense")
    assert torch.equal(without_hooks(module)(inputs), module(inputs))
    seen = []
    module[1].register_forward_hook(lambda *_: seen.append("called"))
    without_hooks(module)(inputs)
    assert seen == ["called"]
    residual, _ = some("residual")
    assert without_hooks(residual) is residual


def test_a_stack_runs_a_layer_as_often_as_it_stands_there():
    def shared(seed):
        torch.manual_seed(seed)
        act, twice = nn.Tanh(), nn.Linear(4, 4)
        return nn.Sequential(twice, act, twice, act, nn.Linear(4, 2))

    modules, x = [shared(0), shared(1)], torch.randn(5, 4)
    stack = Network.stack(modules)
    expected = torch.stack([module(x) for module in modules])
    torch.testing.assert_close(stack.apply(stack.params, x), expected, rtol=1e-5, atol=1e-6)


def test_a_layer_that_stands_there_twice_and_a_weight_of_two_layers_are_put_back():
    layer, other = nn.Linear(4, 4), nn.Linear(4, 4)
    other.weight = layer.weight
    module, x = nn.Sequential(layer, nn.Tanh(), layer, other), torch.randn(5, 4)
    network, before, weight = Network.of(module), module(x), layer.weight
    doubled = network.apply({name: 2 * w for name, w in network.params.items()}, x)
    assert layer.weight is weight and other.weight is weight
    assert torch.equal(module(x), before)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        for w in twin.parameters():
            w.mul_(2)
    torch.testing.assert_close(doubled, twin(x))


def test_a_stack_runs_what_only_looks_dense_as_it_is():
    class Doubled(nn.Sequential):
        def forward(self, x):
            return 2 * super().forward(x)

    class Backwards(nn.Sequential):
        def __iter__(self):
            return reversed(self._modules.values())

    def held():
        module = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        del module[0].bias
        module[0].register_buffer("bias", torch.randn(3))
        return module

    for build, shape in (
        (lambda: Backwards(nn.ReLU(), nn.Linear(4, 3)), (5, 4)),
        (lambda: nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)), (5, 2, 2)),
        (held, (5, 4)),
        (lambda: Doubled(nn.Linear(4, 3), nn.ReLU()), (5, 4)),
        (lambda: nn.Sequential(nn.Flatten(1, 2), nn.Linear(4, 3)), (5, 2, 2, 4)),
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).eval(), (5, 4)),
    ):
        modules, x = [build(), build()], torch.randn(shape)
        stack = Network.stack(modules)
        torch.testing.assert_close(stack.apply(stack.params, x), torch.stack([module(x) for module in modules]))


@pytest.mark.parametrize("name", ["dense", "residual"])
def test_each_network_of_a_stack_and_its_copies_share_the_tensors(name):
    modules = [some(name, seed)[0] for seed in (0, 1)]
    inputs, stack = some(name)[1], Network.stack(modules)
    for i, (module, one) in enumerate(zip(modules, stack.each, strict=True)):
        assert one.size is None and one.each == [one]
        assert all(p.data_ptr() == stack.params[key][i].data_ptr() for key, p in one.params.items())
        copied = one.shared_copy()
        torch.testing.assert_close(copied(inputs), module(inputs))
        assert all(p.data_ptr() == one.params[key].data_ptr() for key, p in copied.named_parameters())
        copied.register_forward_hook(lambda *_: pytest.fail("a hook of the copy ran"))
        module(inputs)


@pytest.mark.parametrize("network", [Network.of, lambda module: Network.stack([module, module])])
def test_a_look_at_the_weights_is_one_host_read(network):
    shallow, deep = CASES["dense"]()[0], dense(depth=6)
    for module in (shallow, deep):
        with HostReads() as reads:
            network(module)
        assert reads.count <= 1
