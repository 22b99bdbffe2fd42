"""Finished stages are whole or absent, and what did not change is not done again."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
from edgeml.artifact.stage_cache import StageCache
from edgeml.errors import EdgemlError, InputError


class Maker:
    """Fills a stage with `size` bytes and counts."""

    def __init__(self, size: int = 10) -> None:
        self.size, self.calls = size, 0

    def __call__(self, directory):
        self.calls += 1
        (directory / "sub").mkdir()
        (directory / "sub" / "data.bin").write_bytes(b"x" * self.size)


@pytest.fixture
def cache(tmp_path):
    return StageCache(tmp_path / "cache")


def leftovers(cache):
    return [p.name for p in cache.root.iterdir() if p.name.startswith(".")]


def in_another_process(root, code):
    """Run `code` with a cache at `root` in a process of its own."""
    script = "import os, pathlib\nfrom edgeml.artifact.stage_cache import StageCache\n"
    script += f"cache = StageCache(pathlib.Path({str(root)!r}))\n" + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)


def test_a_stage_is_made_once_and_found_afterwards(cache):
    make = Maker()
    path, cached = cache.run("export", {"model": "a"}, make)
    assert not cached and (path / "sub" / "data.bin").read_bytes() == b"x" * 10
    assert cache.run("export", {"model": "a"}, make) == (path, True)
    assert StageCache(cache.root).run("export", {"model": "a"}, make) == (path, True)
    assert make.calls == 1
    assert leftovers(cache) == []


def test_another_key_or_name_is_another_stage(cache):
    make = Maker()
    paths = {
        cache.run(name, key, make)[0]
        for name, key in (("a", {"x": 1}), ("a", {"x": 2}), ("b", {"x": 1}))
    }
    assert len(paths) == make.calls == 3


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, EdgemlError])
def test_a_stage_that_fails_leaves_nothing(cache, error):
    def broken(directory):
        (directory / "half").write_text("x")
        raise error("broken")

    with pytest.raises(error):
        cache.run("a", {}, broken)
    assert list(cache.root.iterdir()) == []
    assert cache.run("a", {}, Maker())[1] is False


def test_a_missing_photo_is_not_blamed_on_the_cache(cache, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"photo\.jpg"):
        cache.run("a", {}, lambda directory: (tmp_path / "photo.jpg").read_bytes())


@pytest.mark.parametrize("damage", ["change", "remove", "record", "record gone"])
def test_a_damaged_entry_is_made_again(cache, damage):
    make = Maker()
    path, _ = cache.run("a", {}, make)
    if damage == "change":
        (path / "sub" / "data.bin").write_bytes(b"y" * 10)
    elif damage == "remove":
        (path / "sub" / "data.bin").unlink()
    elif damage == "record":
        (path / "stage.json").write_text("[]")
    else:
        (path / "stage.json").unlink()
    again, cached = cache.run("a", {}, make)
    assert (again, cached, make.calls) == (path, False, 2)
    assert (path / "sub" / "data.bin").read_bytes() == b"x" * 10
    assert cache.run("a", {}, make)[1] is True
    assert leftovers(cache) == []


def test_when_another_process_is_quicker_its_entry_serves(cache):
    def slow(directory):
        (directory / "late").write_text("x")
        code = "cache.run('a', {}, lambda d: (d / 'early').write_text('x') and None)"
        assert in_another_process(cache.root, code).returncode == 0

    path, _ = cache.run("a", {}, slow)
    assert (path / "early").exists() and not (path / "late").exists()
    assert leftovers(cache) == []


def test_what_a_killed_process_left_is_swept(cache):
    code = """
        def killed(directory):
            (directory / "half").write_text("x")
            os.kill(os.getpid(), 9)
        cache.run("a", {}, killed)
    """
    assert in_another_process(cache.root, code).returncode == -9
    assert len(leftovers(cache)) == 1
    assert leftovers(StageCache(cache.root)) == []


def test_what_a_living_process_works_on_is_not_swept(cache):
    def make(directory):
        StageCache(cache.root)
        assert in_another_process(cache.root, "").returncode == 0
        (directory / "a").write_text("x")

    assert (cache.run("a", {}, make)[0] / "a").exists()


def old_entries(root, count, size):
    """Entries of an earlier process, the first the oldest."""
    code = f"""
        for k in range({count}):
            path, _ = cache.run("old", {{"k": k}}, lambda d: (d / "x").write_bytes(b"x" * {size}) and None)
            os.utime(path / "stage.json", (1000 + k, 1000 + k))
    """
    assert in_another_process(root, code).returncode == 0
    return sorted(root.glob("old-*"), key=lambda p: (p / "stage.json").stat().st_mtime)


def test_the_least_recently_used_goes_first(tmp_path):
    first, second, third = old_entries(tmp_path, 3, 10_000)
    cache = StageCache(tmp_path, limit_bytes=35_000)
    assert cache.run("old", {"k": 0}, Maker()) == (first, True)  # used again: now the newest
    path, _ = cache.run("new", {}, Maker(10_000))
    assert path.is_dir() and first.is_dir() and third.is_dir()
    assert not second.is_dir()
    assert leftovers(cache) == []


def test_eviction_never_removes_what_this_process_used(tmp_path):
    cache = StageCache(tmp_path, limit_bytes=1)
    used, _ = cache.run("a", {}, Maker())
    other, _ = StageCache(tmp_path, limit_bytes=1).run("b", {}, Maker())
    assert used.is_dir() and other.is_dir()


def test_files_that_are_not_ours_are_left_alone(tmp_path):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "mnist.npz").write_bytes(b"x" * 1000)
    StageCache(tmp_path, limit_bytes=1).run("a", {}, Maker())
    assert (tmp_path / "datasets" / "mnist.npz").exists()


def test_the_root_is_the_environments_or_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEML_CACHE", str(tmp_path / "here"))
    assert StageCache().root == tmp_path / "here"
    monkeypatch.setenv("EDGEML_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert StageCache().root == tmp_path / "home" / ".cache" / "edgeml"


def test_a_relative_root_survives_a_change_of_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = StageCache(os.path.curdir)
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert cache.run("a", {}, Maker())[0].parent == tmp_path


def test_a_root_that_cannot_be_written_says_what_to_set(tmp_path):
    (tmp_path / "file").write_text("x")
    for root in (tmp_path / "file", tmp_path / "file" / "deep"):
        with pytest.raises(InputError, match=r"cannot be written .*set EDGEML_CACHE"):
            StageCache(root)


def test_another_version_of_edgeml_does_its_stages_itself(tmp_path, monkeypatch):
    cache = StageCache(tmp_path)
    assert cache.run("stage", {}, lambda folder: None)[1] is False
    assert cache.run("stage", {}, lambda folder: None)[1] is True
    monkeypatch.setattr("edgeml.artifact.stage_cache.__version__", "0.0.1")
    assert cache.run("stage", {}, lambda folder: None)[1] is False
