"""What will be built on one device, what will not and why: decided from its probe alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..artifact.boards import build_memory_bytes
from ..artifact.budget_limit import parse_limit
from ..artifact.bundle import Bundle
from ..artifact.target import Target, find_target
from ..artifact.tensorrt_versions import TensorRTVersion, find_version
from ..errors import BundleError, InputError, MissingPart, nearest
from .base_image import base_image
from .package import FLOAT_MODEL, Candidate, Package
from .probe import DeviceFacts


@dataclass(frozen=True)
class DeployOptions:
    """What the user asked for.

    Attributes:
        target: None decides by the probe; a CPU target (``arm64``) runs ONNX Runtime there.
        power_mode, lock_clocks: set before the bench, put back after; None and False set nothing.
        duration_s: timed seconds an engine.
        rate_hz: frames a second to hold, with watts at that rate; None leaves it out.
        end_to_end: time decode, preprocess, infer and postprocess of real images there.
        energy: True needs a meter, None takes one where there is one, False measures none.
        max_drop_points, latency_ms: the budget; None sets none.
        build_timeout_s: bound of one engine's build.
        steady_s: longest wait for a steady temperature.
        lock_wait_s: longest wait for another deploy to the same device.
        cache: the folder there; ``~`` is its user's home.
        fetch_engine: bring the built engines home too.
        emit: systemd or dockerfile, written afterwards; None writes neither.
        cache_limit_bytes: remove the least recently used files there beyond it.
    """

    target: str | None = None
    power_mode: str | None = None
    lock_clocks: bool = False
    duration_s: float = 10.0
    rate_hz: float | None = None
    end_to_end: bool = True
    energy: bool | None = None
    max_drop_points: float | None = None
    latency_ms: float | None = None
    build_timeout_s: float = 1800.0
    steady_s: float = 120.0
    lock_wait_s: float = 40.0
    cache: str = "~/.cache/edgeml"
    fetch_engine: bool = False
    emit: str | None = None
    cache_limit_bytes: int | None = None
    energy_window_s: float = 10.0


def options_for(bundle: Bundle, flags: Mapping[str, Any]) -> DeployOptions:
    """Options from flags (None is not given); the budget is the recipe's where they name none.

    Raises:
        InputError: the cache's folder is neither absolute nor under ``~``, or the budget is none.
    """
    values = {key: value for key, value in flags.items() if value is not None}
    recipe = bundle.manifest.recipe
    values.setdefault("max_drop_points", recipe.get("max_drop_points"))
    if "latency_ms" not in values and recipe.get("latency"):
        limit = parse_limit("latency", recipe["latency"])
        # A percentage is of what compress measured, on another machine.
        values["latency_ms"] = None if limit.relative else limit.value
    options = DeployOptions(**values)
    check_cache(options.cache)
    drop = options.max_drop_points
    if drop is not None and not 0 <= drop < float("inf"):
        raise InputError(f"--max-drop {drop} is no budget; give points ≥ 0, as in --max-drop 0.5")
    return options


def check_cache(cache: str) -> None:
    """Refuse a folder that means another where the agent starts elsewhere.

    Raises:
        InputError: it is neither absolute nor under ``~``.
    """
    if not cache.startswith(("/", "~/")):
        raise InputError(f"--cache {cache}: give a folder as /… or ~/… on the device")


@dataclass
class Plan:
    """What is done on one device.

    Attributes:
        runtime: tensorrt or onnxruntime.
        builds: the engines to build, in the order of their rows.
        skipped: (engine, why) of those that this device does not take.
        power_mode: to be set, or None.
        blobs: sha256 of every file the device needs, the agent's left out.
        warnings: for the table.
    """

    runtime: str
    builds: list[Candidate]
    skipped: list[tuple[str, str]]
    power_mode: str | None
    energy: bool
    blobs: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def lines(self, package: Package) -> list[str]:
        """For ``--plan``."""
        rows = [
            f"build {c.id}: {c.precision} from {c.model} ({package.size_bytes(c) / 1e6:,.1f} MB) by {self.runtime}"
            for c in self.builds
        ]
        rows += [f"leave out {name}: {why}" for name, why in self.skipped]
        n = len(package.samples)
        rows.append(
            "check each against ONNX Runtime on its own ONNX, by the bundle's reference inputs"
        )
        rows.append(f"score: {n} files of samples" if n else "score: not measured on the device")
        rows.append("bench in interleaved blocks" + ("; energy" if self.energy else "; no energy"))
        if self.power_mode:
            rows.append(f"power mode {self.power_mode} while it runs, then as before")
        return rows + self.warnings


def make_plan(
    name: str, facts: DeviceFacts, package: Package, options: DeployOptions, power_mode: str | None
) -> Plan:
    """Decide what a device builds.

    Args:
        name: of the device, for messages.
        power_mode: the one asked for, for this device.

    Raises:
        InputError: the target does not fit it, its JetPack is too old or has no image for a Dockerfile, it lacks
            TensorRT, memory or a meter that was asked for, has no such power mode, or takes nothing of the bundle.
    """
    runtime, version = _runtime(name, facts, options.target)
    _check_power(name, facts, power_mode)
    if options.emit == "dockerfile" and runtime == "tensorrt":
        base_image(facts.values.get("jetpack"))
    energy = options.energy if options.energy is not None else facts.meter is not None
    if energy and facts.meter is None:
        raise MissingPart(f"{name}: --energy: no meter there: {facts.meter_reason}")
    plan = Plan(runtime, [], list(package.skipped), power_mode, energy)
    why_not = _judge(facts, package, runtime, version)
    others = 0
    for candidate in package.candidates:
        if candidate.runtime != runtime:
            others += 1
        elif why := why_not(candidate):
            plan.skipped.append((candidate.id, why))
        else:
            plan.builds.append(candidate)
    if not plan.builds:
        reasons = "; ".join(why for _, why in plan.skipped) or f"nothing of it runs in {runtime}"
        raise BundleError(f"{name}: {package.bundle.root} holds no engine for it: {reasons}")
    _check_memory(name, facts, package, plan)
    if runtime == "tensorrt" and (told := facts.gpu_users_text):
        plan.warnings.append(f"{name}: {told}")
    blobs = {digest for c in plan.builds for digest in package.hashes(c).values()}
    blobs |= {package.references[c.id] for c in plan.builds}
    blobs |= set(package.samples) | set(package.images)
    blobs |= {package.preprocess} if package.preprocess else set()
    plan.blobs = sorted(blobs)
    return plan


def _runtime(
    name: str, facts: DeviceFacts, target: str | None
) -> tuple[str, TensorRTVersion | None]:
    """tensorrt or onnxruntime, and TensorRT's row of the table."""
    wanted = find_target(target) if target else None
    if wanted is not None and not wanted.by_tensorrt:
        _check_cpu(name, facts, wanted)
        return "onnxruntime", None
    if wanted is not None and wanted.board and facts.board and wanted.board != facts.board.name:
        raise InputError(f"{name} is a {facts.title}, not a {wanted.title}; leave --target out")
    jetson = facts.board is not None or facts.values.get("l4t")
    if facts.tensorrt is None and not facts.tensorrt_builds and not jetson:
        raise InputError(
            f"{name} is {facts.title} ({facts.values.get('machine')}), not a Jetson, and has no TensorRT; "
            f"--target {_cpu_target(facts)} runs the bundle there with ONNX Runtime"
        )
    if not facts.tensorrt_builds:
        part = "numpy" if facts.tensorrt and not facts.values.get("numpy") else "tensorrt"
        raise MissingPart(
            f"{name} is a {facts.title} on which nothing builds engines: {facts.missing(part)}"
        )
    try:
        # A trtexec without its package tells its version to the agent only.
        return "tensorrt", find_version(facts.tensorrt) if facts.tensorrt else None
    except InputError as e:
        reason = str(e).removeprefix("--tensorrt ")
        release = f"JetPack {facts.values['jetpack']}, " if facts.values.get("jetpack") else ""
        raise InputError(f"{name}: {release}TensorRT {reason}") from e


