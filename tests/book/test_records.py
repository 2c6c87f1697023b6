import pandas as pd
import pytest

from genlib import scale
from genlib.book import records


def train(seeds: list[int]) -> pd.DataFrame:
    rows = [{"seed": seed, "width": width, "gap": width + seed % 7} for seed in seeds for width in (10, 100)]
    return pd.DataFrame(rows)


def no_training(seeds: list[int]) -> pd.DataFrame:
    raise AssertionError("trained, though the record holds these seeds")


@pytest.fixture
def record(tmp_path, monkeypatch):
    monkeypatch.setenv("GENLIB_RECORD", "1")
    records.population("networks", train, count=3, folder=tmp_path)
    monkeypatch.delenv("GENLIB_RECORD")
    return tmp_path


def test_the_record_holds_five_blocks_and_where_they_come_from(record):
    frame = records.recorded("networks", folder=record)
    assert sorted(set(frame["seed"])) == [1000 * block + i for block in range(5) for i in range(3)]
    assert frame.attrs["genlib"] == scale.sources_hash()
    assert frame.attrs["seeds_a_block"] == 3


@pytest.mark.parametrize("block", range(5))
def test_a_block_of_the_record_is_read(record, monkeypatch, block):
    monkeypatch.setenv("GENLIB_SEED", str(block))
    found = records.population("networks", no_training, count=3, folder=record)
    pd.testing.assert_frame_equal(found, train(scale.seeds(3)), check_flags=False)


@pytest.mark.parametrize(
    ("variable", "value"), [("GENLIB_SEED", "5"), ("GENLIB_DRY_RUN", "1"), ("GENLIB_SCALE", "gpu")]
)
def test_what_the_record_does_not_hold_is_trained(record, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    asked = []
    records.population("networks", lambda seeds: asked.append(seeds) or train(seeds), count=3, folder=record)
    assert asked == [scale.seeds(3)]


def test_without_a_record_all_is_trained(tmp_path):
    assert records.recorded("networks", folder=tmp_path) is None
    assert len(records.population("networks", train, count=3, folder=tmp_path)) == 6
    assert not list(tmp_path.iterdir())


def test_a_dry_run_writes_no_record(tmp_path, monkeypatch):
    monkeypatch.setenv("GENLIB_RECORD", "1")
    monkeypatch.setenv("GENLIB_DRY_RUN", "1")
    records.population("networks", train, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_seed_that_the_record_lacks_is_named(record):
    with pytest.raises(ValueError, match=r"lacks the seeds \[3\].*make record"):
        records.population("networks", train, count=4, folder=record)


def test_a_training_that_loses_a_seed_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"asked for the seeds \[0, 1\], returned \[0\]"):
        records.population("networks", lambda seeds: train(seeds[:1]), count=2, folder=tmp_path)


def test_only_values_beyond_the_spread_of_their_own_configuration_are_named(record):
    kept = records.recorded("networks", folder=record)
    likely = train([3])
    assert records.beyond_spread(likely, kept, by=["width"], columns=["gap"]).empty
    unlikely = likely.assign(gap=[likely["gap"][0], likely["gap"][0]])  # that of the other width
    found = records.beyond_spread(unlikely, kept, by=["width"], columns=["gap"])
    assert list(found["width"]) == [100]
    assert len(records.beyond_spread(likely.assign(gap=float("nan")), kept, by=["width"], columns=["gap"])) == 2


def test_a_configuration_that_the_record_lacks_is_named(record):
    kept = records.recorded("networks", folder=record)
    with pytest.raises(ValueError, match=r"0 networks with \{'width': 30\}"):
        records.beyond_spread(train([0]).assign(width=30), kept, by=["width"], columns=["gap"])


def test_a_record_of_these_sources_is_kept_and_one_of_others_written_anew(record, monkeypatch):
    monkeypatch.setenv("GENLIB_RECORD", "1")
    records.population("networks", no_training, count=3, folder=record)
    monkeypatch.setattr(records.scale, "sources_hash", lambda: "others")
    records.population("networks", train, count=3, folder=record)
    assert records.recorded("networks", folder=record).attrs["genlib"] == "others"


def test_on_drawn_digits_the_population_is_trained_and_no_record_written(record, monkeypatch):
    before = {path.name: path.read_bytes() for path in record.iterdir()}
    monkeypatch.setenv("GENLIB_DATA", "drawn_digits")
    monkeypatch.setenv("GENLIB_RECORD", "1")
    asked = []
    records.population("networks", lambda seeds: asked.append(seeds) or train(seeds), count=3, folder=record)
    assert asked == [scale.seeds(3)]
    assert {path.name: path.read_bytes() for path in record.iterdir()} == before
