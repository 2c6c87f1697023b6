"""The catalogue: every measure of the book under one name, larger where it predicts a larger gap."""

import math

from genlib.measures.formulas import (
    divided,
    inverse_square,
    isotropic,
    magnitude,
    mean_of_layers,
    sharp,
    sharp_magnitude,
    spectral_factor,
    spectral_from,
)
from genlib.measures.measure import (
    DINH_LAYERS,
    DINH_UNITS,
    INVARIANCES,
    LAYERS,
    UNITS,
)
from genlib.measures.parts import Passes
from genlib.norms import log_frobenius_complexity_of, log_spectral_complexity_of

_FUNCTION = (DINH_LAYERS, DINH_UNITS, UNITS)  # what leaves the function as it is
_PRODUCT = (DINH_LAYERS, UNITS)
_RATIO = (LAYERS, DINH_LAYERS, UNITS)
_INPUTS, _DATA, _WEIGHTS = ("data",), ("data", "labels"), ("layers",)
_ERROR, _BOTH = (*_DATA, "classes"), (*_DATA, "layers", "margin")
_PASS, _CRITERIA = Passes("logits"), Passes("information_criteria")
_SIGMA, _SIGMA_MAGNITUDE, _SIGMA_DISPLACEMENT, _RADIUS, _RADIUS_MAGNITUDE, _RADIUS_DISPLACEMENT = (
    Passes("logits", f"{search} {kind}")
    for search in ("sigma", "radius")
    for kind in ("isotropic", "magnitude", "displacement")
)
# fmt: off
ROWS = (
    ("parameters", r"\omega", r"\text{the number of parameters}",
        "neyshabur2017", (), 0, INVARIANCES, lambda s: s.number(s.parameters)),
    ("vc_dimension", r"\omega d\ln\omega", r"\omega d\ln\omega",
        "bartlett2019", _WEIGHTS, 0, INVARIANCES, lambda s: s.number(s.parameters).log() * s.parameters * s.depth),

    # The size of the weights
    ("l2", r"\|w\|_2", r"\big(\sum_i w_i^2\big)^{1/2}",
        "jiang2020", (), 0, (UNITS,), lambda s: s.square.sqrt()),
    ("l2_distance", r"\|w-w^0\|_2", r"\big(\sum_i (w_i-w_i^0)^2\big)^{1/2}",
        "jiang2020", ("initial",), 0, (), lambda s: s.square_distance.sqrt()),
    ("parameter_norm", r"\sum\|W_i\|_F^2", r"\sum_i\|W_i\|_F^2",
        "jiang2020", _WEIGHTS, 0, (UNITS,), lambda s: s.frobenius.square().sum()),
    ("frobenius_distance", r"\sum\|W_i-W_i^0\|_F^2", r"\sum_i\|W_i-W_i^0\|_F^2",
        "jiang2020", ("layers", "initial"), 0, (), lambda s: s.frobenius_distance.square().sum()),
    ("spectral_distance", r"\sum\|W_i-W_i^0\|_2^2", r"\sum_i\|W_i-W_i^0\|_2^2",
        "jiang2020", ("layers", "initial"), 0, (), lambda s: s.spectral_distance.square().sum()),
    ("product_frobenius", r"\prod\|W_i\|_F^2", r"\ln\prod_i\|W_i\|_F^2",
        "jiang2020", _WEIGHTS, 0, _PRODUCT, lambda s: 2 * s.log_frobenius),
    ("product_spectral", r"\prod\|W_i\|_2^2", r"\ln\prod_i\|W_i\|_2^2",
        "jiang2020", _WEIGHTS, 0, _PRODUCT, lambda s: 2 * s.log_spectral),
    ("sum_frobenius", r"d\big(\prod\|W_i\|_F^2\big)^{1/d}", r"d\big(\prod_i\|W_i\|_F^2\big)^{1/d}",
        "jiang2020", _WEIGHTS, 0, _PRODUCT, lambda s: mean_of_layers(2 * s.log_frobenius, s)),
    ("sum_spectral", r"d\big(\prod\|W_i\|_2^2\big)^{1/d}", r"d\big(\prod_i\|W_i\|_2^2\big)^{1/d}",
        "jiang2020", _WEIGHTS, 0, _PRODUCT, lambda s: mean_of_layers(2 * s.log_spectral, s)),
    ("stable_rank", r"\sum\|A_i\|_F^2/\|A_i\|_2^2", r"\sum_i\|A_i\|_F^2/\|A_i\|_2^2,\ A_i\text{ the map of layer }i",
        "neyshabur2018", _WEIGHTS, 0, _RATIO, lambda s: s.stable_ranks.sum()),
    ("path", r"\sum_p\prod w^2", r"\ln\sum_p\prod_{i\in p} w_i^2,\ p\text{ a path from input or bias to output}",
        "neyshabur2015", _WEIGHTS, 0, _FUNCTION, lambda s: s.log_path(2)),
    ("l1_path", r"\big(\sum_p\prod|w|\big)^2", r"\ln\big(\sum_p\prod_{i\in p}|w_i|\big)^2",
        "neyshabur2015", _WEIGHTS, 0, _FUNCTION, lambda s: 2 * s.log_path(1)),
    ("spectral_alpha", r"\bar\alpha",
        r"\text{the mean of }\alpha_i,\ p(\sigma^2)\propto\sigma^{-2\alpha_i}\text{ for the largest singular values "
        r"of }A_i,\text{ over layers with 50 or more}",
        "martin2021", _WEIGHTS, 0, _RATIO, lambda s: s.spectral_alpha),

    # The same against the margin
    ("inverse_margin", r"1/\gamma^2", r"1/\gamma^2,\ \gamma\text{ the 10th percentile of the margins}",
        "jiang2020", (*_DATA, "margin"), _PASS, _FUNCTION, lambda s: (-2 * s.log_margin(10)).exp()),
    ("product_frobenius_margin", r"\prod\|W_i\|_F^2/\gamma^2", r"\ln\gamma^{-2}\prod_i\|W_i\|_F^2",
        "jiang2020", _BOTH, _PASS, _RATIO, lambda s: divided(2 * s.log_frobenius, s)),
    ("product_spectral_margin", r"\prod\|W_i\|_2^2/\gamma^2", r"\ln\gamma^{-2}\prod_i\|W_i\|_2^2",
        "jiang2020", _BOTH, _PASS, _RATIO, lambda s: divided(2 * s.log_spectral, s)),
    ("sum_frobenius_margin", r"d\big(\prod\|W_i\|_F^2/\gamma^2\big)^{1/d}",
        r"d\big(\gamma^{-2}\prod_i\|W_i\|_F^2\big)^{1/d}", "jiang2020", _BOTH, _PASS, _RATIO,
        lambda s: mean_of_layers(divided(2 * s.log_frobenius, s), s)),
    ("sum_spectral_margin", r"d\big(\prod\|W_i\|_2^2/\gamma^2\big)^{1/d}",
        r"d\big(\gamma^{-2}\prod_i\|W_i\|_2^2\big)^{1/d}", "jiang2020", _BOTH, _PASS, _RATIO,
        lambda s: mean_of_layers(divided(2 * s.log_spectral, s), s)),
    ("spectral_from_origin", r"\tfrac{\prod\|W_i\|_2^2}{\gamma^2}\sum\tfrac{\|W_i\|_F^2}{\|W_i\|_2^2}",
        r"\ln\gamma^{-2}\prod_i\|W_i\|_2^2\sum_i\|W_i\|_F^2/\|W_i\|_2^2", "neyshabur2018", _BOTH, _PASS, _RATIO,
        lambda s: spectral_from(s, s.frobenius)),
    ("spectral_from_start", r"\tfrac{\prod\|W_i\|_2^2}{\gamma^2}\sum\tfrac{\|W_i-W_i^0\|_F^2}{\|W_i\|_2^2}",
        r"\ln\gamma^{-2}\prod_i\|W_i\|_2^2\sum_i\|W_i-W_i^0\|_F^2/\|W_i\|_2^2",
        "jiang2020", (*_BOTH, "initial"), _PASS, (),
        lambda s: spectral_from(s, s.frobenius_distance)),
    ("spectral_origin", r"\mu_{\text{spec-orig}}",
        r"\ln\tfrac{(84B\sum_i k_i\sqrt{c_i}+\sqrt{\ln(4h^2d)})^2}{\gamma^2}"
        r"\prod_i\|W_i\|_2^2\sum_i\|W_i\|_F^2/\|W_i\|_2^2",
        "jiang2020", _BOTH, _PASS, _RATIO, lambda s: spectral_from(s, s.frobenius) + spectral_factor(s)),
    ("spectral_start", r"\mu_{\text{spec-init}}", r"\text{the same with }\|W_i-W_i^0\|_F^2",
        "jiang2020", (*_BOTH, "initial"), _PASS, (),
        lambda s: spectral_from(s, s.frobenius_distance) + spectral_factor(s)),
    ("path_margin", r"\sum_p\prod w^2/\gamma^2", r"\ln\gamma^{-2}\sum_p\prod_{i\in p} w_i^2",
        "jiang2020", _BOTH, _PASS, INVARIANCES, lambda s: divided(s.log_path(2), s)),
    ("l1_path_margin", r"\big(\sum_p\prod|w|\big)^2/\gamma^2", r"\ln\gamma^{-2}\big(\sum_p\prod_{i\in p}|w_i|\big)^2",
        "neyshabur2015", _BOTH, _PASS, INVARIANCES, lambda s: divided(2 * s.log_path(1), s)),
    ("l1_max_margin", r"\prod\|W_i\|_{1,\infty}^2/\gamma^2", r"\ln\gamma^{-2}\prod_i\|W_i\|_{1,\infty}^2",
        "bartlett2002", _BOTH, _PASS, _RATIO, lambda s: divided(2 * s.log_groups(1, math.inf), s)),
    ("l3_margin", r"\prod\|W_i\|_{3,1.5}^2/\gamma^2", r"\ln\gamma^{-2}\prod_i\|W_i\|_{3,1.5}^2",
        "neyshabur2015", _BOTH, _PASS, _RATIO, lambda s: divided(2 * s.log_groups(3, 1.5), s)),
    ("neyshabur_l2", r"\mathcal C_{\ell_2}", r"\ln\gamma^{-2}\prod_i 4\|W_i\|_F^2,\ \gamma\text{ the 5th percentile}",
        "neyshabur2017", _BOTH, _PASS, _RATIO, lambda s: divided(2 * s.log_frobenius + s.depth * math.log(4), s, 5)),
    ("neyshabur_l1_path", r"\mathcal C_{\ell_1\text{-path}}", r"\ln\gamma^{-2}\big(\sum_p\prod_{i\in p}2|w_i|\big)^2",
        "neyshabur2017", _BOTH, _PASS, INVARIANCES, lambda s: divided(2 * s.log_path(1) + s.depth * math.log(4), s, 5)),
    ("neyshabur_l2_path", r"\mathcal C_{\ell_2\text{-path}}", r"\ln\gamma^{-2}\sum_p\prod_{i\in p}4h_iw_i^2",
        "neyshabur2017", _BOTH, _PASS, INVARIANCES,
        lambda s: divided(s.log_path(2) + s.depth * math.log(4) + s.log_outputs, s, 5)),
    ("lipschitz_bound", r"\Lambda^2/\gamma^2",
        r"\ln\gamma^{-2}\Lambda^2,\ \|f(x)-f(x')\|_2\le\Lambda\|x-x'\|_2\text{ by ECLipsE-Fast}",
        "xu2024", _BOTH, _PASS, _RATIO, lambda s: divided(2 * s.log_lipschitz, s)),
    ("neyshabur_spectral", r"\mathcal C_{\text{spectral}}", r"\ln\gamma^{-2}\prod_i h_i\|W_i\|_2^2",
        "neyshabur2017", _BOTH, _PASS, _RATIO, lambda s: divided(2 * s.log_spectral + s.log_outputs, s, 5)),
    ("spectral_complexity", r"R_W\|X\|_F/m\gamma",
        r"\ln\tfrac{\|X\|_F}{m\gamma}\prod_i\|W_i\|_2\big(\sum_i(\|W_i-W_i^0\|_{2,1}/\|W_i\|_2)^{2/3}\big)^{3/2}",
        "bartlett2017", (*_BOTH, "initial"), _PASS, (),
        lambda s: log_spectral_complexity_of(s.spectral, s.row_distance)
        + s.log_inputs - math.log(s.samples) - s.log_margin(10)),
    ("frobenius_complexity", r"R_F/\gamma\sqrt m",
        r"\ln\tfrac{d\sqrt h}{\gamma\sqrt m}\prod_i\|W_i\|_2\big(\sum_i\|W_i-W_i^0\|_F^2/\|W_i\|_2^2\big)^{1/2}",
        "neyshabur2018", (*_BOTH, "initial"), _PASS, (),
        lambda s: log_frobenius_complexity_of(s.spectral, s.frobenius_distance, s.shapes)
        - math.log(s.samples) / 2 - s.log_margin(10)),

    # Outputs
    ("cross_entropy", r"\hat L", r"\tfrac1m\sum_j-\ln p(y_j|x_j)",
        "jiang2020", _ERROR, _PASS, _FUNCTION, lambda s: s.cross_entropy),
    ("negative_entropy", r"-H(p)", r"\tfrac1m\sum_j\sum_k p(k|x_j)\ln p(k|x_j)",
        "jiang2020", (*_INPUTS, "classes"), _PASS, _FUNCTION, lambda s: s.negative_entropy),
    ("confidence", r"1-\bar p", r"\tfrac1m\sum_j1-\max_kp(k|x_j),\text{ the calibration error where all are right}",
        "nakai2026", (*_INPUTS, "classes"), _PASS, _FUNCTION, lambda s: s.confidence),
    ("function_distance", r"\mathrm{KL}(p\|p^0)",
        r"\tfrac1m\sum_j\mathrm{KL}\big(p_w(\cdot|x_j)\,\|\,p_{w^0}(\cdot|x_j)\big)", "cheng2026",
        (*_INPUTS, "classes", "initial"), Passes("logits", "initial_logits"), _FUNCTION, lambda s: s.function_distance),
    ("feature_rank", r"-\operatorname{rank}\Phi",
        r"-e^{-\sum_ip_i\ln p_i},\ p_i=\sigma_i^2/\textstyle\sum\sigma^2\text{ of what goes into the last layer, "
        r"about its mean}",
        "garrido2023", _INPUTS, Passes("last_features"), _RATIO, lambda s: -s.feature_rank),
    ("class_separation", r"\mathrm{DB}",
        r"\tfrac1C\sum_k\max_{l\ne k}\frac{s_k+s_l}{\|c_k-c_l\|_2},\ c_k\text{ the mean of class }k\text{ before the "
        r"last layer, }s_k\text{ the mean distance from it}",
        "natekar2020", _ERROR, Passes("last_features"), _RATIO, lambda s: s.class_separation),
    ("mixup_response", r"\hat R_{\mathrm{mix}}", r"\text{the error on }(x+x')/2,\ x\text{ and }x'\text{ of one class}",
        "natekar2020", _ERROR, Passes("mixup"), INVARIANCES, lambda s: s.mixup),
    ("input_margin", r"1/\gamma_x^2", r"1/\gamma_x^2,\ \gamma_x\text{ the 10th percentile of }"
        r"(f_y-f_k)/\|\nabla_x(f_y-f_k)\|_2,\ k\ne y\text{ the largest}",
        "elsayed2018", (*_DATA, "margin"), Passes("input_margins"), INVARIANCES,
        lambda s: s.percentile(s.input_margins) ** -2),

    # How it hangs on the inputs
    ("jacobian_norm", r"\|J\|_F", r"\tfrac1m\sum_j\|\partial p(x_j)/\partial x\|_F",
        "novak2018", (*_INPUTS, "classes"), Passes("jacobian_norms"), _FUNCTION,
        lambda s: s.probability_jacobian_norms.double().mean()),
    ("input_gradient", r"\|\nabla_xf\|^2", r"\tfrac1m\sum_j\|\partial f(x_j)/\partial x\|_F^2",
        "wu2017", _INPUTS, Passes("jacobian_norms"), _FUNCTION,
        lambda s: s.jacobian_norms["logits"].double().square().mean()),
    ("transitions", r"t", r"\text{changes of a linear piece along an ellipse through three samples, on average}",
        "novak2018", _INPUTS, Passes("transitions"), INVARIANCES, lambda s: s.transitions),
    ("local_complexity", r"\mathrm{LC}",
        r"\text{units that change piece among }x\pm rv_i,\ i\le25,\ v_i\text{ orthonormal, }r\text{ .05 of the median "
        r"distance of samples}",
        "humayun2024", _INPUTS, Passes("local_complexity"), INVARIANCES, lambda s: s.local_complexity),

    # How the loss rises when the weights move
    ("hessian_trace", r"\operatorname{tr}H", r"\operatorname{tr}\nabla_w^2\hat L",
        "wen2023", _DATA, Passes("trace"), (UNITS,), lambda s: s.trace),
    ("top_eigenvalue", r"\lambda_1", r"\lambda_1,\text{ the largest eigenvalue of }\nabla_w^2\hat L",
        "keskar2017", _DATA, Passes("eigenpairs"), (UNITS,), lambda s: s.eigenpairs.values[0]),
    ("hessian_norm", r"\|H\|_F", r"\|\nabla_w^2\hat L\|_F",
        "wu2017", _DATA, Passes("eigenpairs", "hessian_norm"), (UNITS,), lambda s: s.hessian_norm),
    ("log_volume", r"-\ln V", r"\sum_{i\le10}\ln\lambda_i",
        "wu2017", _DATA, Passes("eigenpairs"), (UNITS,), lambda s: s.log_eigenvalues.sum()),
    ("gradient_variance", r"\operatorname{Var}\nabla\ell", r"\tfrac1m\sum_j\|\nabla_w\ell_j-\nabla_w\hat L\|_2^2",
        "jiang2020", _DATA, Passes("gradient_variance"), (UNITS,), lambda s: s.gradient_variance),
    ("first_gradient_variance", r"\operatorname{Var}\nabla\ell", r"\text{the same after the first epoch}",
        "jiang2020", (*_DATA, "first_epoch"), Passes("first_gradient_variance"), INVARIANCES,
        lambda s: s.first_gradient_variance),
    ("fisher_rao", r"\|w\|_{\mathrm{fr}}^2", r"\tfrac1m\sum_j\langle w,\nabla_w\ell_j\rangle^2",
        "liang2019", _DATA, Passes("fisher_rao"), _FUNCTION, lambda s: s.fisher_rao),
    ("learning_coefficient", r"\hat\lambda",
        r"\tfrac m{\ln m}\big(\mathbb E\hat L(v)-\hat L(w)\big),"
        r"\ v\sim\exp\big(-\tfrac m{\ln m}\hat L(v)-5\omega\|v-w\|_2^2/\|w\|_2^2\big)",
        "lau2025", _DATA, Passes("learning_coefficient"), (UNITS,), lambda s: s.learning_coefficient),
    ("keskar_sharpness", r"\phi",
        r"100\,\frac{\max_\nu\hat L(w+\nu)-\hat L(w)}{1+\hat L(w)},\ |\nu_i|\le5\cdot10^{-4}(|w_i|+1)",
        "keskar2017", _DATA, Passes("keskar"), (UNITS,), lambda s: s.keskar().value),
    ("worst_case_sharpness", r"\Delta_{\max}",
        r"\max_\nu\hat L(w+\nu)-\hat L(w),\ |\nu_i|\le2\cdot10^{-3}(|w_i|+1)",
        "keskar2017", _DATA, Passes("worst_case"), (UNITS,), lambda s: s.worst_case().value),
    ("sam_sharpness", r"\Delta_\rho", r"\hat L(w+\rho\nabla\hat L/\|\nabla\hat L\|_2)-\hat L(w),\ \rho=0.05",
        "foret2021", _DATA, Passes("sam"), (UNITS,), lambda s: s.sam()),
    ("flatness", r"1/\sigma^2", r"1/\sigma^2,\ \mathbb E\hat R(w+\nu)-\hat R(w)=0.1,\ \nu_i\sim N(0,\sigma^2)",
        "jiang2020", _ERROR, _SIGMA, (UNITS,), lambda s: inverse_square(s.sigma("isotropic"))),
    ("flatness_magnitude", r"1/\sigma'^2", r"1/\sigma'^2,\ \text{as above, }\nu_i\sim N(0,\sigma'^2w_i^2+\epsilon^2)",
        "jiang2020", _ERROR, _SIGMA_MAGNITUDE, (UNITS,), lambda s: inverse_square(s.sigma("magnitude"))),
    ("pac_bayes_origin", r"\|w\|^2/4\sigma^2", r"\|w\|_2^2/4\sigma^2+\ln(m/\sigma)+10",
        "jiang2020", _ERROR, _SIGMA, (UNITS,), lambda s: isotropic(s.square, s.sigma("isotropic"), s)),
    ("pac_bayes_start", r"\|w-w^0\|^2/4\sigma^2", r"\|w-w^0\|_2^2/4\sigma^2+\ln(m/\sigma)+10",
        "jiang2020", (*_ERROR, "initial"), _SIGMA, (),
        lambda s: isotropic(s.square_distance, s.sigma("isotropic"), s)),
    ("rescaled_kl", r"\mathrm{KL}_c",
        r"\min_{c,t}\mathrm{KL}\big(N(w_c,\sigma_c^2)\,\|\,N(0,t^2)\big),\ \sigma\text{ as above, units rescaled by }c",
        "rouchouse2025", _ERROR, _SIGMA, (UNITS,), lambda s: s.rescaled_kl),
    ("pac_bayes_magnitude_origin", r"\mathrm{KL}_{\sigma'}(w)",
        r"\tfrac14\sum_i\ln\frac{\epsilon^2+(\sigma'^2+1)\|w\|_2^2/\omega}{\epsilon^2+\sigma'^2w_i^2}"
        r"+\ln\frac m{\sigma'}+10", "jiang2020", _ERROR, _SIGMA_MAGNITUDE, (UNITS,),
        lambda s: magnitude(s.weights, s.sigma("magnitude"), s)),
    ("pac_bayes_magnitude_start", r"\mathrm{KL}_{\sigma'}(w-w^0)",
        r"\text{as above with }w-w^0\text{ for }w,\text{ in the noise too}",
        "jiang2020", (*_ERROR, "initial"), _SIGMA_DISPLACEMENT, (),
        lambda s: magnitude(s.displacement, s.sigma("displacement"), s)),
    ("pac_bayes_scaled", r"\mathrm{KL}_\alpha",
        r"\tfrac12\sum_i(w_i/\sigma_i)^2,\ \sigma_i=\alpha(10|w_i|+1),\ \mathbb E\hat L(w+\nu)-\hat L(w)=\tfrac12",
        "neyshabur2017", _DATA, Passes("scaled_kl"), (UNITS,), lambda s: s.scaled_kl),
    ("sharpness_flatness", r"1/\alpha^2", r"1/\alpha^2,\ \max_\nu\hat R(w+\nu)-\hat R(w)=0.1,\ |\nu_i|\le\alpha",
        "jiang2020", _ERROR, _RADIUS, (UNITS,), lambda s: inverse_square(s.radius("isotropic"))),
    ("sharpness_flatness_magnitude", r"1/\alpha'^2",
        r"1/\alpha'^2,\ \text{as above, }|\nu_i|\le(\alpha'^2w_i^2+\epsilon^2)^{1/2}",
        "jiang2020", _ERROR, _RADIUS_MAGNITUDE, (UNITS,), lambda s: inverse_square(s.radius("magnitude"))),
    ("sharpness_origin", r"\|w\|^2/4\alpha^2", r"\|w\|_2^2\ln(2\omega)/4\alpha^2+\ln(m/\sigma)+10,"
        r"\ \sigma=\alpha/\sqrt{\ln2\omega}", "jiang2020", _ERROR, _RADIUS, (UNITS,),
        lambda s: sharp(s.square, s.radius("isotropic"), s)),
    ("sharpness_start", r"\|w-w^0\|^2/4\alpha^2",
        r"\|w-w^0\|_2^2\ln(2\omega)/4\alpha^2+\ln(m/\sigma)+10", "jiang2020", (*_ERROR, "initial"), _RADIUS, (),
        lambda s: sharp(s.square_distance, s.radius("isotropic"), s)),
    ("sharpness_magnitude_origin", r"\mathrm{KL}_{\alpha'}(w)",
        r"\tfrac14\sum_i\ln\frac{\epsilon^2+(\alpha'^2+c)\|w\|_2^2/\omega}{\epsilon^2+\alpha'^2w_i^2}"
        r"+\ln\frac{m\sqrt c}{\alpha'}+10,\ c=4\ln\frac{2\omega}\delta",
        "jiang2020", _ERROR, _RADIUS_MAGNITUDE, (UNITS,),
        lambda s: sharp_magnitude(s.weights, s.radius("magnitude"), s)),
    ("sharpness_magnitude_start", r"\mathrm{KL}_{\alpha'}(w-w^0)",
        r"\text{as above with }w-w^0\text{ for }w,\text{ in the box too}",
        "jiang2020", (*_ERROR, "initial"), _RADIUS_DISPLACEMENT, (),
        lambda s: sharp_magnitude(s.displacement, s.radius("displacement"), s)),

    # Curvature since 2020
    ("soft_rank", r"\operatorname{rank}_\lambda G", r"\sum_i\kappa_i/(\kappa_i+\lambda),\ \kappa_i"
        r"\text{ the eigenvalues of the Gauss-Newton matrix }G\text{ over 300 samples at most},\ \lambda=10^{-3}",
        "shoham2025", _DATA, _CRITERIA, (UNITS,), lambda s: s.information_criteria.soft_rank.double()),
    ("tic", r"\operatorname{tr}C(G+\lambda)^{-1}", r"\operatorname{tr}C(G+\lambda)^{-1},"
        r"\ C=\tfrac1m\sum_j\nabla_w\ell_j\nabla_w\ell_j^\top\text{ over the same samples}",
        "takeuchi1976", _DATA, _CRITERIA, (UNITS,), lambda s: s.information_criteria.tic.double()),
    ("log_evidence", r"-\ln p(D)", r"m\hat L+\tfrac\alpha2\|w\|_2^2+\tfrac12\sum_i\ln(1+m\kappa_i/\alpha)"
        r"\text{ over the same samples, }\alpha\text{ where that is least}",
        "immer2021", _DATA, _CRITERIA, (UNITS,), lambda s: -s.information_criteria.log_evidence.double()),
    ("batch_sharpness", r"\mathbb E_B\,\hat g_B^\top H_B\hat g_B",
        r"\mathbb E_B\,g_B^\top H_Bg_B/\|g_B\|_2^2,\ g_B,H_B\text{ of the mean loss over a batch of 64 samples}",
        "andreyev2024", _DATA, Passes("batch_sharpness"), (UNITS,), lambda s: s.batch_sharpness),
    ("relative_flatness", r"\kappa", r"\sum_{k,l}\langle w_k,w_l\rangle\operatorname{tr}\nabla_{w_k}\nabla_{w_l}\hat L,"
        r"\ w_k\text{ the rows of the last layer}",
        "petzka2021", (*_INPUTS, "classes"), Passes("relative_flatness"), _PRODUCT, lambda s: s.relative_flatness),
    ("loss_curvature", r"\operatorname{tr}\nabla_x^2\ell",
        r"\tfrac1m\sum_j\sum_kp_k\|J_k-\sum_lp_lJ_l\|_2^2,\ J_k=\partial f_k(x_j)/\partial x,\ p=p(x_j)",
        "garg2024", (*_INPUTS, "classes"), Passes("jacobian_norms"), _FUNCTION, lambda s: s.loss_curvature),

    # How the training went
    ("steps", r"T", r"\text{steps of the optimizer}",
        "jiang2020", ("run",), 0, INVARIANCES, lambda s: s.number(s.run.steps)),
    ("first_steps", r"T_{0.1}", r"\text{steps until }\hat L\le0.1",
        "jiang2020", ("run",), 0, INVARIANCES, lambda s: s.number(s.steps_to(0.1))),
    ("last_steps", r"T_{0.01}-T_{0.1}", r"\text{steps from }\hat L\le0.1\text{ to }\hat L\le0.01",
        "jiang2020", ("run",), 0, INVARIANCES, lambda s: s.number(s.steps_to(0.01) - s.steps_to(0.1))),
    ("training_area", r"\int\hat L\,dt",
        r"\sum_k\tfrac12(\hat L_k+\hat L_{k-1})(t_k-t_{k-1}),\ t_k\text{ the steps of the checks, }"
        r"t_0=0,\ \hat L_0=\hat L_1",
        "ru2021", ("run",), 0, INVARIANCES, lambda s: s.training_area),
)
# fmt: on
