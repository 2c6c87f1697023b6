import shutil
from pathlib import Path

import pytest
import torch

from genlib import scale


def test_seed_blocks_never_overlap(monkeypatch):
    blocks = []
    for block in range(6):
        monkeypatch.setenv("GENLIB_SEED", str(block))
        blocks += scale.seeds(1000)
    assert len(set(blocks)) == 6000


def test_settings_takes_the_column_of_the_scale(monkeypatch):
    columns = {"small": {"n": 1}, "gpu": {"n": 2}, "paper": {"n": 3}}
    for name, column in columns.items():
        monkeypatch.setenv("GENLIB_SCALE", name)
        assert scale.settings(**columns).n == column["n"]
    assert list(scale.settings(**columns).table.loc["n"]) == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "value", "call", "mend"),
    [
        ("GENLIB_SCALE", "large", scale.scale, "small, gpu, paper"),
        ("GENLIB_SEED", "1.5", lambda: scale.seeds(1), "whole number"),
        ("GENLIB_SEED", "-1", lambda: scale.seeds(1), "not negative"),
        ("GENLIB_DATA", "drawn", scale.digits, "digits, drawn_digits"),
        ("GENLIB_DRY_RUN", "yes", scale.dry_run, "1 or 0"),
    ],
)
def test_a_bad_environment_is_named(monkeypatch, name, value, call, mend):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=rf"{name} is.*{mend}"):
        call()


def test_settings_refuses_a_row_that_one_scale_lacks():
    with pytest.raises(ValueError, match="gpu lacks width"):
        scale.settings(small={"width": 1}, gpu={}, paper={"width": 3})


@pytest.mark.parametrize("count", [0, 1001])
def test_seeds_refuses_more_than_a_block_holds(count):
    with pytest.raises(ValueError, match="count"):
        scale.seeds(count)


def test_a_dry_run_gets_the_beginning_of_a_grid(monkeypatch):
    column = {"widths": (1, 2, 3, 4), "shape": (3, 4), "names": ("a", "b", "c"), "lr": 0.1}
    columns = dict.fromkeys(("small", "gpu", "paper"), column)
    assert vars(scale.settings(**columns)).items() >= column.items()
    monkeypatch.setenv("GENLIB_DRY_RUN", "1")
    assert vars(scale.settings(**columns)).items() >= {**column, "widths": (1, 2, 3)}.items()
    assert scale.settings(**columns).table.loc["widths", "gpu"] == (1, 2, 3, 4)


def test_banner_says_that_a_dry_run_means_nothing(monkeypatch):
    assert "DRY RUN" not in scale.banner()
    monkeypatch.setenv("GENLIB_DRY_RUN", "1")
    assert "DRY RUN" in scale.banner()


def test_cache_is_kept_apart_for_other_sources(monkeypatch, tmp_path):
    monkeypatch.setenv("GENLIB_CACHE", str(tmp_path))
    before = scale.cache_directory()
    monkeypatch.setattr(scale, "sources_hash", lambda: "other")
    assert before.parent == tmp_path
    assert scale.cache_directory() != before


def test_drawn_digits_are_said_and_their_work_is_kept_apart(monkeypatch):
    before = scale.digits(), scale.banner(), scale.cache_directory(), scale.environment()
    assert before[0] == "digits"
    monkeypatch.setenv("GENLIB_DATA", "digits")
    assert (scale.digits(), scale.banner(), scale.cache_directory(), scale.environment()) == before
    monkeypatch.setenv("GENLIB_DATA", "drawn_digits")
    assert scale.digits() == scale.environment()["digits"] == "drawn_digits"
    assert "digits drawn anew for each seed" in scale.banner()
    assert scale.cache_directory() != before[2]


def test_every_file_outside_the_book_is_in_the_hash_with_its_name(tmp_path):
    root = tmp_path / "genlib"
    shutil.copytree(Path(scale.__file__).parent, root, ignore=shutil.ignore_patterns("__pycache__"))
    before = scale.sources_hash(root)
    assert before == scale.sources_hash()
    seen = {before}
    for path in sorted(root.rglob("*.py")):
        source = path.read_bytes()
        path.write_bytes(bytes([source[0] ^ 1]) + source[1:])
        changed = scale.sources_hash(root)
        path.write_bytes(source)
        path.rename(path.with_name("renamed.py"))
        renamed = scale.sources_hash(root)
        path.with_name("renamed.py").rename(path)
        if path.parent.name == "book":
            assert {changed, renamed} == {before}
        else:
            assert len({changed, renamed} - seen) == 2
            seen |= {changed, renamed}
    (root / "norms/added.py").write_bytes(b"")
    assert scale.sources_hash(root) not in seen


def test_a_dry_run_gets_two_seeds(monkeypatch):
    monkeypatch.setenv("GENLIB_SEED", "3")
    monkeypatch.setenv("GENLIB_DRY_RUN", "1")
    assert scale.seeds(5) == [3000, 3001]


def test_on_colab_finished_work_goes_to_the_drive_where_one_is_mounted(monkeypatch, tmp_path):
    monkeypatch.delenv("GENLIB_CACHE", raising=False)
    monkeypatch.setattr(scale, "DRIVE", tmp_path / "MyDrive")
    assert "mount Drive" not in scale.banner()
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    assert "mount Drive" in scale.banner()
    assert scale.cache_directory().parent == Path.cwd() / ".cache"
    scale.DRIVE.mkdir()
    assert "mount Drive" not in scale.banner()
    assert scale.cache_directory().parent == scale.DRIVE / "genlib-cache"


def test_banner_names_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Tesla T4 at {device}")
    assert "Tesla T4 at cuda" in scale.banner()
