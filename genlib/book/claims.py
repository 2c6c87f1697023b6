"""Claims of the papers: parts with a criterion fixed before the run, a verdict on each, and the committed record."""

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from genlib import scale
from genlib.book import inference
from genlib.book.criteria import Criterion, Values, value
from genlib.book.parts import Effect, Part, ours, paper, shown
from genlib.book.sentences import figures

__all__ = ["PLACE", "Claim", "Claims", "Part", "ours", "paper", "records", "shown"]

PLACE = re.compile(
    r"\b(Section|Theorem|Proposition|Lemma|Corollary|Definition|Figure|Table|Equation|Appendix)s? \(?[A-Z]?\.?\d"
    r"|\bAppendix [A-Z]|\bIntroduction\b"
)
FALSE_ALARMS = 1e-3  # of all verdicts of a chapter together
_STATED = ("whose", "shown", "smallest", "bounds")  # of a part: what its verdict hangs on
_COLUMNS = (
    "claim",
    "part",
    "whose",
    "effect",
    "95 % interval",
    "smallest of interest",
    "power",
    "verdict",
    "of the claim",
)


@dataclass
class Claim:
    """What a paper says, where, and the parts that decide it here: stated before the experiment is run."""

    id: str
    statement: str
    source: str
    recalled: bool
    parts: Mapping[str, Part]
    seeds: tuple[int, ...]
    effects: dict[str, Effect] = field(default_factory=dict)
    figure: str | None = None

    def decide(
        self,
        measured: Values | Criterion | Mapping[str, Values | Criterion],
        *,
        figure: str | None = None,
    ) -> str:
        """The verdict on what was measured of each part: a criterion, or its effects, one a seed in their order.

        Raises ValueError where names don't match the parts, a seed has no effect, or an effect isn't finite; and
        AssertionError where a part that is to hold by a theorem doesn't.
        """
        if not isinstance(measured, Mapping):
            measured = {self.id: measured}
        if set(measured) != set(self.parts):
            raise ValueError(f"{self.id}: effects are named {sorted(measured)}, the parts {sorted(self.parts)}")
        self.effects = {name: self._effect(name, measured[name]) for name in self.parts}
        self.figure = figure
        return self.verdict

    def _effect(self, name: str, measured: Values | Criterion) -> Effect:
        of = measured if isinstance(measured, Criterion) else value(measured)
        if of.seeds is not None:
            if missing := sorted(set(self.seeds) - set(of.seeds)):
                raise ValueError(f"{self.id}, {name}: no effect at the seeds {missing}; no seed may be left out")
            of = of.at(self.seeds)
        values = tuple(map(float, of.effects))
        if len(values) != len(self.seeds):
            raise ValueError(
                f"{self.id}, {name}: {len(values)} effects for {len(self.seeds)} seeds; no seed may be left out, and "
                "what its networks count as that did not converge is to be stated beforehand"
            )
        if bad := [each for each in values if not math.isfinite(each)]:
            raise ValueError(f"{self.id}, {name}: {len(bad)} of {len(values)} effects are not finite")
        if not scale.dry_run() and (lost := int((~np.isfinite(of.quantities)).sum())):
            raise ValueError(
                f"{self.id}, {name}: {lost} of the {of.quantities.size} numbers that its effects are made of are not "
                "finite; say beforehand what a network counts as that did not converge"
            )
        effect = Effect(self.parts[name], values, of)
        if effect.part.shown and not scale.dry_run() and min(values) <= 0:
            raise AssertionError(
                f"{self.id}, {name}: holds by a theorem, and the smallest of its effects is {min(values):.3g}"
            )
        return effect

    @property
    def verdict(self) -> str:
        """`reproduced` where all parts of the paper are, `partly` where some are, else what they are, each once.

        Parts that are `shown` don't count, unless there is no other: `shown`; nor do our questions: `our question`.
        `undecided` before it was decided.
        """
        return of_claim({name: (effect.part.whose, effect.verdict) for name, effect in self.effects.items()})

    def _repr_markdown_(self) -> str:
        where = f"{self.source}, recalled" if self.recalled else self.source
        parts = "\n".join(f"- {part.described('' if name == self.id else name)}" for name, part in self.parts.items())
        return f"**Claim `{self.id}`** ({where}). {self.statement}\n\nDecided on {len(self.seeds)} seeds:\n\n{parts}"

    def entry(self) -> dict:
        """What the record keeps of this claim."""
        return {
            "id": self.id,
            "statement": self.statement,
            "source": self.source,
            "recalled": self.recalled,
            "seeds": list(self.seeds),
            "verdict": self.verdict,
            "figure": self.figure,
            "parts": {name: _entry(effect) for name, effect in self.effects.items()},
        }


