"""No product of a kernel is rounded to TF32, and the switches are put back."""

import pytest
import torch
from cases import CASES
from torch.backends import cuda, cudnn
from torch.utils._python_dispatch import TorchDispatchMode

from genlib import curvature, landscape, margins, norms, pac_bayes, sensitivity, sharpness
from genlib.network.precision import full_precision

SHAPE = {"input_shape": (3, 4, 4)}
KERNELS = {
    "spectral norms": lambda m, x, y: norms.spectral_norms(m, **SHAPE),
    "stable ranks": lambda m, x, y: norms.stable_ranks(m, **SHAPE),
    "distances": lambda m, x, y: norms.distances(m, CASES["residual"](1)[0], norm="spectral", **SHAPE),
    "path norm": lambda m, x, y: norms.path_norm(m, **SHAPE),
    "norm of a convolution": lambda m, x, y: norms.conv_norm(m.first, (3, 4, 4)),
    "output margins": margins.output_margins,
    "layer margins": margins.layer_margins,
    "expected": lambda m, x, y: sharpness.expected_sharpness(m, x, y, scale=0.1, draws=4),
    "worst case": lambda m, x, y: sharpness.worst_case_sharpness(m, x, y, radius=0.1, steps=2),
    "Keskar's": lambda m, x, y: sharpness.keskar_sharpness(m, x, y, radius=0.1, steps=2),
    "SAM's": lambda m, x, y: sharpness.sam_sharpness(m, x, y, radius=0.1),
    "largest radius": lambda m, x, y: sharpness.largest_radius(m, x, y),
    "bound": lambda m, x, y: pac_bayes.pac_bayes_bound(m, x, y, initial=m, std=0.1, draws=2),
    "curve": lambda m, x, y: pac_bayes.sharpness_kl(m, x, y, scales=[0.1], draws=4),
    "largest sigma": lambda m, x, y: pac_bayes.largest_sigma(m, x, y),
    "Jacobian": lambda m, x, y: sensitivity.jacobian_norms(m, x),
    "Jacobian by projections": lambda m, x, y: sensitivity.mean_squared_jacobian_norm(m, x),
    "transitions": lambda m, x, y: sensitivity.transitions(m, x),
    "trace": curvature.trace,
    "variance of gradients": curvature.gradient_variance,
    "Hessian": lambda m, x, y: curvature.hessian_vector_product(m, x, y)(dict(m.named_parameters())),
    "eigenvalues": lambda m, x, y: curvature.top_eigenvalues(m, x, y, 2),
    "norm of the Hessian": lambda m, x, y: curvature.frobenius_norm(m, x, y, vectors=6),
    "Gauss-Newton's error": lambda m, x, y: curvature.gauss_newton_error(m, x, y, vectors=6),
    "Gauss-Newton's eigenvalues": curvature.gauss_newton_eigenvalues,
    "density": lambda m, x, y: curvature.spectral_density(m, x, y, steps=3, draws=1),
    "volume": lambda m, x, y: curvature.log_basin_volume(m, x, y, 2),
    "line": lambda m, x, y: landscape.line(m, m, x, y, points=2),
    "surface": lambda m, x, y: landscape.surface(m, x, y, points=2),
    "radius": lambda m, x, y: landscape.basin_radius(m, x, y, increase=0.1, directions=2),
}
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward"}


def tf32():
    if hasattr(cudnn, "conv"):
        return [products.fp32_precision == "tf32" for products in (cuda.matmul, cudnn.conv, cudnn.rnn)]
    return [cuda.matmul.allow_tf32, cudnn.allow_tf32]


@pytest.fixture
def tf32_on():
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    cudnn.allow_tf32 = True
    yield
    torch.set_float32_matmul_precision(before[0])
    cudnn.allow_tf32 = before[1]


class Products(TorchDispatchMode):
    """Notes at every product, backward passes included, whether TF32 was allowed."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in PRODUCTS:
            self.seen.append(any(tf32()))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", KERNELS)
def test_no_product_of_a_kernel_is_in_tf32(name, tf32_on):
    module, inputs, labels = CASES["residual"]()
    module, inputs = module.float(), inputs.float()
    with Products() as products:
        KERNELS[name](module, inputs, labels)
    assert products.seen and not any(products.seen)
    assert all(tf32())


def test_pre_activations_are_not_in_tf32(tf32_on):
    with Products() as products:
        sharpness.expected_sharpness(*CASES["dense"](), scale=0.1, draws=4, sampling="preactivations")
    assert products.seen and not any(products.seen)


def test_the_switches_are_put_back_after_an_error(tf32_on):
    def failing(logits, labels):
        assert not any(tf32())
        raise RuntimeError("no loss")

    with pytest.raises(ValueError, match=r"^loss fails .*no loss"):
        sharpness.expected_sharpness(*CASES["dense"](), scale=0.1, draws=4, loss=failing)
    assert all(tf32())
    with full_precision(), full_precision():
        assert not any(tf32())
    assert all(tf32())
