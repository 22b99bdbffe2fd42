"""What each TensorRT that JetPack ships knows, and TensorRT-RTX: pure data and small lookups.

Sources: NVIDIA's support matrices and migration pages ("TensorRT 8.x to 10.x", "10.x to 11.x"), the
changelogs and importers of onnx-tensorrt by release, JetPack's release notes. What the Python
bindings tell (typing, calibrators, binding indices, data types) is checked against the bindings wheels
by ``tests/artifact/test_tensorrt_wheels.py``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import InputError


@dataclass(frozen=True)
class TensorRTVersion:
    """One row of the table.

    Attributes:
        name: what ``--tensorrt`` takes: ``8.5.2 … 11.4``, ``rtx``.
        jetpack: the JetPack releases that ship it; empty where none does.
        module: the Python package.
        highest_opset: of ONNX's standard operators, that its parser documents.
        opset_origin: where that number comes from.
        typing: ``weak`` (builder flags choose precisions), ``both`` or ``strong`` (types lie in the
            graph; nothing else is obeyed).
        calibrators: implicit INT8 by a calibrator class still exists.
        binding_indices: the API by index (``get_binding_index``) still exists.
        precisions: types that Q/DQ or the graph may carry.
        layer_normalization: the parser has that operator (and GroupNormalization).
        reduce_axes_input: Reduce* reads ``axes`` given as an input. Where False the parser ignores
            it without a word and reduces over all axes: the engine is wrong.
        dla: deep-learning accelerators can be built for, on boards that have them.
        skip_inference: trtexec's flag for "build, do not time".
        bindings: the wheel that carries this version's Python bindings; None: there is none.
    """

    name: str
    jetpack: tuple[str, ...]
    module: str
    highest_opset: int
    opset_origin: str
    typing: str
    calibrators: bool
    binding_indices: bool
    precisions: tuple[str, ...]
    layer_normalization: bool
    reduce_axes_input: bool
    dla: bool
    skip_inference: str
    bindings: str | None

    @property
    def strong(self) -> bool:
        """Whether engines are built with strong typing: wherever it exists."""
        return self.typing != "weak"

    @property
    def rtx(self) -> bool:
        return self.module == "tensorrt_rtx"


_UP_TO_10_0 = ("fp32", "fp16", "int8")
_FROM_10_3 = ("fp32", "fp16", "bf16", "int8", "fp8", "int4")

VERSIONS: dict[str, TensorRTVersion] = {
    row.name: row
    for row in (
        TensorRTVersion(
            "8.5.2",
            ("5.1",),
            "tensorrt",
            17,
            "onnx-tensorrt release/8.5-GA, docs/operators.md",
            "weak",
            calibrators=True,
            binding_indices=True,
            precisions=_UP_TO_10_0,
            layer_normalization=False,  # added by 8.6 (its changelog)
            reduce_axes_input=False,  # importers of 8.5-GA and 8.6-GA read the attribute only
            dla=True,
            skip_inference="--buildOnly",  # --skipInference came with 8.6
            bindings=None,
        ),
        TensorRTVersion(
            "8.6.2",
            ("6.0",),
            "tensorrt",
            17,
            "onnx-tensorrt release/8.6-GA, docs/operators.md",
            "weak",
            calibrators=True,
            binding_indices=True,
            # The enumeration knows FP8, but no ONNX form of it is read before 9.0 (changelog).
            precisions=_UP_TO_10_0,
            layer_normalization=True,
            reduce_axes_input=False,
            dla=True,
            skip_inference="--skipInference",
            bindings="tensorrt-bindings==8.6.1",  # 8.6.2 is for Jetson only; the API is the same
        ),
        TensorRTVersion(
            "10.3",
            ("6.1", "6.2"),
            "tensorrt",
            20,
            "not verified; the opset before ONNX 1.16, which 10.3 was released with",
            "both",
            calibrators=True,
            binding_indices=False,
            precisions=_FROM_10_3,
            layer_normalization=True,
            reduce_axes_input=True,
            dla=True,
            skip_inference="--skipInference",
            bindings="tensorrt-cu12-bindings==10.3.0",
        ),
        TensorRTVersion(
            "10.13",
            ("7.0", "7.1"),
            "tensorrt",
            22,
            "not verified; 10.6 took ONNX 1.17 (opset 22), 10.14 Attention (opset 23): changelogs",
            "both",
            calibrators=True,
            binding_indices=False,
            precisions=(*_FROM_10_3, "fp4"),
            layer_normalization=True,
            reduce_axes_input=True,
            dla=False,  # 10.7 was the last with it before 11.4.1 (release notes)
            skip_inference="--skipInference",
            bindings="tensorrt-cu12-bindings==10.13.3.9",
        ),
        TensorRTVersion(
            "10.16",
            ("7.2",),
            "tensorrt",
            24,
            "onnx-tensorrt docs/operators.md of 10.15: opset 9 to 24",
            "both",
            calibrators=True,
            binding_indices=False,
            precisions=(*_FROM_10_3, "fp4"),
            layer_normalization=True,
            reduce_axes_input=True,
            dla=False,
            skip_inference="--skipInference",
            bindings="tensorrt-cu12-bindings==10.16.1.11",
        ),
        TensorRTVersion(
            "11.4",
            (),  # 11.4.1 supports JetPack 7.2.2 and later on AGX Orin and Thor, but none ships it
            "tensorrt",
            24,
            "onnx-tensorrt docs/operators.md of 11.2; opset 25 came with 11.5 (its release notes)",
            "strong",
            calibrators=False,
            binding_indices=False,
            precisions=(*_FROM_10_3, "fp4"),
            layer_normalization=True,
            reduce_axes_input=True,
            dla=True,
            skip_inference="--skipInference",
            bindings="tensorrt-cu12-bindings==11.4.0.106",
        ),
        TensorRTVersion(
            "rtx",
            (),
            "tensorrt_rtx",
            # Tried with 1.7: it builds plain operators of opset 26, but not opset 23's Attention.
            22,
            "tried with TensorRT-RTX 1.7: from opset 23 on attention is an operator it cannot build",
            "strong",
            calibrators=False,
            binding_indices=False,
            precisions=(*_FROM_10_3, "fp4"),
            layer_normalization=True,
            reduce_axes_input=True,
            dla=False,
            skip_inference="--skipInference",
            bindings="tensorrt-rtx-cu13-bindings==1.7.1.116",
        ),
    )
}

# What a version took away, for messages and the documentation. NVIDIA's migration pages.
REMOVED: dict[str, tuple[str, ...]] = {
    "10.3": ("binding indices", "execute_async_v2", "implicit batch", "trtexec --workspace"),
    "11.4": (
        "precision flags (FP16 INT8 BF16 FP8 INT4)",
        "INT8 calibrators",
        "weakly typed networks",
        "trtexec --fp16 --int8 --bf16 --fp8 --int4 --best --calib",
    ),
}


def known_versions() -> str:
    """The table's names, for messages.

    >>> known_versions()
    '8.5.2, 8.6.2, 10.3, 10.13, 10.16, 11.4, rtx'
    """
    return ", ".join(VERSIONS)


def find_version(word: str) -> TensorRTVersion:
    """The row for a version as a user, a device or ``tensorrt.__version__`` writes it.

    Raises:
        InputError: it is not in the table (the list is told), or too old.

    >>> find_version("10.3.0.30").name, find_version("RTX").name, find_version("8.6").name
    ('10.3', 'rtx', '8.6.2')
    """
    wanted = word.strip().lower()
    if wanted == "rtx" or re.fullmatch(r"(tensorrt-)?rtx([- ]\d+(\.\d+)*)?", wanted):
        return VERSIONS["rtx"]
    match = re.fullmatch(r"v?(\d+)(?:\.(\d+))?(?:\.\d+)*", wanted)
    if match is None:
        raise InputError(f"--tensorrt {word!r} is no version; known: {known_versions()}")
    major, minor = int(match[1]), int(match[2] or -1)
    for row in VERSIONS.values():
        if not row.rtx and tuple(map(int, row.name.split(".")[:2])) == (major, minor):
            return row
    if major < 8 or (major == 8 and minor < 5):
        raise InputError(
            f"--tensorrt {word} is too old: JetPack 4 (TensorRT 7 and 8.0 to 8.2) is not "
            f"supported; known: {known_versions()}"
        )
    raise InputError(f"--tensorrt {word} is not in the table; known: {known_versions()}")


def version_of_jetpack(word: str) -> TensorRTVersion:
    """The TensorRT that a JetPack release ships.

    Raises:
        InputError: JetPack 4 and older, or a release the table does not know.

    >>> version_of_jetpack("6.2.1").name
    '10.3'
    """
    match = re.match(r"(\d+)(?:\.(\d+))?", word.strip())
    if match is None:
        raise InputError(f"JetPack {word!r} is no version, as in 6.2")
    if int(match[1]) < 5:
        raise InputError(f"JetPack {word} is too old: edgeml supports JetPack 5.1 and later")
    release = f"{match[1]}.{match[2] or 0}"
    for row in VERSIONS.values():
        if release in row.jetpack:
            return row
    known = ", ".join(release for row in VERSIONS.values() for release in row.jetpack)
    raise InputError(f"JetPack {word} is not in the table; known: {known}")


def trtexec_typing(version: TensorRTVersion, int8: bool, fp16: bool) -> tuple[str, ...]:
    """The trtexec flags that decide precisions.

    Args:
        int8: the graph carries Q/DQ.
        fp16: layers outside Q/DQ may run in FP16 (a weakly typed build; a strongly typed one takes
            the graph's own types).

    >>> trtexec_typing(VERSIONS["8.6.2"], int8=True, fp16=True)
    ('--fp16', '--int8')
    >>> trtexec_typing(VERSIONS["10.3"], True, True), trtexec_typing(VERSIONS["11.4"], True, True)
    (('--stronglyTyped',), ())
    """
    if version.typing == "weak":
        return (*(["--fp16"] if fp16 else []), *(["--int8"] if int8 else []))
    return ("--stronglyTyped",) if version.typing == "both" else ()
