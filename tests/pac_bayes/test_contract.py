"""What the search, the bound and the curve keep to together."""

import pytest
import torch
from cases import labelled, unchanged, wide

from genlib.network import Network
from genlib.pac_bayes import largest_sigma, pac_bayes_bound, sharpness_kl


@pytest.mark.parametrize("sampling", ["weights", "preactivations"])
def test_a_stack_is_its_networks_side_by_side(sampling):
    modules, (inputs, labels) = [wide(seed) for seed in range(3)], labelled()
    labels = torch.stack([m(inputs).argmax(-1) for m in modules])
    stack, each = Network.stack(modules), inputs.expand(3, -1, -1)
    found = largest_sigma(stack, each, labels, of="loss", sampling=sampling, tolerance=1e-3)
    bound = pac_bayes_bound(stack, each, labels, initial=stack, std=0.1, draws=10, sampling=sampling)
    curve = sharpness_kl(stack, each, labels, scales=[0.01, 0.1], draws=4, sampling=sampling)
    for i, module in enumerate(modules):
        alone = largest_sigma(module, inputs, labels[i], of="loss", sampling=sampling, tolerance=1e-3)
        torch.testing.assert_close(found.value[i], alone.value, rtol=1e-4, atol=0)
        single = pac_bayes_bound(module, inputs, labels[i], initial=module, std=0.1, draws=10, sampling=sampling)
        torch.testing.assert_close(bound.value[i], single.value)
        one = sharpness_kl(module, inputs, labels[i], scales=[0.01, 0.1], draws=4, sampling=sampling)
        torch.testing.assert_close(curve.sharpness[:, i], one.sharpness)
        torch.testing.assert_close(curve.kl[:, i], one.kl)
    assert str(bound).startswith("error at most")


def test_everything_is_left_as_it_was():
    module, (inputs, labels) = wide(), labelled()
    with unchanged(module, inputs):
        first = largest_sigma(module, inputs, labels)
        pac_bayes_bound(module, inputs, labels, initial=wide(1), std=0.1, draws=4)
        sharpness_kl(module, inputs, labels, scales=[0.1], draws=4)
    assert largest_sigma(module, inputs, labels).value == first.value
