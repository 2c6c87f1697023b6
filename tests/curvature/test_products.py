"""Products with the Hessian, against the full matrix."""

import pytest
import torch
from curvature_cases import MEANS, PIECEWISE_LINEAR, TWINS, flat, full, random_like

from genlib.curvature import hessian_vector_product
from genlib.network import Network


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("loss", MEANS)
@pytest.mark.parametrize("name", TWINS)
def test_products_are_those_of_the_full_hessian(name, loss, chunk_size):
    module, inputs, labels = TWINS[name]()
    v = random_like(module)
    kept = {name: part.clone() for name, part in v.items()}
    product = hessian_vector_product(module, inputs, labels, loss=loss, chunk_size=chunk_size)
    expected = full(module, inputs, labels, loss) @ flat(v)
    for _ in range(2):  # the graph serves again
        torch.testing.assert_close(flat(product(v)), expected)
    assert all(torch.equal(v[name], kept[name]) for name in v)


def test_a_stack_has_every_models_product_at_once():
    built = [PIECEWISE_LINEAR["max pool"](seed) for seed in range(3)]
    modules, (_, inputs, labels) = [module for module, _, _ in built], built[0]
    vs = [random_like(module, seed) for seed, module in enumerate(modules)]
    along = {name: torch.stack([v[name] for v in vs]) for name in vs[0]}
    found = hessian_vector_product(Network.stack(modules), inputs, labels)(along)
    for i, (module, v) in enumerate(zip(modules, vs, strict=True)):
        expected = full(module, inputs, labels) @ flat(v)
        torch.testing.assert_close(flat({name: part[i] for name, part in found.items()}), expected)


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_a_product_is_that_of_the_weights_at_its_making(chunk_size):
    module, inputs, labels = PIECEWISE_LINEAR["dense"]()
    product, v = hessian_vector_product(module, inputs, labels, chunk_size=chunk_size), random_like(module)
    before = product(v)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2)
    torch.testing.assert_close(product(v), before, rtol=0, atol=0)


def test_a_vector_that_does_not_fit_is_refused():
    module, inputs, labels = PIECEWISE_LINEAR["dense"]()
    product, v = hessian_vector_product(module, inputs, labels), random_like(module)
    with pytest.raises(ValueError, match=r"^v has other names or shapes"):
        product({name: part.flatten() for name, part in v.items()})
