"""Where a network will run: what can be executed there, and what of it this machine can find out.

Built in are this machine, kinds of CPU, TensorRT-RTX on a PC and NVIDIA's Jetson boards; a YAML file with the same
fields describes another. Precisions and rails of boards come from `artifact.boards`, versions from
`artifact.tensorrt_versions`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..errors import InputError, nearest, one_line
from .boards import BOARDS, Board, capability_name, lowest_capability, precisions_of
from .tensorrt_versions import VERSIONS, TensorRTVersion, find_version

RUNTIMES = ("openvino", "onnxruntime", "tensorrt", "tensorrt-rtx")
PRECISIONS = ("fp32", "bf16", "fp16", "int8", "fp8", "int4", "fp4")


class Target(BaseModel):
    """A place where engines run.

    Attributes:
        name: what ``--target`` takes.
        title: for people.
        runtimes: the libraries that execute engines there, the usual one first.
        precisions: the types its hardware executes.
        channel_granularity: precision → the multiple of channels that its kernels are believed to want.
            Believed only: a latency table measured on the target decides.
        compute_capability: of its GPU, ``SM87``; None for CPUs, and where any may be meant.
        tensorrt: versions of TensorRT that run there, by their names in the table.
        usual_tensorrt: the one that graphs are written for unless another is asked for.
        board: the row of `artifact.boards.BOARDS` with its rails and meters; None elsewhere.
        rails: labels of the power rails to record there.
        input_shape: of one image, C×H×W: height and width where the network leaves them open and no data
            fixes them.
        this_machine: engines can be run, and so timed, here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str = ""
    runtimes: tuple[str, ...] = Field(min_length=1)
    precisions: tuple[str, ...] = Field(min_length=1)
    channel_granularity: dict[str, int] = Field(default_factory=dict)
    compute_capability: str | None = None
    tensorrt: tuple[str, ...] = ()
    usual_tensorrt: str | None = None
    board: str | None = None
    rails: tuple[str, ...] = ()
    input_shape: tuple[int, int, int] = (3, 224, 224)
    this_machine: bool = False

    @field_validator("runtimes")
    @classmethod
    def _runtimes(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_known(word, RUNTIMES, "runtime") for word in words)

    @field_validator("precisions")
    @classmethod
    def _precisions(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_known(word, PRECISIONS, "precision") for word in words)

    @field_validator("channel_granularity")
    @classmethod
    def _granularity(cls, by_precision: dict[str, int]) -> dict[str, int]:
        for word, multiple in by_precision.items():
            _known(word, PRECISIONS, "precision")
            if multiple < 1:
                raise ValueError(f"{multiple} channels of {word} are no multiple; give 1 or more")
        return by_precision

    @field_validator("compute_capability")
    @classmethod
    def _capability(cls, word: str | None) -> str | None:
        return None if word is None else capability_name(word)

    @field_validator("tensorrt", mode="before")
    @classmethod
    def _tensorrt(cls, words: Any) -> Any:
        # YAML reads 10.3 as a number; its text is the version all the same (10.10 must be quoted).
        if isinstance(words, (list, tuple)):
            return tuple(_version_name(str(word)) for word in words)
        return words

    @field_validator("usual_tensorrt", mode="before")
    @classmethod
    def _usual(cls, word: Any) -> Any:
        return None if word is None else _version_name(str(word))

    @field_validator("board")
    @classmethod
    def _board(cls, word: str | None) -> str | None:
        return None if word is None else _known(word, tuple(BOARDS), "board")

    @model_validator(mode="after")
    def _fits_together(self) -> Target:
        if self.by_tensorrt and not self.tensorrt:
            raise ValueError("runtimes: tensorrt needs its versions, as in tensorrt: ['10.3']")
        if self.usual_tensorrt is not None and self.usual_tensorrt not in self.tensorrt:
            raise ValueError(f"usual_tensorrt: {self.usual_tensorrt} is not among tensorrt")
        if self.compute_capability is not None:
            there = precisions_of(self.compute_capability)
            for precision in self.precisions:
                if precision not in there:
                    raise ValueError(
                        f"precisions: {self.compute_capability} executes no {precision}; it has "
                        f"{', '.join(there)}"
                    )
        return self

    @property
    def by_tensorrt(self) -> bool:
        """Whether its engines are built by TensorRT, on the device, or by TensorRT-RTX."""
        return self.runtimes[0] in ("tensorrt", "tensorrt-rtx")

    @property
    def board_row(self) -> Board | None:
        return None if self.board is None else BOARDS[self.board]

    def tensorrt_version(self, word: str | None = None) -> TensorRTVersion:
        """The row of TensorRT's table that graphs for this target are written for.

        Args:
            word: what the user asked for; None takes the target's usual one.

        Raises:
            InputError: it is in no table, too old, or does not run there.
        """
        if not self.by_tensorrt:
            raise InputError(f"--tensorrt is for targets that run TensorRT; {self.name} does not")
        if word is None:
            return VERSIONS[self.usual_tensorrt or self.tensorrt[0]]
        version = find_version(word)
        if version.name not in self.tensorrt:
            raise InputError(
                f"--tensorrt {word}: {self.name} runs TensorRT {', '.join(self.tensorrt)}"
            )
        return version

    def require(self, precision: str, version: TensorRTVersion | None = None) -> None:
        """Refuse a precision that the target, or its TensorRT, does not execute.

        Raises:
            InputError: the line names what it does execute.
        """
        if precision not in self.precisions:
            gpu = f" ({self.compute_capability})" if self.compute_capability else ""
            oldest = lowest_capability(precision) if self.by_tensorrt else None
            needs = f"; {precision} needs {oldest} or later" if oldest else ""
            raise InputError(
                f"--precision {precision}: {self.name}{gpu} does not execute it{needs}; it has "
                f"{', '.join(self.precisions)}"
            )
        if version is not None and precision not in version.precisions:
            raise InputError(
                f"--precision {precision}: TensorRT {version.name} has none; it has "
                f"{', '.join(version.precisions)}"
            )


