"""Which measures rank networks as their gaps do? Explained in chapter 7, "Predicting generalization".

Over all pairs, along each axis, given axes, in every environment.
"""

from genlib.ranking.correlations import Kendall, granulated_kendall, kendall, pooled_kendall
from genlib.ranking.information import conditional_mutual_information
from genlib.ranking.rankings import Ranking
from genlib.ranking.robustness import environments, resolvable_difference, sign_errors

__all__ = [
    "Kendall",
    "Ranking",
    "conditional_mutual_information",
    "environments",
    "granulated_kendall",
    "kendall",
    "pooled_kendall",
    "resolvable_difference",
    "sign_errors",
]
