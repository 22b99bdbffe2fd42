"""Runs single inputs on a device, for `edgeml run --to`: preprocessed here, inferred there.

The engine is the one that the last deploy to this device chose, else the bundle's shipped one, else the first that
the device takes; it comes from the device's cache where it was built before.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact.bundle import MEASUREMENTS, Bundle, open_bundle
from ..errors import DeviceError, InputError
from .address import Address, read_addresses
from .connection import connect
from .fleet import agent_file
from .package import Candidate, Package, pack
from .plan import DeployOptions, make_plan
from .predictions import check_predictions
from .probe import probe
from .session import Session, open_session
from .upload import upload

Arrays = dict[str, np.ndarray]
BUILD_S = 1800.0


def remote_runner(
    path: Path, to: str, target: str | None, log: Callable[[str], None]
) -> Callable[[list[Arrays]], list[Arrays]]:
    """A function from all inputs to all outputs, each with the batch axis.

    Args:
        to: one address; see `edgeml deploy --to`.
        target: None decides by what is found there.

    Raises:
        InputError: several addresses, or whatever `edgeml deploy` refuses.
    """
    addresses = read_addresses(to)
    if len(addresses) != 1:
        raise InputError(f"--to {to} names {len(addresses)} devices; run takes one")
    bundle = open_bundle(path)

    def run(inputs: list[Arrays]) -> list[Arrays]:
        return asyncio.run(_run(addresses[0], bundle, target, inputs, log))

    return run


async def _run(
    address: Address,
    bundle: Bundle,
    target: str | None,
    inputs: list[Arrays],
    log: Callable[[str], None],
) -> list[Arrays]:
    from safetensors.numpy import load_file, save_file

    package = pack(bundle)
    with tempfile.TemporaryDirectory(prefix="edgeml-run-") as folder:
        scratch = Path(folder)
        agent, digest = agent_file(scratch)
        tensors = {
            f"{i:06}.input.{name}": np.ascontiguousarray(array)
            for i, arrays in enumerate(inputs)
            for name, array in arrays.items()
        }
        save_file(tensors, scratch / "inputs")
        sample = package.add(scratch / "inputs")
        files = {**package.files, digest: agent}
        outputs = scratch / "outputs"

        async def infer(session: Session, candidate: Candidate) -> None:
            await _build(session, address, package, candidate)
            answer = await session.ask(
                "score",
                engines=[candidate.id],
                samples=[sample],
                on_data=lambda _: outputs,
                limit_s=600,
            )
            (row,) = answer["engines"]
            if row.get("status") != "scored":
                raise DeviceError(f"{address.name}: {candidate.id}: {row.get('reason')}")
            await session.ask("bye", limit_s=30)

        async with connect(address) as connection:
            # What it is decides which engine runs, and only that one's files go there.
            async with _session(connection, address, digest, files, log) as session:
                await upload(session, {digest: agent})
                await session.send({"do": "run"})
                candidate = await _choose(session, address, bundle, package, target)
                needed = [*package.hashes(candidate).values(), sample]
                there = all(name in session.hello["present"] for name in needed)
                if there:
                    await infer(session, candidate)
                else:
                    await session.ask("bye", limit_s=30)
            if not there:
                wanted = {name: files[name] for name in [*needed, digest]}
                async with _session(connection, address, digest, wanted, log) as session:
                    await upload(session, wanted)
                    await session.send({"do": "run"})
                    await infer(session, candidate)
        try:
            await asyncio.to_thread(check_predictions, scratch / "inputs", outputs)
        except DeviceError as e:
            raise DeviceError(f"{address.name}: {candidate.id}: {e}") from e
        found: list[Arrays] = [{} for _ in inputs]
        for key, array in load_file(outputs).items():
            number, kind, name = key.split(".", 2)
            if kind == "output":
                found[int(number)][name] = array
        return found


def _session(
    connection: Any,
    address: Address,
    agent: str,
    files: Mapping[str, Path],
    log: Callable[[str], None],
) -> contextlib.AbstractAsyncContextManager[Session]:
    sizes = {name: file.stat().st_size for name, file in files.items()}
    return open_session(connection, address.name, agent=agent, blobs=sizes, progress=log)


async def _choose(
    session: Session, address: Address, bundle: Bundle, package: Package, target: str | None
) -> Candidate:
    """The engine that the last deploy chose, else the shipped one, else the first that it takes."""
    facts = await probe(session)
    options = DeployOptions(target=target, energy=False)
    plan = make_plan(address.name, facts, package, options, None)
    for wanted in (chosen_there(bundle, address.name), bundle.manifest.shipped):
        for candidate in plan.builds:
            if candidate.id == wanted:
                return candidate
    return plan.builds[0]


async def _build(
    session: Session, address: Address, package: Package, candidate: Candidate
) -> None:
    """Build the engine, or take it from the cache there."""
    session.log(f"running {candidate.id}")
    files = package.hashes(candidate)
    spec: dict[str, Any] = {
        "id": candidate.id,
        "runtime": candidate.runtime,
        "precision": candidate.precision,
        "execution": candidate.execution,
        "files": files,
        "model": next(iter(files)),
        "shapes": package.shapes,
        "threads": candidate.threads,
    }
    answer = await session.ask("build", engines=[spec], timeout_s=BUILD_S, limit_s=BUILD_S + 300)
    (row,) = answer["engines"]
    if row["status"] == "failed":
        raise DeviceError(f"{address.name}: {candidate.id}: {row.get('reason')}")


def chosen_there(bundle: Bundle, device: str) -> str | None:
    """What the last deploy of this bundle to a device chose; None without one."""
    newest: tuple[str, str | None] = ("", None)
    for path in (bundle.root / MEASUREMENTS).glob("deploy-*.json"):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["device"] == device and record["bundle"] == bundle.hash:
                newest = max(newest, (record["created"], record["chosen"]), key=lambda r: r[0])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a file of another tool, or one that is being written
    return newest[1]
