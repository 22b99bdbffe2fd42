"""Power modes and clocks on a made board: set, held, put back whatever ends, refused where they must be."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from edgeml.runtime.device.power import PowerError, PowerHolder, mode_number

CONF = """
< POWER_MODEL ID=0 NAME=15W >
< POWER_MODEL ID=1 NAME=7W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< PM_CONFIG DEFAULT=0 >
"""
# As the real one: -m asks on stdin where a reboot is needed, and does nothing without an answer.
NVPMODEL = """#!/bin/sh
[ "$1" = -m ] || exit 1
if [ "$2" = 2 ]; then
  echo "NVPM WARN: Reboot required for changing to this power mode: 2"
  echo "NVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:"
  read answer && [ "$answer" = yes ] && echo rebooting >> "{root}/rebooted"
  exit 0
fi
printf 'pmode:%04d fmode:fanNull' "$2" > "{root}/var/lib/nvpmodel/status"
"""
CLOCKS = """#!/bin/sh
gpu="{root}/sys/class/devfreq/17000000.gpu"
case "$1" in
  --store) cat "$gpu/min_freq" > "$2";;
  --restore) cat "$2" > "$gpu/min_freq";;
  *) cat "$gpu/max_freq" > "$gpu/min_freq";;
esac
"""


@pytest.fixture
def board(tmp_path) -> Path:
    root = tmp_path / "board root"
    for folder in (
        "etc",
        "usr/sbin",
        "usr/bin",
        "var/lib/nvpmodel",
        "sys/class/devfreq/17000000.gpu",
    ):
        (root / folder).mkdir(parents=True)
    (root / "etc/nvpmodel.conf").write_text(CONF)
    (root / "var/lib/nvpmodel/status").write_text("pmode:0000 fmode:fanNull")
    for name, mhz in (("min", 306), ("max", 918), ("cur", 306)):
        (root / f"sys/class/devfreq/17000000.gpu/{name}_freq").write_text(f"{mhz}000000\n")
    for name, text in (("usr/sbin/nvpmodel", NVPMODEL), ("usr/bin/jetson_clocks", CLOCKS)):
        (root / name).write_text(text.replace("{root}", str(root)))
        (root / name).chmod(0o755)
    return root


def mode(board: Path) -> int:
    # Empty for the moment of a write: the mode to be left.
    return int((board / "var/lib/nvpmodel/status").read_text()[6:10] or 1)


def gpu_minimum(board: Path) -> int:
    return int((board / "sys/class/devfreq/17000000.gpu/min_freq").read_text()) // 10**6


@pytest.fixture
def holder(board, agent_file, tmp_path, monkeypatch):
    """As root sees it: the stand-ins need no sudo."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    state = tmp_path / "state.json"
    holder = PowerHolder(str(state), [sys.executable, str(agent_file)], str(board))
    yield holder
    holder.release()


def until(condition, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_a_mode_and_clocks_are_set_held_and_put_back(holder, board, tmp_path):
    answer = holder.set("7w", True)
    assert answer["before"] == {"mode": "15W", "locked": False}
    assert answer["after"] == {"mode": "7W", "locked": True}
    assert json.loads((tmp_path / "state.json").read_text())["number"] == 0
    holder.beat()
    time.sleep(0.1)
    assert (mode(board), gpu_minimum(board)) == (1, 918)
    holder.release()
    assert (mode(board), gpu_minimum(board)) == (0, 306)
    assert not (tmp_path / "state.json").exists()


def test_a_mode_that_needs_a_reboot_is_refused_and_nothing_reboots(holder, board):
    with pytest.raises(PowerError, match="needs a reboot, which edgeml never does") as refused:
        holder.set("MAXN_SUPER", False)
    assert refused.value.code == "needs-reboot"
    assert mode(board) == 0 and not (board / "rebooted").exists()


def test_an_unknown_mode_names_those_there_are(board):
    with pytest.raises(PowerError, match="it has 15W, 7W, MAXN_SUPER") as refused:
        mode_number("10W", str(board))
    assert (refused.value.code, refused.value.extra["modes"][1]) == ("no-mode", "7W")
    assert mode_number("1", str(board)) == 1


def test_what_a_power_cut_left_is_restored_at_the_next_contact(holder, board, tmp_path):
    holder.set("7W", True)
    os.kill(holder._process.pid, signal.SIGKILL)
    holder.release()
    assert (mode(board), gpu_minimum(board)) == (1, 918)
    again = PowerHolder(str(tmp_path / "state.json"), holder._program, str(board))
    assert again.restore_left() == "an earlier deploy's power state was restored: mode 15W, clocks"
    assert (mode(board), gpu_minimum(board)) == (0, 306)
    assert again.restore_left() is None


def test_no_beats_restore(board, agent_file, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    # The same process with a lapse of half a second.
    program = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(agent_file)!r}); "
               "from edgeml.runtime.device import commands, power_hold; power_hold.LAPSE_S = 0.5; "
               "sys.exit(commands.main(sys.argv[1:]))"]  # fmt: skip
    holder = PowerHolder(str(tmp_path / "state.json"), program, str(board))
    holder.set("7W", False)
    assert mode(board) == 1
    assert until(lambda: mode(board) == 0)
    assert not holder.holding or until(lambda: not holder.holding)
    holder.release()


def test_sudo_with_a_password_is_refused_and_nothing_changes(holder, board, monkeypatch, tmp_path):
    sudo = tmp_path / "bin" / "sudo"
    sudo.parent.mkdir()
    sudo.write_text("#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n")
    sudo.chmod(0o755)
    monkeypatch.setenv("PATH", str(sudo.parent), prepend=os.pathsep)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(PowerError, match="a password is required") as refused:
        holder.set("7W", False)
    assert refused.value.code == "no-sudo" and mode(board) == 0


def test_a_board_without_the_tool_says_so(holder, board):
    (board / "usr/bin/jetson_clocks").unlink()
    with pytest.raises(PowerError, match="has no /usr/bin/jetson_clocks"):
        holder.set(None, True)
    assert holder.set(None, False)["note"] is None


def test_clocks_that_could_not_be_put_back_are_not_pinned(holder, board):
    (board / "usr/bin/jetson_clocks").write_text(
        CLOCKS.replace("{root}", str(board)).replace('cat "$gpu/min_freq" > "$2"', "echo full disk")
    )
    with pytest.raises(PowerError, match=r"stay as they are: full disk") as refused:
        holder.set("7W", True)
    assert refused.value.code == "unsupported"
    assert (mode(board), gpu_minimum(board)) == (0, 306)


def test_a_mode_that_does_not_come_back_keeps_what_must_be_restored(holder, board, tmp_path):
    holder.set("7W", False)
    tool = board / "usr/sbin/nvpmodel"
    tool.write_text("#!/bin/sh\necho NVPM ERROR: busy\n")
    holder.release()
    assert mode(board) == 1 and json.loads((tmp_path / "state.json").read_text())["number"] == 0
    again = PowerHolder(str(tmp_path / "state.json"), holder._program, str(board))
    assert "could not be restored: the former power mode 0 is not back" in again.restore_left()
    with pytest.raises(PowerError, match="is not back"):
        again.set(None, True)  # its former state would be the wrong one
    tool.write_text(NVPMODEL.replace("{root}", str(board)))
    assert again.restore_left().endswith("mode 15W") and mode(board) == 0


def test_a_beat_finds_a_holder_that_was_just_released(holder, board):
    holder.set("7W", False)
    holder._process.stdin.close()
    holder.beat()  # in the agent's reading thread: it must not end that
