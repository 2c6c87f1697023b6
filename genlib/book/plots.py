"""The book's figures: one style, curves with bands over seeds, effects with intervals, offline animations."""

import base64
import hashlib
import html
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from string import Template

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from genlib.estimates import interval

__all__ = ["GREY", "PALETTE", "animate", "curves", "effect_plot", "style"]

# Text and lines of at least 4:1, colours of at least 3:1 against white and against the book's dark page, #121212.
# The first four colours are seaborn's `colorblind`; its others are too light for white.
GREY = "#787878"
PALETTE = ("#0173b2", "#d55e00", "#029e73", "#cc78bc", "#8844dd", "#786030")
CSS_PIXELS = 96  # an inch
WIDTH = 7.0  # inches: 672 px, within the page's column of 700 px
PLAYER_BYTES = 3_000_000
_numbers = itertools.count(1)


def style() -> None:
    """Set matplotlib's defaults to the book's: colours that read on light and dark pages, text of 9 to 11 points.

    In a notebook figures become SVG, the same file for the same figure. Figures are 7 inches wide and transparent.
    """
    grey = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    mpl.rcParams.update(dict.fromkeys(grey, GREY))
    mpl.rcParams.update(
        {
            "axes.prop_cycle": mpl.cycler(color=PALETTE),
            "axes.facecolor": "none",
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.labelsize": 10,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlesize": 11,
            "figure.constrained_layout.use": True,
            "figure.facecolor": "none",
            "figure.figsize": (WIDTH, 3.8),
            "font.size": 10,
            "grid.alpha": 0.25,
            "legend.fontsize": 9,
            "legend.frameon": False,
            "legend.title_fontsize": 9,
            "lines.linewidth": 1.8,
            "savefig.transparent": True,
            "svg.hashsalt": "genlib",
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
        }
    )
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats  # comes with IPython, not with genlib

        set_matplotlib_formats("svg", metadata={"Date": None})


def curves(
    table: pd.DataFrame, *, x: str, y: str, hue: str | None = None, seed: str = "seed", ax: Axes | None = None
) -> Axes:
    """Means of `y` against `x` over seeds, each with a band that is its 95 % interval, one line a level of `hue`.

    `table` is tidy: one row for each x, level and seed. Where some seeds lack an x, mean and band are of the others.
    Lines differ in dash as well as in colour. A second row for one x, level and seed is a ValueError: rows that are
    not independent would make the band too narrow.
    """
    keys = [x, seed] if hue is None else [x, hue, seed]
    _check(table, [*keys, y], y)
    if table.duplicated(keys).any():
        raise ValueError(f"table has several rows for one {', '.join(keys)}; average them first, or select one kind")
    look = {"color": PALETTE[0]}
    if hue is not None:
        levels = [str(level) for level in table[hue].unique()]
        if len(levels) > len(PALETTE):
            raise ValueError(
                f"hue {hue!r} has {len(levels)} levels; choose at most {len(PALETTE)} that can be told apart"
            )
        table = table.assign(**{hue: table[hue].astype(str)})
        look = {"hue": hue, "style": hue, "hue_order": levels, "style_order": levels, "palette": PALETTE[: len(levels)]}
    if ax is None:
        ax = plt.subplots()[1]
    band = {"alpha": 0.2, "linewidth": 0}
    return sns.lineplot(table, x=x, y=y, errorbar=interval, err_kws=band, ax=ax, **look)


def effect_plot(effects: Mapping[str, Sequence[float]], *, ax: Axes | None = None) -> Axes:
    """One row a claim or sub-claim: its effect at each seed as a dot, under them mean and 95 % interval as a bar.

    `effects` maps names to one effect a seed, as `Claim.decide` takes them. A line marks zero.
    """
    if not effects:
        raise ValueError("effects is empty; there is nothing to draw")
    if ax is None:
        ax = plt.subplots(figsize=(WIDTH, 0.9 + 0.45 * len(effects)))[1]
    ax.axvline(0, color=GREY, linewidth=1)
    for row, (name, values) in enumerate(effects.items()):
        if len(values) == 0 or not np.isfinite(values).all():
            raise ValueError(f"effects[{name!r}] is empty or not finite; give one finite effect a seed")
        ax.plot(values, np.full(len(values), row - 0.15), "o", color=PALETTE[0], markersize=4)
        ax.plot(interval(values), (row + 0.15, row + 0.15), "-|", color=PALETTE[1], linewidth=2.5)
        ax.plot(np.mean(values), row + 0.15, "D", color=PALETTE[1], markersize=5)
    ax.set(yticks=range(len(effects)), yticklabels=list(effects), ylim=(len(effects) - 0.5, -0.5), xlabel="effect")
    return ax


