"""How much does the loss rise when the weights move, on average or at worst? Explained in chapter 3, "Sharpness and
PAC-Bayes".
"""

from genlib.network.objective import Objective
from genlib.sharpness.expected import ExpectedSharpness, expected_sharpness
from genlib.sharpness.noise import deviations, perturbed_losses
from genlib.sharpness.radius import RadiusSearch, largest_radius
from genlib.sharpness.worst_case import keskar_sharpness, sam_sharpness, worst_case_sharpness

__all__ = [
    "ExpectedSharpness",
    "Objective",
    "RadiusSearch",
    "deviations",
    "expected_sharpness",
    "keskar_sharpness",
    "largest_radius",
    "perturbed_losses",
    "sam_sharpness",
    "worst_case_sharpness",
]
