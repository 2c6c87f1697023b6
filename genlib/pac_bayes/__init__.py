"""What error does noise on the weights certify? Explained in chapter 3, "Sharpness and PAC-Bayes".

Divergences, bounds that hold, and the noise that a network bears.
"""

from genlib.pac_bayes.bounds import PacBayesBound, pac_bayes_bound
from genlib.pac_bayes.curves import SharpnessKL, sharpness_kl
from genlib.pac_bayes.divergences import gaussian_kl, kl_inverse, kl_of_means, mcallester_bound, seeger_bound
from genlib.pac_bayes.functions import function_distance, kl_of_logits
from genlib.pac_bayes.rescaling import rescaled_kl
from genlib.sharpness.sigma import SigmaSearch, largest_sigma

__all__ = [
    "PacBayesBound",
    "SharpnessKL",
    "SigmaSearch",
    "function_distance",
    "gaussian_kl",
    "kl_inverse",
    "kl_of_logits",
    "kl_of_means",
    "largest_sigma",
    "mcallester_bound",
    "pac_bayes_bound",
    "rescaled_kl",
    "seeger_bound",
    "sharpness_kl",
]
