"""The reference pages hold every public name of genlib, as it is written."""

import re
from pathlib import Path

import pytest

import genlib
from genlib.book.extension import MARKER, REFERENCE
from genlib.book.reference import reference

CHAPTERS = Path(__file__).parents[2] / "chapters"
GENLIB = Path(genlib.__file__).parent
ROOMS = {path.stem for path in GENLIB.glob("[a-z]*.py")} | {path.parent.name for path in GENLIB.glob("*/__init__.py")}
MODULES = sorted(ROOMS - {"book"} | {"book.claims", "book.criteria", "book.plots", "book.records", "data.augment"})


def test_every_module_has_its_place():
    places = [what for page in CHAPTERS.glob("reference_*.md") for what in MARKER.findall(page.read_text("utf-8"))]
    assert sorted(places) == sorted(REFERENCE + name for name in MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_every_function_is_described(name):
    text = reference(name)
    sections = re.findall(rf"^### `{name}\.(\w+)`\n\n```python\n(.*?)\n```\n\n(\S)", text, re.DOTALL | re.MULTILINE)
    assert len(sections) == text.count("\n### ") > 0
    for member, signature, _ in sections:
        assert re.match(rf"(def|class) {member}\b", signature)
        assert '"""' not in signature


def test_a_signature_is_that_of_the_source():
    text = reference("margins")
    assert 'def margin_percentile(\n    margins: Float[Tensor, "*models samples"], percent: float | int' in text


def test_text_keeps_its_signs_and_code_its_form():
    text = reference("norms")
    assert r"‖W‖\_F of each layer" in text
    assert '`register_norm(MyDiagonal, lambda layer, t: torch.diag(t["weight"]))`' in text


def test_methods_and_properties_stand_with_their_class():
    text = reference("ranking")
    assert "`Ranking.scores`\n: One row a measure" in text
    assert "`Ranking.quantile(share)`\n: As `scores`" in text
    assert "Ranking._table" not in text