def _known(word: str, known: tuple[str, ...], what: str) -> str:
    if word not in known:
        raise ValueError(f"unknown {what} {word!r}, {nearest(word, known)}")
    return word


def _version_name(word: str) -> str:
    try:
        return find_version(word).name
    except InputError as e:
        raise ValueError(str(e).removeprefix("--tensorrt ")) from e


# Vector kernels for INT8 and FP32 on x86 with AVX-512 want 16 channels (FACTS: halving 16 to 8 made INT8
# slower on a Zen 5); on ARM a 128-bit register holds 4 floats or 16 bytes. Tensor cores: NVIDIA's TensorRT
# guide, "Optimizing for Tensor Cores": multiples of 8 for FP16; INT8 tensors are laid out by 32 channels
# (its format kCHW32), FP8 by 16 bytes.
_X86 = {"fp32": 16, "bf16": 16, "int8": 16}
_ARM = {"fp32": 4, "fp16": 8, "int8": 16}
_TENSOR_CORES = {"fp16": 8, "bf16": 8, "int8": 32, "fp8": 16}


def _jetson(name: str, versions: tuple[str, ...], usual: str) -> Target:
    board = BOARDS[name]
    return Target(
        name=name,
        title=board.title,
        runtimes=("tensorrt", "onnxruntime"),
        precisions=board.precisions,
        channel_granularity={
            word: n for word, n in _TENSOR_CORES.items() if word in board.precisions
        },
        compute_capability=board.compute_capability,
        tensorrt=versions,
        usual_tensorrt=usual,
        board=name,
        rails=tuple(rail.label for rail in board.rails),
    )


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            name="cpu",
            title="this machine",
            runtimes=("openvino", "onnxruntime"),
            precisions=("fp32", "bf16", "fp16", "int8"),
            channel_granularity=_X86,
            this_machine=True,
        ),
        Target(
            name="intel-cpu",
            title="an x86 CPU, by OpenVINO or ONNX Runtime",
            runtimes=("openvino", "onnxruntime"),
            precisions=("fp32", "bf16", "int8"),
            channel_granularity=_X86,
        ),
        Target(
            name="arm64",
            title="a 64-bit ARM CPU, by ONNX Runtime",
            runtimes=("onnxruntime",),
            precisions=("fp32", "int8"),
            channel_granularity=_ARM,
        ),
        Target(
            name="rtx",
            title="a GeForce or RTX GPU, by TensorRT-RTX",
            runtimes=("tensorrt-rtx",),
            # INT8 is for weights of products there (its support matrix), so only where no Conv is.
            precisions=("fp32", "bf16", "fp16", "int8", "fp8"),
            channel_granularity=_TENSOR_CORES,
            compute_capability="SM89",
            tensorrt=("rtx",),
        ),
        # By JetPack: 5.1 has 8.5.2, 6.0 has 8.6.2, 6.1 and 6.2 have 10.3, 7.2 has 10.16. 11.4.1 supports JetPack
        # 7.2.2 and later on AGX Orin and Thor only.
        _jetson("jetson-orin-nano", ("8.5.2", "8.6.2", "10.3", "10.16"), "10.3"),
        _jetson("jetson-orin-nx", ("8.5.2", "8.6.2", "10.3", "10.16"), "10.3"),
        _jetson("jetson-agx-orin", ("8.5.2", "8.6.2", "10.3", "10.16", "11.4"), "10.3"),
        _jetson("jetson-thor", ("10.13", "10.16", "11.4"), "10.13"),
    )
}


