"""Claims of the papers: a criterion fixed before the run, one effect a seed, a verdict, and the committed record."""

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from genlib import scale
from genlib.estimates import interval

__all__ = ["VERDICTS", "Claim", "Claims", "Effect", "records"]

VERDICTS = ("reproduced", "partly", "not at this scale", "contradicted")
_COLUMNS = ("claim", "part", "effect", "95 % interval", "seeds", "verdict", "of the claim")


@dataclass(frozen=True)
class Effect:
    """One effect a seed, positive in the claimed direction, with the 95 % interval of its mean and a verdict.

    mean ± t₀.₉₇₅(n-1) · s/√n over n seeds. The interval beyond zero in the claimed direction: `reproduced`; beyond zero
    the other way: `contradicted`; covering zero: `not at this scale`.
    """

    name: str
    values: tuple[float, ...]

    def __post_init__(self):
        if len(self.values) < 3 and not scale.dry_run():
            raise ValueError(f"{self.name}: {len(self.values)} effects; a verdict takes at least 3 seeds")
        if bad := [value for value in self.values if not math.isfinite(value)]:
            raise ValueError(
                f"{self.name}: {len(bad)} of {len(self.values)} effects are not finite; a claim needs numbers"
            )

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return float(np.mean(self.values))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean."""
        return interval(self.values)

    @property
    def verdict(self) -> str:
        """`reproduced`, `contradicted` or `not at this scale`."""
        low, high = self.interval
        return "reproduced" if low > 0 else "contradicted" if high < 0 else "not at this scale"


@dataclass
class Claim:
    """What a paper says, where, and the criterion that decides it here: stated before the experiment is run.

    `criterion` is one sentence, or one a sub-claim: {name: sentence}. An effect is positive in the claimed direction.
    """

    id: str
    statement: str
    source: str
    criterion: str | Mapping[str, str]
    effects: list[Effect] = field(default_factory=list)
    seeds: tuple[int, ...] = ()
    figure: str | None = None

    def decide(
        self,
        effects: Sequence[float] | Mapping[str, Sequence[float]],
        *,
        seeds: Sequence[int],
        figure: str | None = None,
    ) -> str:
        """The verdict on one effect a seed (a mapping of them where the criterion lists sub-claims).

        Sub-claims that agree give their verdict, others `partly`. Raises ValueError where names don't match the
        criterion, a seed lacks its effect, or an effect isn't finite.
        """
        listed = {self.id: self.criterion} if isinstance(self.criterion, str) else self.criterion
        measured = effects if isinstance(effects, Mapping) else {self.id: effects}
        if set(measured) != set(listed):
            raise ValueError(f"{self.id}: effects are named {sorted(measured)}, the criterion {sorted(listed)}")
        for name, values in measured.items():
            if len(values) != len(seeds):
                raise ValueError(f"{self.id}, {name}: {len(values)} effects for {len(seeds)} seeds; give one a seed")
        self.effects = [Effect(name, tuple(float(v) for v in measured[name])) for name in listed]
        self.seeds, self.figure = tuple(seeds), figure
        return self.verdict

    @property
    def verdict(self) -> str:
        """One of the four verdicts, or `open` before it was decided."""
        verdicts = {effect.verdict for effect in self.effects}
        return "open" if not verdicts else verdicts.pop() if len(verdicts) == 1 else "partly"

    def _repr_markdown_(self) -> str:
        listed = {"": self.criterion} if isinstance(self.criterion, str) else self.criterion
        parts = [f"*{name}*: {sentence}" if name else sentence for name, sentence in listed.items()]
        return f"**Claim `{self.id}`** ({self.source}). {self.statement}\n\n**Criterion.** " + "; ".join(parts) + "."

    def entry(self) -> dict:
        """What the record keeps of this claim."""
        return {
            "id": self.id,
            "statement": self.statement,
            "source": self.source,
            "criterion": self.criterion if isinstance(self.criterion, str) else dict(self.criterion),
            "measured": {effect.name: round(effect.mean, 6) for effect in self.effects},
            "interval": {effect.name: [round(bound, 6) for bound in effect.interval] for effect in self.effects},
            "verdicts": {effect.name: effect.verdict for effect in self.effects},
            "seeds": list(self.seeds),
            "verdict": self.verdict,
            "figure": self.figure,
        }


class Claims:
    """The claims of one chapter, and their committed record `<folder>/<chapter>.<scale>.json`."""

    def __init__(self, chapter: str, *, folder: str | Path = "claims"):
        self.chapter = chapter
        self.path = Path(folder) / f"{chapter}.{scale.scale()}.json"
        self.claims: dict[str, Claim] = {}
        self.started = time.perf_counter()

    def state(self, id: str, statement: str, *, source: str, criterion: str | Mapping[str, str]) -> Claim:
        """State a claim and its criterion, before its experiment."""
        if id in self.claims:
            raise ValueError(f"{id} is stated already; a criterion does not change once it is fixed")
        self.claims[id] = Claim(id, statement, source, criterion)
        return self.claims[id]

    def __getitem__(self, id: str) -> Claim:
        """The claim of that id."""
        return self.claims[id]

    def guard(self, holds: bool, sentence: str) -> None:
        """Fail where a sentence of the text does not hold in this run. It decides no claim; a dry run passes it."""
        if not scale.dry_run() and not holds:
            raise AssertionError(f"{self.chapter}: the text says that {sentence}; this run says otherwise")

    def table(self, *ids: str) -> pd.DataFrame:
        """One row a claim or sub-claim of these (default: all): its effect, the interval over seeds, the verdict."""
        rows = [
            {
                "claim": claim.id,
                "part": "" if effect.name == claim.id else effect.name,
                "effect": f"{effect.mean:.2g}",
                "95 % interval": "{:.2g}\u00a0…\u00a0{:.2g}".format(*effect.interval),
                "seeds": len(effect.values),
                "verdict": effect.verdict,
                "of the claim": claim.verdict,
            }
            for claim in self._in_order()
            for effect in claim.effects
            if not ids or claim.id in ids
        ]
        return pd.DataFrame(rows, columns=list(_COLUMNS)).set_index(["claim", "part"])

    def check(self) -> str:
        """Compare each verdict with the committed record, and say how that went.

        Two runs may name an effect close to zero differently although they agree about it: a verdict that differs is
        reported and passes where, of every part whose verdict differs, both intervals overlap. Any other raises
        AssertionError. A claim that was stated and not decided: ValueError. With GENLIB_RECORD=1 the record is written
        instead. A dry run compares nothing.
        """
        if undecided := [claim.id for claim in self.claims.values() if not claim.effects]:
            raise ValueError(f"{', '.join(undecided)}: stated, not decided")
        if scale.dry_run():
            return "a dry run decides nothing"
        if scale.recording():
            return self._write()
        if not self.path.exists():
            return f"no record at scale {scale.scale()} yet: this run is the first; GENLIB_RECORD=1 keeps it"
        recorded = {entry["id"]: entry for entry in json.loads(self.path.read_text())["claims"]}
        found = {claim.id: claim.entry() for claim in self._in_order()}
        differing = [id for id in sorted({*recorded, *found}) if _verdict(recorded, id) != _verdict(found, id)]
        lines = [f"{id}: recorded {_verdict(recorded, id)}, here {_verdict(found, id)}" for id in differing]
        if not all(id in recorded and id in found and _compatible(recorded[id], found[id]) for id in differing):
            raise AssertionError(f"{self.path} disagrees with this run:\n" + "\n".join(lines))
        if not differing:
            return f"all {len(found)} verdicts are those of the record"
        same = f"{len(found) - len(differing)} of {len(found)} verdicts are those of the record"
        return f"{same}. Close to zero, on intervals that overlap: {'; '.join(lines)}"

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


def _verdict(entries: Mapping[str, dict], id: str) -> str | None:
    return entries[id]["verdict"] if id in entries else None


def _compatible(recorded: dict, found: dict) -> bool:
    """Whether the intervals overlap of each part that got another verdict."""
    if recorded["verdicts"].keys() != found["verdicts"].keys():
        return False
    differing = [name for name, verdict in found["verdicts"].items() if verdict != recorded["verdicts"][name]]
    pairs = [(recorded["interval"][name], found["interval"][name]) for name in differing]
    return all(low <= other_high and other_low <= high for (low, high), (other_low, other_high) in pairs)


def records(folder: str | Path = "claims") -> pd.DataFrame:
    """All records in a folder: one row a claim, with its chapter and scale."""
    rows = []
    for path in sorted(Path(folder).glob("*.json")):
        chapter, at = path.stem.rsplit(".", 1)
        rows += [{"chapter": chapter, "scale": at, **entry} for entry in json.loads(path.read_text())["claims"]]
    return pd.DataFrame(rows)