class Claims:
    """The claims of one chapter, and their committed record `<folder>/<chapter>.<scale>.json`.

    On digits drawn anew for each seed the record is another one, in `<folder>/fresh`.
    `unmet` lists the sentences of the text that these seeds contradict.
    """

    def __init__(self, chapter: str, *, folder: str | Path = "claims"):
        self.chapter = chapter
        within = Path(folder) if scale.digits() == "digits" else Path(folder) / "fresh"
        self.path = within / f"{chapter}.{scale.scale()}.json"
        self.claims: dict[str, Claim] = {}
        self.unmet: list[str] = []
        self.started = time.perf_counter()

    def state(
        self,
        id: str,
        statement: str,
        *,
        source: str,
        parts: Part | Mapping[str, Part],
        seeds: Sequence[int],
        recalled: bool = False,
    ) -> Claim:
        """State a claim and its parts before their experiment, and the seeds that decide it: `scale.seeds(count)`.

        `source` names a section, theorem, figure or table of the paper, and `recalled` says that the paper was not at
        hand. A claim of a single part needs no name for it.
        """
        if id in self.claims:
            raise ValueError(f"{id} is stated already; a criterion does not change once it is fixed")
        if not PLACE.search(source):
            raise ValueError(f"{id}: source is {source!r}; name the section, theorem, figure or table")
        if list(seeds) != scale.seeds(len(seeds)) or (len(seeds) < 3 and not scale.dry_run()):
            raise ValueError(
                f"{id}: seeds are {list(seeds)}; give scale.seeds(count) of at least 3, and leave none out"
            )
        parts = {id: parts} if isinstance(parts, Part) else dict(parts)
        if not parts:
            raise ValueError(f"{id}: no parts; give one, or several by name")
        for name, part in parts.items():
            part.check(id if name == id else f"{id} ({name})")
        self.claims[id] = Claim(id, statement, source, recalled, parts, tuple(seeds))
        return self.claims[id]

    def __getitem__(self, id: str) -> Claim:
        """The claim of that id."""
        return self.claims[id]

    def guard(self, holds: bool, sentence: str) -> None:
        """Say where a sentence of the text does not hold in this run; `check` lists them, with their figures.

        The text is about what the published pages show, the digits and the seeds of block 0: there it raises
        AssertionError. It decides no claim; a dry run passes it.
        """
        if holds or scale.dry_run():
            return
        said = f"{sentence}{figures()}"
        if scale.seed_block() == 0 and scale.digits() == "digits":
            raise AssertionError(f"{self.chapter}: the text says that {said}; this run says otherwise")
        self.unmet.append(said)

    def table(self, *ids: str) -> pd.DataFrame:
        """One row a part of these claims (default: all): effect, interval, smallest effect of interest, verdicts."""
        rows = [
            {
                "claim": claim.id,
                "part": "" if name == claim.id else name,
                "whose": "our question" if effect.part.whose == "ours" else "the paper's",
                "effect": f"{effect.mean:.2g}",
                "95 % interval": "{:.2g}\u00a0…\u00a0{:.2g}".format(*effect.interval),
                "smallest of interest": "" if effect.part.shown else f"{effect.part.smallest:.2g}",
                "power": "" if effect.power is None else f"{effect.power:.0%}",
                "verdict": effect.verdict + inference.too_small(effect.verdict, effect.power),
                "of the claim": claim.verdict,
            }
            for claim in self._in_order()
            for name, effect in claim.effects.items()
            if not ids or claim.id in ids
        ]
        return pd.DataFrame(rows, columns=list(_COLUMNS)).set_index(["claim", "part"])

    def check(self) -> str:
        """Compare each part's verdict with the committed record, and say how that went.

        Two runs may name an effect differently although they agree about it. So a verdict that differs is reported, and
        stops the run where the two means differ as well, by Welch's test at a level of 0.001 shared by all parts of the
        chapter, so that new seeds do so in fewer than one chapter in a thousand. Then AssertionError, as where parts
        are not those of the record. A claim that was stated and not decided: ValueError. With GENLIB_RECORD=1 the
        record is written instead. A dry run compares nothing.
        """
        if undecided := [claim.id for claim in self.claims.values() if not claim.effects]:
            raise ValueError(f"{', '.join(undecided)}: stated, not decided")
        if scale.dry_run():
            return "a dry run decides nothing"
        if scale.recording():
            return self._write()
        if not self.path.exists():
            return f"no record at scale {scale.scale()} yet: this run is the first; GENLIB_RECORD=1 keeps it"
        recorded = _parts(_read(self.path)["claims"])
        found = _parts([claim.entry() for claim in self._in_order()])
        if recorded.keys() != found.keys():
            raise AssertionError(f"{self.path} and this run differ in {_named(recorded.keys() ^ found.keys())}")
        if restated := [key for key in found if any(recorded[key][each] != found[key][each] for each in _STATED)]:
            raise AssertionError(
                f"{self.path} was made with another {', '.join(_STATED)} of {_named(restated)}: `make record`"
            )
        differing = [key for key in found if recorded[key]["verdict"] != found[key]["verdict"]]
        lines = [
            f"{_named([key])}: recorded {recorded[key]['verdict']}, here {found[key]['verdict']}" for key in differing
        ]
        level = FALSE_ALARMS / len(found)
        if any(inference.differ(recorded[key]["values"], found[key]["values"], level) for key in differing):
            raise AssertionError(f"{self.path} disagrees with this run:\n" + "\n".join(lines))
        said = [f"{len(found) - len(differing)} of {len(found)} verdicts are those of the record"]
        said += [f"On means that agree within their seeds: {line}" for line in lines]
        return "\n".join(said + [f"At these seeds it does not hold that {sentence}" for sentence in self.unmet])

    def _in_order(self) -> list[Claim]:
        """By paper and number, whatever the order of the chapter's sections."""
        return sorted(
            self.claims.values(),
            key=lambda claim: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", claim.id)],
        )

    def _write(self) -> str:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        environment = scale.environment() | {"seconds": round(time.perf_counter() - self.started, 1)}
        record = {"environment": environment, "claims": [claim.entry() for claim in self._in_order()]}
        self.path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        return f"wrote {self.path}"


