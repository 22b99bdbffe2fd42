"""The table of TensorRT versions: lookups, and what it says of each."""

from __future__ import annotations

import pytest
from edgeml.artifact.tensorrt_versions import (
    REMOVED,
    VERSIONS,
    find_version,
    trtexec_typing,
    version_of_jetpack,
)
from edgeml.errors import InputError


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("8.5.2", "8.5.2"),
        ("8.5.2.2", "8.5.2"),
        ("8.6.1", "8.6.2"),
        ("10.3.0.30", "10.3"),
        ("v10.13.3.9", "10.13"),
        ("10.16.1", "10.16"),
        ("11.4.0.106", "11.4"),
        ("rtx", "rtx"),
        ("TensorRT-RTX", "rtx"),
        ("rtx-1.7", "rtx"),
    ],
)
def test_a_version_is_found_however_it_is_written(word, name):
    assert find_version(word).name == name


@pytest.mark.parametrize("word", ["12.0", "10.4", "9.3", "10", "8.7", "banana", "", "10.3x"])
def test_an_unknown_version_gets_the_list(word):
    with pytest.raises(
        InputError, match=r"known: 8\.5\.2, 8\.6\.2, 10\.3, 10\.13, 10\.16, 11\.4, rtx"
    ):
        find_version(word)


@pytest.mark.parametrize("word", ["8.2.1", "8.4", "7.1.3", "8.0.1.6"])
def test_what_jetpack_4_ships_is_too_old(word):
    with pytest.raises(InputError, match=r"too old: JetPack 4"):
        find_version(word)


@pytest.mark.parametrize(
    ("jetpack", "name"),
    [
        ("5.1.2", "8.5.2"),
        ("6.0", "8.6.2"),
        ("6", "8.6.2"),
        ("6.1", "10.3"),
        ("6.2.2", "10.3"),
        ("7.0", "10.13"),
        ("7.1", "10.13"),
        ("7.2.1", "10.16"),
    ],
)
def test_jetpack_leads_to_its_tensorrt(jetpack, name):
    assert version_of_jetpack(jetpack).name == name


def test_jetpack_4_and_unknown_ones_are_refused():
    with pytest.raises(InputError, match=r"JetPack 4\.6 is too old"):
        version_of_jetpack("4.6")
    with pytest.raises(InputError, match=r"known: 5\.1, 6\.0, 6\.1, 6\.2, 7\.0, 7\.1, 7\.2"):
        version_of_jetpack("9.0")
    with pytest.raises(InputError, match="is no version"):
        version_of_jetpack("Orin")


def test_precision_flags_exist_where_typing_is_weak_and_only_there():
    for row in VERSIONS.values():
        flags = trtexec_typing(row, int8=True, fp16=True)
        assert (
            flags
            == {
                "weak": ("--fp16", "--int8"),
                "both": ("--stronglyTyped",),
                "strong": (),
            }[row.typing]
        )
    assert trtexec_typing(VERSIONS["8.5.2"], int8=False, fp16=True) == ("--fp16",)
    assert trtexec_typing(VERSIONS["8.5.2"], int8=False, fp16=False) == ()


def test_only_8x_ignores_axes_inputs_and_stops_at_opset_17():
    wrong = [row.name for row in VERSIONS.values() if not row.reduce_axes_input]
    assert wrong == ["8.5.2", "8.6.2"]
    assert [VERSIONS[name].highest_opset for name in wrong] == [17, 17]


def test_what_was_removed_belongs_to_a_version():
    assert set(REMOVED) <= set(VERSIONS)
