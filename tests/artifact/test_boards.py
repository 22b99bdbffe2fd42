"""The table of boards: which one a device is, what it executes, which rails make its total."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest
from edgeml.artifact.boards import (
    BOARDS,
    CAPABILITIES,
    capability_name,
    find_board,
    lowest_capability,
    precisions_of,
)


def test_the_examples_in_the_docstrings_hold():
    for name in ("boards", "target", "tensorrt_versions"):
        assert doctest.testmod(import_module(f"edgeml.artifact.{name}")).failed == 0


@pytest.mark.parametrize("board", BOARDS.values(), ids=lambda b: b.name)
def test_totals_and_sums_name_rails_of_the_board(board):
    labels = [rail.label for rail in board.rails]
    assert len(set(labels)) == len(labels)
    assert board.total is None or board.total in labels
    assert set(board.summed) <= set(labels)
    assert board.total is not None or board.summed
    assert board.compute_capability in CAPABILITIES


@pytest.mark.parametrize("board", BOARDS.values(), ids=lambda b: b.name)
def test_a_boards_modules_have_their_memory_the_smallest_first(board):
    assert board.memory_gb and list(board.memory_gb) == sorted(board.memory_gb)


def test_a_rail_inside_another_is_never_summed():
    assert BOARDS["jetson-orin-nano"].summed == ()  # VDD_IN holds all
    assert "VDDQ_VDD2_1V8AO" not in BOARDS["jetson-agx-orin"].summed
    assert "VIN" not in BOARDS["jetson-thor"].summed


@pytest.mark.parametrize(
    ("model", "compatible", "name"),
    [
        ("NVIDIA Jetson Orin Nano Developer Kit\0", "", "jetson-orin-nano"),
        ("Jetson AGX Orin", "nvidia,p3737-0000+p3701-0005\0nvidia,tegra234", "jetson-agx-orin"),
        ("NVIDIA Jetson AGX Thor Developer Kit", "", "jetson-thor"),
        # The same carrier, another module: the module decides.
        ("NVIDIA Jetson Orin Nano Developer Kit", "p3768-0000+p3767-0001", "jetson-orin-nx"),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", "", "jetson-orin-nx"),
    ],
)
def test_a_board_is_found_by_what_the_device_says(model, compatible, name):
    assert find_board(model, compatible).name == name


@pytest.mark.parametrize("model", ["", "Raspberry Pi 5 Model B", "NVIDIA Jetson Xavier NX"])
def test_another_board_is_none_of_the_table(model):
    assert find_board(model) is None


def test_precisions_by_architecture():
    assert "fp8" not in BOARDS["jetson-agx-orin"].precisions
    assert "fp8" in BOARDS["jetson-thor"].precisions
    assert "bf16" not in precisions_of("7.5")
    assert lowest_capability("fp4") == "SM100"
    assert capability_name("sm_101") == "SM110"
    for word in ("SM12", "banana", "", "5.3"):
        with pytest.raises(ValueError, match="known: SM75"):
            capability_name(word)