def of_claim(parts: Mapping[str, tuple[str, str]]) -> str:
    """The verdict on a claim from `whose` question each part is and its verdict; see `Claim.verdict`."""
    if not parts:
        return "undecided"
    counted = {verdict for whose, verdict in parts.values() if whose == "paper" and verdict != "shown"}
    if not counted:
        return "shown" if ("paper", "shown") in parts.values() else "our question"
    if counted == {"reproduced"}:
        return "reproduced"
    return "partly" if "reproduced" in counted else ", ".join(v for v in inference.VERDICTS if v in counted)


def records(folder: str | Path = "claims") -> pd.DataFrame:
    """All records in a folder: one row a claim, with its chapter, its scale and the genlib that it was made with."""
    rows = []
    for path in sorted(Path(folder).glob("*.json")):
        chapter, at = path.stem.rsplit(".", 1)
        record = _read(path)
        where = {"chapter": chapter, "scale": at, "genlib": record["environment"]["genlib"]}
        rows += [where | entry for entry in record["claims"]]
    return pd.DataFrame(rows)


def _read(path: Path) -> dict:
    record = json.loads(path.read_text("utf-8"))
    if any("parts" not in entry for entry in record["claims"]):
        raise ValueError(f"{path}: a record of an older form, without parts; write it anew with `make record`")
    return record


def _entry(effect: Effect) -> dict:
    part = asdict(effect.part)
    part["bounds"] = [None if math.isinf(bound) else bound for bound in effect.part.bounds]
    return part | {
        "verdict": effect.verdict,
        "mean": _rounded(effect.mean),
        "interval": _rounded(effect.interval),
        "power": _rounded(effect.power),
        "p": effect.p,
        "values": _rounded(effect.values),
        "of": {"name": effect.of.name, "quantities": _rounded(effect.of.quantities.tolist()), "grid": effect.of.grid},
    }


def _rounded(x):
    """To eight significant digits."""
    if isinstance(x, list | tuple):
        return [_rounded(each) for each in x]
    return x if x is None else float(f"{x:.8g}")


def _parts(entries: Sequence[dict]) -> dict[tuple[str, str], dict]:
    return {(entry["id"], name): part for entry in entries for name, part in entry["parts"].items()}


def _named(keys) -> str:
    return ", ".join(id if name == id else f"{id} ({name})" for id, name in sorted(keys))
