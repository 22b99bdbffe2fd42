"""A file is whole or what it was before; the system's refusals are our lines."""

from __future__ import annotations

import errno
import json
import os

import pytest
from edgeml.artifact.atomic_file import (
    disk_errors,
    publish_directory,
    replacing,
    write_bytes,
    write_json,
    write_text,
)
from edgeml.errors import EdgemlError, InputError


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_written_file_is_there_and_nothing_else(tmp_path):
    write_text(tmp_path / "a.txt", "größer\n")
    write_bytes(tmp_path / "b.bin", b"\0\1")
    write_json(tmp_path / "c.json", {"ß": [1, None]})
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "größer\n"
    assert (tmp_path / "b.bin").read_bytes() == b"\0\1"
    assert json.loads((tmp_path / "c.json").read_text(encoding="utf-8")) == {"ß": [1, None]}
    assert names(tmp_path) == ["a.txt", "b.bin", "c.json"]


def test_after_an_exception_the_old_file_is_whole(tmp_path):
    file = tmp_path / "a.txt"
    write_text(file, "old")
    with pytest.raises(KeyboardInterrupt), replacing(file) as part:
        part.write_text("half of the n")
        raise KeyboardInterrupt
    assert file.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_the_temporary_file_keeps_the_suffix_and_the_folder(tmp_path):
    with replacing(tmp_path / "m.onnx") as part:
        assert part.suffix == ".onnx" and part.parent == tmp_path
        part.write_bytes(b"x")
    assert (tmp_path / "m.onnx").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_and_no_input_error(tmp_path, code):
    with pytest.raises(EdgemlError, match="no space left") as caught, disk_errors(tmp_path / "a"):
        raise OSError(code, os.strerror(code))
    assert caught.value.exit_code == 1


def test_a_full_disk_half_way_leaves_nothing(tmp_path):
    with (
        pytest.raises(EdgemlError, match="no space left"),
        replacing(tmp_path / "a") as part,
        part.open("wb") as file,
    ):
        file.write(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda d: d / "no" / "such" / "a", "No such file"),
        (lambda d: d / "file" / "a", "Not a directory"),
        (lambda d: d / ("n" * 300), "File name too long"),
        (lambda d: d / "folder", "Is a directory"),
    ],
)
def test_a_place_that_cannot_be_written_is_bad_input(tmp_path, make, reason):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=f"cannot be written: {reason}"):
        write_text(make(tmp_path), "x")
    assert names(tmp_path) == ["file", "folder"]


def test_an_error_about_another_file_is_not_blamed_on_this_one(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(FileNotFoundError), disk_errors(out / "a"):
        (tmp_path / "photo.jpg").read_bytes()


def test_a_directory_is_published_by_one_rename(tmp_path):
    part = tmp_path / "part"
    (part / "deep").mkdir(parents=True)
    (part / "deep" / "a").write_text("x")
    publish_directory(part, tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "deep" / "a").read_text() == "x"


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_what_exists_is_never_published_over(tmp_path, kind):
    part, out = tmp_path / "part", tmp_path / "out"
    part.mkdir()
    if kind == "file":
        out.write_text("mine")
    elif kind == "folder":
        out.mkdir()
    else:
        out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="out exists; remove it"):
        publish_directory(part, out)
    assert part.is_dir()