def animate(draw: Callable[[object], Figure], frames: Iterable, *, alt: str, interval_ms: int = 200):
    """The figures `draw(frame)` as a player for notebook and page: an IPython HTML object that loads nothing else.

    Its buttons and slider work by keyboard. It never starts by itself, and readers who ask for less motion step only.
    Without scripts the first frame stands still, described by `alt`. Frames are PNGs of 128 colours inside the page;
    above 3 MB together they are a ValueError.
    """
    from IPython.display import HTML

    if not alt.strip():
        raise ValueError("alt is empty; say what the animation shows, for readers who can't see it")
    images = []
    for frame in frames:
        figure = draw(frame)
        width = CSS_PIXELS * figure.get_figwidth()
        images.append(_png(figure))
    if not images:
        raise ValueError("frames is empty; an animation needs at least one")
    if (size := sum(map(len, images))) > PLAYER_BYTES:
        raise ValueError(f"the {len(images)} frames take {size:,} bytes, above {PLAYER_BYTES:,}; fewer or smaller ones")
    digest = hashlib.sha256("".join(images).encode()).hexdigest()[:8]
    return HTML(
        _PLAYER.substitute(
            id=f"player-{digest}-{next(_numbers)}",
            first=images[0],
            rest=json.dumps(images[1:]),
            last=len(images) - 1,
            width=round(width),
            alt=html.escape(alt),
            grey=GREY,
            interval=interval_ms,
        )
    )


def _check(table: pd.DataFrame, columns: list[str], y: str) -> None:
    if missing := [name for name in columns if name not in table.columns]:
        raise ValueError(f"table has no column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}")
    if table.empty:
        raise ValueError("table is empty; there is nothing to draw")
    if bad := (~np.isfinite(table[y].to_numpy(float))).sum():
        raise ValueError(f"table[{y!r}] holds {bad} values that are not finite; drop those rows, and say so")


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, transparent=True)
    plt.close(figure)
    small = io.BytesIO()
    Image.open(buffer).quantize(128).save(small, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(small.getvalue()).decode()


_PLAYER = Template("""\
<div id="$id" role="group" aria-label="Animation">
<img class="dark-light" src="$first" alt="$alt">
<div class="controls" hidden>
<button type="button">Play</button> <button type="button">Back</button> <button type="button">Next</button>
<input type="range" min="0" max="$last" value="0" aria-label="Frame"> <span></span>
</div>
<style>
#$id img { width: ${width}px; max-width: 100%; height: auto; background: none; }
#$id button { color: inherit; background: none; border: 1px solid $grey; border-radius: 4px; padding: 0.2em 0.8em; }
#$id input { vertical-align: middle; max-width: 50%; accent-color: $grey; }
</style>
<script>
(() => {
  const box = document.getElementById("$id");
  const image = box.querySelector("img"), slider = box.querySelector("input"), count = box.querySelector("span");
  const [play, back, next] = box.querySelectorAll("button");
  const frames = [image.src, ...$rest];
  let timer = null;
  const at = () => Number(slider.value);
  const show = i => {
    slider.value = i;
    image.src = frames[at()];
    count.textContent = (at() + 1) + " of " + frames.length;
    slider.setAttribute("aria-valuetext", count.textContent);
  };
  const stop = () => { clearInterval(timer); timer = null; play.textContent = "Play"; };
  play.onclick = () => {
    if (timer) return stop();
    if (at() === frames.length - 1) show(0);
    play.textContent = "Pause";
    timer = setInterval(() => at() < frames.length - 1 ? show(at() + 1) : stop(), $interval);
  };
  back.onclick = () => { stop(); show(at() - 1); };
  next.onclick = () => { stop(); show(at() + 1); };
  slider.oninput = () => { stop(); show(at()); };
  play.hidden = matchMedia("(prefers-reduced-motion: reduce)").matches;
  show(0);
  box.querySelector(".controls").hidden = false;
})();
</script>
</div>""")