def find_target(word: str) -> Target:
    """The target of that name, or the one that a YAML file describes.

    Raises:
        InputError: no such target or file; a file that is no YAML, or whose fields do not fit, with the
            line at fault.

    >>> find_target("jetson-orin-nano").compute_capability
    'SM87'
    """
    if word in TARGETS:
        return TARGETS[word]
    if Path(word).suffix in (".yaml", ".yml"):
        return read_target(Path(word))
    raise InputError(
        f"unknown target {word!r}, {nearest(word, TARGETS)} (or a FILE.yaml that describes one)"
    )


def read_target(path: Path) -> Target:
    """A target from a YAML file; its fields are those of `Target`.

    Raises:
        InputError: as `find_target`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"target {path} cannot be read: {one_line(e)}") from e
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        mark = getattr(e, "problem_mark", None)
        at = f" at line {mark.line + 1}" if mark else ""
        reason = one_line(Exception(getattr(e, "problem", None) or e))
        raise InputError(f"target {path} is no valid YAML{at}: {reason}") from e
    if not isinstance(values, dict):
        raise InputError(
            f"target {path} holds no mapping; give at least name, runtimes and precisions"
        )
    values = {str(key): value for key, value in values.items()}
    for key in values:
        if key not in Target.model_fields:
            raise InputError(
                f"target {path}, line {_line(root, (key,))}: unknown field {key!r}, "
                f"{nearest(key, Target.model_fields)}"
            )
    if values.get("name") in TARGETS:
        raise InputError(
            f"target {path}, line {_line(root, ('name',))}: {values['name']} is built in; give it "
            "another name"
        )
    try:
        return Target(**values)
    except ValidationError as e:
        first = e.errors()[0]
        where, reason = first["loc"], first["msg"].removeprefix("Value error, ")
        if not where:  # of several fields: the message begins with the one at fault
            where = (reason.partition(":")[0],)
        if first["type"] == "missing":
            raise InputError(f"target {path}: {where[0]} is missing") from e
        place = ".".join(map(str, where))
        told = reason if reason.startswith(f"{place}:") else f"{place}: {reason}"
        raise InputError(f"target {path}, line {_line(root, where)}: {told}") from e


def _line(root: Any, where: tuple[Any, ...]) -> int:
    """The line of a field in the YAML file, as far down as the file has it."""
    node, line = root, root.start_mark.line + 1
    for part in where:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line
