"""Targets: what is built in, what a YAML file may say, and what a target refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgeml.artifact.boards import BOARDS
from edgeml.artifact.target import TARGETS, find_target
from edgeml.artifact.tensorrt_versions import VERSIONS
from edgeml.errors import InputError

GOOD = """\
name: my-carrier
runtimes: [tensorrt]
precisions: [fp32, fp16, int8]
compute_capability: "8.7"
tensorrt: [10.3]
rails:
  - VDD_IN
"""


def write(tmp_path, text):
    path = tmp_path / "target.yaml"
    path.write_text(text)
    return str(path)


def test_the_built_in_targets_are_those_of_the_design():
    assert list(TARGETS) == [
        "cpu",
        "intel-cpu",
        "arm64",
        "rtx",
        "jetson-orin-nano",
        "jetson-orin-nx",
        "jetson-agx-orin",
        "jetson-thor",
    ]


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda t: t.name)
def test_a_target_agrees_with_the_tables_it_draws_on(target):
    assert set(target.tensorrt) <= set(VERSIONS)
    if target.board is not None:
        board = BOARDS[target.board]
        assert target.compute_capability == board.compute_capability
        assert target.rails == tuple(rail.label for rail in board.rails)
    if target.by_tensorrt:
        assert target.tensorrt_version().name in target.tensorrt
    assert set(target.channel_granularity) - set(target.precisions) <= {"fp16"}


def test_the_tensorrt_of_a_board_is_one_that_its_jetpack_ships():
    for target in TARGETS.values():
        for name in target.tensorrt if target.board else ():
            shipped = {line.partition(".")[0] for line in VERSIONS[name].jetpack}
            lines = {line.partition(".")[0] for line in BOARDS[target.board].jetpack}
            assert not shipped or shipped & lines, (target.name, name)


def test_fp8_is_refused_for_orin_in_one_line_that_names_what_has_it():
    with pytest.raises(InputError, match=r"SM87.*fp8 needs SM89 or later.*it has fp32, bf16, fp16"):
        find_target("jetson-orin-nano").require("fp8")
    find_target("jetson-thor").require("fp8", VERSIONS["10.13"])


def test_a_precision_that_the_tensorrt_lacks_is_refused():
    with pytest.raises(InputError, match=r"TensorRT 8\.6\.2 has none; it has fp32, fp16, int8"):
        find_target("jetson-orin-nano").require("bf16", VERSIONS["8.6.2"])


def test_a_tensorrt_that_does_not_run_there_is_refused():
    with pytest.raises(InputError, match=r"jetson-thor runs TensorRT 10\.13, 10\.16, 11\.4"):
        find_target("jetson-thor").tensorrt_version("8.6")
    with pytest.raises(InputError, match=r"too old: JetPack 4"):
        find_target("jetson-orin-nano").tensorrt_version("7.1")
    with pytest.raises(InputError, match=r"not in the table; known: 8\.5\.2"):
        find_target("jetson-orin-nano").tensorrt_version("10.99")
    with pytest.raises(InputError, match="targets that run TensorRT; arm64 does not"):
        find_target("arm64").tensorrt_version("10.3")


def test_a_yaml_file_adds_a_target(tmp_path):
    target = find_target(write(tmp_path, GOOD))
    assert (target.name, target.compute_capability) == ("my-carrier", "SM87")
    assert target.tensorrt == ("10.3",)  # though YAML reads a number
    assert target.rails == ("VDD_IN",)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("int8]", "int9]", "line 3: precisions: unknown precision 'int9', did you mean int8"),
        ("[tensorrt]", "[tensort]", "line 2: runtimes: unknown runtime 'tensort', did you mean"),
        ("[tensorrt]", "tensorrt", "line 2: runtimes: "),
        ('"8.7"', "SM12", "line 4: compute_capability: compute capability 'SM12' is not known"),
        ("[10.3]", "[10.99]", r"line 5: tensorrt: 10\.99 is not in the table; known: 8\.5\.2"),
        ("[10.3]", "[7.1]", "line 5: tensorrt: 7.1 is too old: JetPack 4"),
        ("int8]", "fp8]", "line 3: precisions: SM87 executes no fp8; it has fp32"),
        ("rails", "rail", "line 6: unknown field 'rail', did you mean rails"),
        ("- VDD_IN", "- [1]", r"line 7: rails\.0: "),
        ("my-carrier", "rtx", "line 1: rtx is built in; give it another name"),
        ("tensorrt: [10.3]", "", "line 2: runtimes: tensorrt needs its versions"),
        ("runtimes: [tensorrt]", "", "runtimes is missing"),
        ("int8]", "int8", "is no valid YAML at line"),
        ("name: my-carrier", "board: p9", "board: unknown board 'p9', known: jetson-agx-orin"),
    ],
)
def test_a_bad_field_is_told_with_its_line(tmp_path, old, new, told):
    assert old in GOOD
    text = GOOD.replace(old, new)
    if new.startswith("board"):
        text += "name: other\n"
    with pytest.raises(InputError, match=told):
        find_target(write(tmp_path, text))


def test_a_file_that_is_no_target_is_one_line(tmp_path):
    with pytest.raises(InputError, match="holds no mapping"):
        find_target(write(tmp_path, "- 1\n"))
    with pytest.raises(InputError, match="cannot be read: No such file"):
        find_target(str(tmp_path / "none.yaml"))


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(InputError, match="did you mean jetson-orin-nano"):
        find_target("orin-nano")


def test_the_target_in_the_documentation_is_one(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "nvidia.md").read_text()
    text = page.split("```yaml\n")[1].partition("```")[0]
    assert find_target(write(tmp_path, text)).tensorrt == ("10.16", "11.4")
    for name in TARGETS:
        assert f"`{name}`" in page
