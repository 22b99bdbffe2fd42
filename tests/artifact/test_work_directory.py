"""One run at a time on an OUT.part; OUT is whole or not there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from edgeml.artifact.work_directory import JOURNAL, WorkDirectory
from edgeml.errors import InputError

RUN = """
import os, pathlib, sys
from edgeml.artifact.work_directory import WorkDirectory
with WorkDirectory(pathlib.Path(sys.argv[1]), "recipe") as work:
    work.log("done", "export")
    contents = work.fresh_contents()
    (contents / "half").write_text("x")
    {act}
"""


def run(out, act):
    """A run in a process of its own, which does `act` in the middle."""
    command = [sys.executable, "-c", RUN.format(act=act), str(out)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def part(tmp_path):
    return tmp_path / "out.part"


def refused(out, message, recipe="recipe"):
    with pytest.raises(InputError, match=message) as caught, WorkDirectory(out, recipe):
        raise AssertionError("it was not refused")
    assert "\n" not in str(caught.value)


def test_the_last_act_renames_the_contents_and_the_rest_goes(out, part):
    with WorkDirectory(out, "recipe") as work:
        contents = work.fresh_contents()
        (contents / "model.onnx").write_text("x")
        assert not out.exists()
        work.publish()
    assert [p.name for p in out.iterdir()] == ["model.onnx"]
    assert not part.exists()


def test_a_killed_run_goes_on_with_its_id_and_its_journal(out, part):
    killed = run(out, "print(work.run_id, flush=True); os.kill(os.getpid(), 9)")
    assert killed.returncode == -9
    assert not out.exists() and part.is_dir()
    with WorkDirectory(out, "recipe") as work:
        assert work.run_id == killed.stdout.strip()
        assert work.events() == [{"event": "done", "stage": "export"}]
        assert list(work.fresh_contents().iterdir()) == []
        work.publish()
    with WorkDirectory(out.with_name("other"), "recipe") as work:
        assert work.run_id != killed.stdout.strip()


def test_a_run_that_fails_after_a_stage_keeps_it(out, part):
    with pytest.raises(KeyboardInterrupt), WorkDirectory(out, "recipe") as work:
        work.log("done", "export")
        raise KeyboardInterrupt
    assert part.is_dir() and not out.exists()
    with WorkDirectory(out, "recipe") as work:
        assert len(work.events()) == 1


def test_a_run_refused_before_its_first_stage_leaves_nothing(tmp_path, out):
    with pytest.raises(InputError, match="bad model"), WorkDirectory(out, "recipe"):
        raise InputError("bad model")
    assert list(tmp_path.iterdir()) == []


def test_another_run_at_the_same_time_is_refused(out):
    with WorkDirectory(out, "recipe") as work:
        work.log("done", "export")
        refused(out, "another run works on .*out.part; wait for it")
        assert "another run works on" in run(out, "pass").stderr
        assert len(work.events()) == 1


def test_another_recipes_work_is_refused_and_kept(out, part):
    assert run(out, "os.kill(os.getpid(), 9)").returncode == -9
    refused(out, "belongs to another recipe", recipe="other")
    assert (part / "contents" / "half").exists()
    with WorkDirectory(out, "recipe") as work:
        assert len(work.events()) == 1


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_an_out_that_exists_is_refused(tmp_path, out, kind):
    if kind == "file":
        out.write_text("mine")
    elif kind == "folder":
        out.mkdir()
    else:
        out.symlink_to("nowhere")
    refused(out, "out exists; remove it or choose another with -o")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_out_made_meanwhile_is_not_overwritten(out, part):
    with pytest.raises(InputError, match="exists"), WorkDirectory(out, "recipe") as work:
        work.log("done", "export")
        work.fresh_contents()
        out.mkdir()
        work.publish()
    assert list(out.iterdir()) == [] and part.is_dir()


def test_one_folder_that_is_missing_is_made_and_unmade_where_the_run_is_refused(tmp_path):
    out = tmp_path / "runs" / "mnist"
    with pytest.raises(InputError, match="bad"), WorkDirectory(out, "recipe"):
        raise InputError("bad")
    assert list(tmp_path.iterdir()) == []
    with WorkDirectory(out, "recipe") as work:
        work.fresh_contents()
        work.publish()
    assert out.is_dir()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/out", "the folder .*no/such does not exist; make it"),
        ("file/out", "the folder .*file does not exist"),
        ("n" * 300, "cannot be written: File name too long"),
        (".", "exists; remove it"),
        ("..", "exists; remove it"),
    ],
)
def test_a_place_that_cannot_be_is_bad_input(tmp_path, monkeypatch, name, message):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    refused(Path(name), message)
    refused(tmp_path / name if name not in (".", "..") else Path(name), message)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_part_that_is_no_run_is_left_untouched(tmp_path, out, part):
    part.mkdir()
    (part / "thesis.tex").write_text("x")
    refused(out, "out.part holds 'thesis.tex', which is no run of edgeml")
    assert [p.name for p in part.iterdir()] == ["thesis.tex"]
    (part / "thesis.tex").unlink()
    part.rmdir()
    part.write_text("a file")
    refused(out, "out.part cannot be written: File exists")


@pytest.mark.parametrize(
    "torn", [b'{"event": "do', b'{"event": "done", "stage": "b"}', b"\0\0\0\0\n", b"7\n", b"\xff\n"]
)
def test_a_torn_journal_line_is_cut_off(out, part, torn):
    assert run(out, "os.kill(os.getpid(), 9)").returncode == -9
    with (part / JOURNAL).open("ab") as file:
        file.write(torn)
    with WorkDirectory(out, "recipe") as work:
        assert [e["stage"] for e in work.events()] == ["export"]
        work.log("done", "quantize", seconds=1.5)
    lines = (part / JOURNAL).read_text().splitlines()
    assert [json.loads(line)["stage"] for line in lines] == ["export", "quantize"]


@pytest.mark.parametrize("state", ["", "{", "[]", '{"recipe": "recipe"}'])
def test_a_damaged_state_begins_again(out, part, state):
    assert run(out, "os.kill(os.getpid(), 9)").returncode == -9
    (part / "run.json").write_text(state)
    with WorkDirectory(out, "recipe") as work:
        assert work.run_id and work.events() == []
        work.fresh_contents()
        work.publish()
    assert out.is_dir()
