"""The doctor tries each part and never fails itself."""

import sys

from edgeml.compress import doctor


def test_parts_that_are_installed_were_tried_not_only_imported():
    parts = {part.name: part for part in doctor.examine()}
    new = ("onnxruntime quantization",) if sys.version_info >= (3, 11) else ()  # 3.10's is too old
    for name in ("onnx", "onnxruntime", "openvino", "nncf", "torch", *new):
        assert parts[name].works, parts[name]
        assert parts[name].version
    assert "ran a convolution, right to" in parts["openvino"].detail
    assert "quantized a convolution to INT8" in parts["nncf"].detail
    assert parts["cpu"].detail
    rtx = parts["tensorrt-rtx-cu13"]  # installed where its wheels exist
    assert rtx.version is None or (rtx.works and "parsed and built a convolution" in rtx.detail)


def test_what_is_not_installed_says_how_to_get_it():
    part = doctor._try("no-such-package", "openvino", lambda: "")
    assert (part.works, part.version) == (False, None)
    assert part.detail == "not installed: pip install 'edgeml-toolchain[openvino]'"


def test_a_part_that_breaks_is_a_line_not_a_traceback():
    def broken():
        raise RuntimeError("a symbol is missing\nin libfoo.so")

    part = doctor._try("onnx", "", broken)
    assert not part.works and part.detail == "RuntimeError: a symbol is missing"


def test_each_nvidia_part_says_what_is_there_and_what_it_enables():
    parts = {part.name: part for part in doctor.examine()}
    enables = {
        "onnxconverter-common": "export --fp16",
        "nvidia-modelopt": "--route tensorrt-form",
        "tensorrt-rtx-cu13": "export --to tensorrt-rtx",
        "nvidia-ml-py": "edgeml bench --energy",
        "nvidia gpu": "edgeml bench of TensorRT engines",
        "trtexec": "build.sh",
    }
    for name, told in enables.items():
        part = parts[name]
        if part.works:
            assert told in part.detail
        elif name != "trtexec":
            assert "install" in part.detail or "driver" in part.detail or "GPU" in part.detail
    gpu = parts["nvidia gpu"]
    assert gpu.works or "work without it" in gpu.detail
