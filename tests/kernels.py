"""Every public kernel as one call on small networks, for the promises that all of them keep."""

from dataclasses import replace

import torch
from torch import nn

from genlib import bayes, curvature, features, landscape, margins, norms, optimizers, pac_bayes, sensitivity, sharpness
from genlib.measures import CATALOGUE, evaluate
from genlib.network import Network

SHAPE = (2, 6, 6)


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


def convolutional(seed=0):
    """Convolutions, BatchNorm with statistics of its own, a skip, both kinds of pooling, a dense layer."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        Residual(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), nn.ReLU())),
        nn.MaxPool2d(2),
        nn.AvgPool2d(3),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    network(torch.randn(50, *SHAPE))  # statistics
    return network.eval()


def dense(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def data(network):
    inputs = torch.randn(24, *SHAPE, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return inputs, network(inputs).argmax(-1)


def doubled(module):
    network = Network.of(module)
    return replace(network, params={name: 2 * w for name, w in network.params.items()})


def kernels(draws=8, steps=3):
    """Every public kernel, and every row of the catalogue, called on a network, its start, inputs and labels."""
    drawn = {"scale": 0.05, "draws": draws}
    by_name = {
        "operator_frobenius_norms": lambda n, s, x, y: norms.operator_frobenius_norms(n, input_shape=SHAPE),
        "log_path_norm": lambda n, s, x, y: norms.log_path_norm(n, input_shape=SHAPE),
        "log_spectral_complexity": lambda n, s, x, y: norms.log_spectral_complexity(n, s, input_shape=SHAPE),
        "log_frobenius_complexity": lambda n, s, x, y: norms.log_frobenius_complexity(n, s, input_shape=SHAPE),
        "frobenius_norms": lambda n, s, x, y: norms.frobenius_norms(n),
        "group_norms": lambda n, s, x, y: norms.group_norms(n, 2, 1),
        "spectral_norms": lambda n, s, x, y: norms.spectral_norms(n, input_shape=SHAPE),
        "stable_ranks": lambda n, s, x, y: norms.stable_ranks(n, input_shape=SHAPE),
        "layer_norms": lambda n, s, x, y: norms.layer_norms(n, initial=s, input_shape=SHAPE, singular_values=2),
        "distances": lambda n, s, x, y: norms.distances(n, s, norm="spectral", input_shape=SHAPE),
        "path_norm": lambda n, s, x, y: norms.path_norm(n, input_shape=SHAPE),
        "spectral_complexity": lambda n, s, x, y: norms.spectral_complexity(n, s, input_shape=SHAPE),
        "output_margins": lambda n, s, x, y: margins.output_margins(n, x, y),
        "input_margins": lambda n, s, x, y: margins.input_margins(n, x, y),
        "layer_margins": lambda n, s, x, y: margins.layer_margins(n, x, y),
        "normalized_margins": lambda n, s, x, y: margins.normalized_margins(n, s, x, y),
        "jacobian_norms": lambda n, s, x, y: sensitivity.jacobian_norms(
            n, x, of=("logits", "probabilities", "cross_entropy")
        ),
        "jacobian_norms, spectral": lambda n, s, x, y: sensitivity.jacobian_norms(n, x, norm="spectral"),
        "mean_squared_jacobian_norm": lambda n, s, x, y: sensitivity.mean_squared_jacobian_norm(n, x),
        "local_complexity": lambda n, s, x, y: sensitivity.local_complexity(n, x, directions=draws),
        "mixup_error": lambda n, s, x, y: sensitivity.mixup_error(n, x, y),
        "last_features": lambda n, s, x, y: features.last_features(n, x),
        "function_distance": lambda n, s, x, y: pac_bayes.function_distance(n, s, x),
        "transitions": lambda n, s, x, y: sensitivity.transitions(n, x),
        "expected_sharpness": lambda n, s, x, y: sharpness.expected_sharpness(n, x, y, **drawn),
        "expected_sharpness by weights": lambda n, s, x, y: sharpness.expected_sharpness(
            n, x, y, sampling="weights", noise="magnitude", **drawn
        ),
        "worst_case_sharpness": lambda n, s, x, y: sharpness.worst_case_sharpness(
            n, x, y, radius=0.1, ball="adaptive", steps=steps, restarts=2
        ),
        "keskar_sharpness": lambda n, s, x, y: sharpness.keskar_sharpness(n, x, y, radius=1e-3, steps=steps),
        "largest_radius": lambda n, s, x, y: sharpness.largest_radius(n, x, y, steps=steps),
        "sam_sharpness": lambda n, s, x, y: sharpness.sam_sharpness(n, x, y, radius=0.05),
        "pac_bayes_bound": lambda n, s, x, y: pac_bayes.pac_bayes_bound(n, x, y, initial=s, std=0.01, draws=draws),
        "sharpness_kl": lambda n, s, x, y: pac_bayes.sharpness_kl(n, x, y, scales=[0.01, 0.1], draws=draws),
        "largest_sigma": lambda n, s, x, y: pac_bayes.largest_sigma(n, x, y),
        "trace": lambda n, s, x, y: curvature.trace(n, x, y),
        "trace by vectors": lambda n, s, x, y: curvature.trace(n, x, y, method="xtrace", vectors=6),
        "gradient_variance": lambda n, s, x, y: curvature.gradient_variance(n, x, y),
        "hessian_vector_product": lambda n, s, x, y: curvature.hessian_vector_product(n, x, y)(
            {name: p.detach() for name, p in s.named_parameters()}
        ),
        "top_eigenvalues": lambda n, s, x, y: curvature.top_eigenvalues(n, x, y, 3),
        "frobenius_norm": lambda n, s, x, y: curvature.frobenius_norm(n, x, y, vectors=6),
        "gauss_newton_error": lambda n, s, x, y: curvature.gauss_newton_error(n, x, y, vectors=6),
        "gauss_newton_eigenvalues": lambda n, s, x, y: curvature.gauss_newton_eigenvalues(n, x, y),
        "information_criteria": lambda n, s, x, y: curvature.information_criteria(n, x, y),
        "batch_sharpness": lambda n, s, x, y: curvature.batch_sharpness(n, x, y, batch_size=5, batches=draws),
        "relative_flatness": lambda n, s, x, y: curvature.relative_flatness(n, x),
        "spectral_density": lambda n, s, x, y: curvature.spectral_density(n, x, y, steps=4, draws=2),
        "log_basin_volume": lambda n, s, x, y: curvature.log_basin_volume(n, x, y, 3),
        "learning_coefficient": lambda n, s, x, y: bayes.learning_coefficient(  # at a minimum
            n, x, n(x.clone()).detach(), loss="mse", draws=10, chains=2
        ),
        "one_sam_gradient": lambda n, s, x, y: optimizers.one_sam_gradient(n, x, y, 0.05),
        "one_sam_gradient per sample": lambda n, s, x, y: optimizers.one_sam_gradient(
            n, x, y, 0.05, method="per sample"
        ),
        "line": lambda n, s, x, y: landscape.line(n, s, x, y, points=draws),
        "plane": lambda n, s, x, y: landscape.plane(n, s, doubled(n), x, y, points=steps),
        "surface": lambda n, s, x, y: landscape.surface(n, x, y, points=steps),
        "basin_radius": lambda n, s, x, y: landscape.basin_radius(n, x, y, increase=0.1, directions=draws),
        "basin_radius by filters": lambda n, s, x, y: landscape.basin_radius(
            n, x, y, increase=0.1, directions=draws, filter_normalized=True
        ),
    }
    rows = {name: lambda n, s, x, y, name=name: evaluate(n, (x, y), initial=s, names=[name]) for name in CATALOGUE}
    return {f"row {name}" if name in by_name else name: call for name, call in rows.items()} | by_name


NETWORKS = {"dense": dense, "convolutional": convolutional}


def case(kind):
    network, initial = NETWORKS[kind](), NETWORKS[kind](seed=1)
    return network, initial, *data(network)
