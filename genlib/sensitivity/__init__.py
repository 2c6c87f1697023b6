"""How strongly do outputs hang on inputs? Explained in chapter 4, "Sensitivity".

Norms of the input-output Jacobian, and how often a network changes its linear region along a path.
"""

from genlib.sensitivity.jacobians import jacobian_norms, mean_squared_jacobian_norm
from genlib.sensitivity.mixing import mixup_error
from genlib.sensitivity.neighbourhoods import local_complexity, typical_radius
from genlib.sensitivity.paths import ellipse, random_ellipses, translation_loop
from genlib.sensitivity.regions import breakpoints, transitions

__all__ = [
    "breakpoints",
    "ellipse",
    "jacobian_norms",
    "local_complexity",
    "mean_squared_jacobian_norm",
    "mixup_error",
    "random_ellipses",
    "transitions",
    "translation_loop",
    "typical_radius",
]
