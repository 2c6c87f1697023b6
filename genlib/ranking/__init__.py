"""Which measures rank networks as their gaps do? Explained in chapter 7, "Predicting generalization".

Over all pairs, along each axis, given axes, in every environment, by what a choice costs, two together, and along
learning curves.
"""

from genlib.ranking.adjustments import Adjustment, adjusted, adjustment
from genlib.ranking.correlations import Kendall, granulated_kendall, kendall, pooled_kendall
from genlib.ranking.information import conditional_mutual_information
from genlib.ranking.joint import pareto_fronts, together
from genlib.ranking.learning_curves import exponents, fragility, is_logarithm
from genlib.ranking.rankings import Ranking, pseudo_values
from genlib.ranking.robustness import environments, resolvable_difference, sign_errors
from genlib.ranking.selection import picked_among_best, regret

__all__ = [
    "Adjustment",
    "Kendall",
    "Ranking",
    "adjusted",
    "adjustment",
    "conditional_mutual_information",
    "environments",
    "exponents",
    "fragility",
    "granulated_kendall",
    "is_logarithm",
    "kendall",
    "pareto_fronts",
    "picked_among_best",
    "pooled_kendall",
    "pseudo_values",
    "regret",
    "resolvable_difference",
    "sign_errors",
    "together",
]
