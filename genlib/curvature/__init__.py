"""How does the loss bend in the weights? Explained in chapter 5, "Basins of attraction", and used in chapters 3 and 6.

The Hessian of the training loss: its products, eigenvalues, trace, norm and density; the noise of gradients.
"""

from genlib.curvature.batches import batch_passes, batch_sharpness
from genlib.curvature.criteria import InformationCriteria, information_criteria
from genlib.curvature.density import spectral_density
from genlib.curvature.eigenvalues import gauss_newton_eigenvalues, top_eigenvalues
from genlib.curvature.gauss_newton import exact_trace_passes, unknown_rows
from genlib.curvature.last_layer import relative_flatness
from genlib.curvature.products import hessian_vector_product
from genlib.curvature.sample_gradients import gradient_variance
from genlib.curvature.traces import frobenius_norm, gauss_newton_error, trace
from genlib.curvature.volume import LogVolume, log_basin_volume

__all__ = [
    "InformationCriteria",
    "LogVolume",
    "batch_passes",
    "batch_sharpness",
    "exact_trace_passes",
    "frobenius_norm",
    "gauss_newton_eigenvalues",
    "gauss_newton_error",
    "gradient_variance",
    "hessian_vector_product",
    "information_criteria",
    "log_basin_volume",
    "relative_flatness",
    "spectral_density",
    "top_eigenvalues",
    "trace",
    "unknown_rows",
]
