"""The table of TensorRT versions against NVIDIA's own bindings (about 1 MB a wheel, no GPU, slow).

The extension module cannot be imported without TensorRT's libraries; the names it registers stand in
it as text.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile

import pytest
from edgeml.artifact.tensorrt_versions import VERSIONS

pytestmark = pytest.mark.slow

WITH_WHEELS = [row for row in VERSIONS.values() if row.bindings]
# How a precision is spelled in the bindings' DataType.
DATA_TYPES = {"bf16": "BF16", "fp8": "FP8", "int4": "INT4", "fp4": "FP4"}


@pytest.fixture(scope="module")
def names_of(tmp_path_factory):
    """A function: version row → the set of words in its bindings. A wheel that cannot be had fails."""
    folder = tmp_path_factory.mktemp("bindings")

    def names(row) -> set[bytes]:
        target = folder / row.name
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        # Of one platform and Python, whatever this machine is: it is read, not run.
        command += ["--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp"]
        command += ["--abi", "none", "--platform", "manylinux_2_17_x86_64"]
        command += ["--platform", "manylinux_2_28_x86_64", "-d", str(target), row.bindings]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{row.bindings} cannot be had: {done.stderr[-500:]}"
        [wheel] = target.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            [extension] = [
                n for n in archive.namelist() if re.fullmatch(r".*/tensorrt(_rtx)?\.so", n)
            ]
            return set(re.findall(rb"[A-Za-z_][A-Za-z0-9_]*", archive.read(extension)))

    return names


@pytest.mark.parametrize("row", WITH_WHEELS, ids=lambda row: row.name)
def test_the_bindings_have_what_the_table_says(row, names_of):
    names = names_of(row)
    assert (b"IInt8EntropyCalibrator2" in names) == row.calibrators
    assert (b"get_binding_index" in names) == row.binding_indices
    assert (b"STRONGLY_TYPED" in names) == row.strong
    # Builder flags are what weak typing is made of.
    assert (b"OBEY_PRECISION_CONSTRAINTS" in names) == (row.typing != "strong")
    for precision, word in DATA_TYPES.items():
        if row.strong:
            assert (word.encode() in names) == (precision in row.precisions), precision
    # What our runner and builder call, in every version.
    for call in (
        b"set_tensor_address",
        b"execute_async_v3",
        b"set_input_shape",
        b"engine_host_code_allowed",
        b"build_serialized_network",
        b"set_memory_pool_limit",
        b"num_io_tensors",
        b"get_tensor_profile_shape",
        b"is_shape_inference_io",
        b"get_engine_information",
        b"report_layer_time",
        b"profiling_verbosity",
        b"set_timing_cache",
    ):
        assert call in names, call


def test_only_8_5_has_no_wheel():
    """JetPack 5.1's 8.5.2 was never published as bindings: that row rests on documents alone."""
    assert [row.name for row in VERSIONS.values() if not row.bindings] == ["8.5.2"]
