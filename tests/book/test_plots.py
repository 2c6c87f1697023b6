import base64
import io
import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image

from genlib.book import plots
from genlib.estimates import interval


@pytest.fixture(autouse=True)
def the_books_style():
    with mpl.rc_context():
        mpl.use("agg")
        plots.style()
        yield
        plt.close("all")


def luminance(colour):
    """Relative luminance and contrast as WCAG 2 defines them."""
    srgb = np.array(mpl.colors.to_rgb(colour))
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(one, other):
    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
SIGHT = {
    "typical": "1 0 0  0 1 0  0 0 1",
    "protanopia": "0.152286 1.052583 -0.204868  0.114503 0.786281 0.099216  -0.003882 -0.048116 1.051998",
    "deuteranopia": "0.367322 0.860646 -0.227968  0.280085 0.672501 0.047413  -0.011820 0.042940 0.968881",
    "tritanopia": "1.255528 -0.076749 -0.178779  -0.078411 0.930809 0.147602  0.004733 0.691367 0.303900",
}


def lab(colour, sight):
    srgb = np.array(mpl.colors.to_rgb(colour))
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]] @ np.clip(
        np.fromstring(sight, sep=" ").reshape(3, 3) @ linear, 0, 1
    )
    xyz = xyz / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / 3 / (6 / 29) ** 2 + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("page", ["#ffffff", "#121212"])
def test_text_and_colours_stand_out_on_light_and_dark_pages(page):
    assert contrast("black", "white") == pytest.approx(21)
    for name in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"):
        assert contrast(mpl.rcParams[name], page) >= 4
    assert min(contrast(colour, page) for colour in plots.PALETTE) >= 3


@pytest.mark.parametrize("sight", SIGHT.values(), ids=SIGHT)
def test_colours_differ_for_every_sight(sight):
    colours = [lab(colour, sight) for colour in plots.PALETTE]
    nearest = min(np.linalg.norm(a - b) for i, a in enumerate(colours) for b in colours[:i])
    assert nearest > 12  # seaborn's ten `colorblind` colours come within 11


def test_figures_fit_the_column_with_text_of_at_least_nine_points():
    figure, ax = plt.subplots()
    ax.plot([0, 1], label="a")
    ax.set(xlabel="epoch", ylabel="loss (nats)", title="title")
    ax.legend(title="arm")
    figure.draw_without_rendering()  # tick labels are made here
    texts = [text for text in figure.findobj(mpl.text.Text) if text.get_text()]
    assert len(texts) > 8 and min(text.get_fontsize() for text in texts) >= 9
    file = io.BytesIO()
    figure.savefig(file, format="svg", bbox_inches="tight")
    svg = file.getvalue().decode()
    assert float(re.search(r'width="([\d.]+)pt"', svg)[1]) * 96 / 72 <= 700
    assert figure.get_facecolor()[3] == 0 == ax.get_facecolor()[3]
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    assert Image.open(drawn).getpixel((0, 0))[3] == 0


def test_a_notebook_shows_svg_that_is_the_same_each_time():
    def render():
        ax = plots.curves(history(), x="epoch", y="loss", hue="arm")
        return shell.display_formatter.format(ax.figure)[0]

    shell = InteractiveShell.instance()
    try:
        plots.style()
        shown = render()
        assert "image/svg+xml" in shown and "image/png" not in shown
        assert shown == render()
    finally:
        InteractiveShell.clear_instance()


def history():
    generator = np.random.default_rng(0)
    rows = [(arm, seed, epoch) for arm in ("true", "random") for seed in range(4) for epoch in range(3)]
    table = pd.DataFrame(rows, columns=["arm", "seed", "epoch"])
    return table.assign(loss=generator.normal(1 / (1 + table.epoch), 0.1))


def test_curves_draw_means_and_student_bands():
    table = history()
    ax = plots.curves(table, x="epoch", y="loss", hue="arm")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["true", "random"]
    for arm, line, band in zip(("true", "random"), ax.lines, ax.collections, strict=False):
        values = table[table.arm == arm].pivot(index="epoch", columns="seed", values="loss").to_numpy()
        assert line.get_ydata() == pytest.approx(values.mean(1))
        half = 3.182446 * values.std(1, ddof=1) / 2
        edges = band.get_paths()[0].vertices
        for epoch in range(3):
            ys = edges[edges[:, 0] == epoch, 1]
            assert (ys.min(), ys.max()) == pytest.approx(
                (values[epoch].mean() - half[epoch], values[epoch].mean() + half[epoch]), abs=1e-6
            )
    solid, dashed = ax.lines[:2]
    assert not solid.is_dashed() and dashed.is_dashed()


