"""What stands between a call of a module and its class's forward is seen, wherever it stands."""

import types

import pytest
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from genlib.network import plainly_called


class Called(nn.Linear):
    def __call__(self, x):
        return 2 * super().__call__(x)


CHANGES = {
    "forward hook": lambda net: net[0].register_forward_hook(lambda m, a, o: o),
    "forward pre-hook": lambda net: net[0].register_forward_pre_hook(lambda m, a: a),
    "backward hook": lambda net: net[0].register_full_backward_hook(lambda m, i, o: i),
    "backward pre-hook": lambda net: net.register_full_backward_pre_hook(lambda m, o: o),
    "call": lambda net: net.append(Called(2, 2)),
    "forward": lambda net: setattr(net, "forward", types.MethodType(lambda self, x: x, net)),
    "compiled": lambda net: net[0].compile(backend="eager"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change):
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    assert plainly_called(net)
    CHANGES[change](net)
    assert not plainly_called(net)


def test_hooks_of_all_modules_are_seen():
    handle = register_module_forward_hook(lambda m, a, o: o)
    try:
        assert not plainly_called(nn.Linear(2, 2))
    finally:
        handle.remove()
    assert plainly_called(nn.Linear(2, 2))