def _cpu_target(facts: DeviceFacts) -> str:
    return "arm64" if facts.values.get("machine") in ("aarch64", "arm64") else "intel-cpu"


def _check_cpu(name: str, facts: DeviceFacts, target: Target) -> None:
    if target.this_machine:
        raise InputError(f"--target {target.name} is this machine: use edgeml bench")
    machine = facts.values.get("machine")
    if target.name in ("arm64", "intel-cpu") and _cpu_target(facts) != target.name:
        raise InputError(f"{name} is a {machine} machine; give --target {_cpu_target(facts)}")
    if not facts.values.get("onnxruntime"):
        raise MissingPart(
            f"{name} has no ONNX Runtime: {facts.missing('onnxruntime')} (python3 -m pip install --user onnxruntime)"
        )


def _judge(
    facts: DeviceFacts, package: Package, runtime: str, version: TensorRTVersion | None
) -> Callable[[Candidate], str | None]:
    """A function that says why a candidate is left out, or None."""
    precisions = facts.precisions if runtime == "tensorrt" else None

    def why(candidate: Candidate) -> str | None:
        if precisions is not None and candidate.precision not in precisions:
            return f"{candidate.precision} is not executed by {facts.title}; it has {', '.join(precisions)}"
        if version is None:
            return None
        if candidate.precision not in version.precisions:
            return f"{candidate.precision} is not known to TensorRT {version.name}"
        untyped = candidate.flags or candidate.model == FLOAT_MODEL
        if version.strong and candidate.precision == "fp16" and untyped:
            return (
                f"TensorRT {version.name} takes types from the graph alone and {candidate.model} is "
                f"fp32: edgeml compress … --target {facts.board.name if facts.board else 'jetson-…'} --fp16"
            )
        return None

    return why


def _check_power(name: str, facts: DeviceFacts, mode: str | None) -> None:
    if mode is None:
        return
    if not facts.power_modes:
        reason = (facts.values.get("power") or {}).get("why") or "nvpmodel names none"
        raise InputError(f"{name}: --power-mode {mode}: no power modes there: {reason}")
    if mode not in facts.power_modes:
        known = ", ".join(facts.power_modes)
        hint = nearest(mode, facts.power_modes)
        hint = f"{hint}; " if hint.startswith("did") else ""
        raise InputError(f"{name} has no power mode {mode!r}; {hint}it has {known}")


def _check_memory(name: str, facts: DeviceFacts, package: Package, plan: Plan) -> None:
    free = facts.values.get("memory_available_bytes")
    largest = max(plan.builds, key=package.size_bytes)
    need = build_memory_bytes(package.size_bytes(largest))
    if free and free < need:
        raise InputError(
            f"{name}: {free / 1e9:.2f} GB of memory free, building {largest.id} takes about "
            f"{need / 1e9:.2f} GB; end other programs there, or add swap"
        )