def test_curves_of_one_kind_one_seed_and_numbers_as_kinds():
    table = history()
    (line,) = plots.curves(table[(table.arm == "true") & (table.seed == 0)], x="epoch", y="loss").lines
    assert line.get_ydata() == pytest.approx(table[(table.arm == "true") & (table.seed == 0)].loss.to_numpy())
    ax = plots.curves(table.assign(arm=table.arm.map({"true": 0.5, "random": 0.25})), x="epoch", y="loss", hue="arm")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["0.5", "0.25"]
    assert [mpl.colors.to_hex(line.get_color()) for line in ax.lines[:2]] == list(plots.PALETTE[:2])
    given_axes = plt.subplots()[1]
    assert plots.curves(table, x="epoch", y="loss", hue="arm", ax=given_axes) is given_axes


def test_effect_plot_shows_each_seed_and_the_claims_interval():
    effects = {"zhang2017.1": (0.2, 0.3, 0.4, 0.1), "zhang2017.4: time": (-1.0, 0.5, 0.2)}
    ax = plots.effect_plot(effects)
    assert [label.get_text() for label in ax.get_yticklabels()] == list(effects)
    zero, *lines = ax.lines
    assert set(zero.get_xdata()) == {0}
    for i, values in enumerate(effects.values()):
        dots, bar, mean = lines[3 * i : 3 * i + 3]
        assert tuple(dots.get_xdata()) == values
        assert tuple(bar.get_xdata()) == pytest.approx(interval(values))
        assert mean.get_xdata()[0] == pytest.approx(np.mean(values))
        assert bar.get_ydata()[0] - dots.get_ydata()[0] == pytest.approx(0.3)  # apart, so that neither hides the other


def wave(step):
    figure, ax = plt.subplots(figsize=(3, 2))
    ax.plot(np.sin(np.linspace(0, 6, 50) + step))
    return figure


def test_animation_is_one_offline_player():
    page = plots.animate(wave, range(3), alt='a "wave" & more', interval_ms=150).data
    images = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)
    assert len(set(images)) == 3 == len(images)
    for image in images:
        frame = Image.open(io.BytesIO(base64.b64decode(image))).convert("RGBA")
        assert frame.size == (3 * 144, 2 * 144)
        assert frame.getpixel((0, 0))[3] == 0  # the page shows through
    rest = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", page)
    assert not re.search(r"https?:|//|@import|url\(|srcset|<link|<iframe|font-?awesome", rest, re.IGNORECASE)
    assert "$" not in rest
    assert 'alt="a &quot;wave&quot; &amp; more"' in page
    assert "prefers-reduced-motion" in page and "}, 150)" not in page and ", 150)" in page
    assert re.findall(r'<button type="button">(\w+)</button>', page) == ["Play", "Back", "Next"]
    assert 'type="range" min="0" max="2" value="0" aria-label="Frame"' in page
    # Before the script, and without it: the first frame alone.
    still = page[: page.index("<script>")]
    assert images[0] in still and images[1] not in still
    assert '<div class="controls" hidden>' in still
    assert not plt.get_fignums()


def test_players_share_a_page():
    pages = [plots.animate(wave, range(2), alt="a wave").data for _ in range(2)]
    ids = [re.findall(r'id="([^"]+)"', page) for page in pages]
    assert len(ids[0]) == len(ids[1]) == 1 and ids[0] != ids[1]
    for page, (name,) in zip(pages, ids, strict=True):
        assert f'getElementById("{name}")' in page and f"#{name} button" in page


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: plots.curves(history(), x="step", y="loss"), "no column step; it has arm, seed, epoch, loss"),
        (lambda: plots.curves(history()[:0], x="epoch", y="loss"), "table is empty"),
        (lambda: plots.curves(history(), x="epoch", y="loss"), "several rows for one epoch, seed"),
        (lambda: plots.curves(history().assign(loss=np.nan), x="epoch", y="loss", hue="arm"), "24 values that are not"),
        (
            lambda: plots.curves(history().assign(arm=range(24)), x="epoch", y="loss", hue="arm"),
            "24 levels; choose at most 6",
        ),
        (lambda: plots.effect_plot({}), "effects is empty"),
        (lambda: plots.effect_plot({"a": (1.0, np.inf)}), r"effects\['a'\] is empty or not finite"),
        (lambda: plots.animate(wave, range(2), alt=" "), "alt is empty"),
        (lambda: plots.animate(wave, [], alt="a wave"), "frames is empty"),
    ],
)
def test_bad_input_names_the_argument_and_the_mend(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_too_large_an_animation_is_refused(monkeypatch):
    monkeypatch.setattr(plots, "PLAYER_BYTES", 1000)
    with pytest.raises(ValueError, match=r"the 2 frames take .* above 1,000; fewer or smaller ones"):
        plots.animate(wave, range(2), alt="a wave")
