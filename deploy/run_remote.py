"""Runs single inputs on a device, for `edgeml run --to`: preprocessed here, inferred there.

The engine is the one that the last deploy to this device chose, else the first that it takes; it comes from the
device's cache where it was built before.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact.bundle import MEASUREMENTS, Bundle, open_bundle
from ..errors import DeviceError, InputError
from .address import Address, read_addresses
from .connection import connect
from .fleet import agent_file
from .package import Package, pack
from .plan import DeployOptions, make_plan
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
        # Of a bundle only what engines are built of; samples and references stay here.
        needed = {
            h: package.files[h] for c in package.candidates for h in package.hashes(c).values()
        }
        needed |= {digest: agent, sample: package.files[sample]}
        async with (
            connect(address) as connection,
            open_session(
                connection,
                address.name,
                agent=digest,
                blobs={name: file.stat().st_size for name, file in needed.items()},
                progress=log,
            ) as session,
        ):
            await upload(session, needed)
            await session.send({"do": "run"})
            engine = await _build(session, address, bundle, package, target)
            outputs = scratch / "outputs"
            answer = await session.ask(
                "score", engines=[engine], samples=[sample], on_data=lambda _: outputs, limit_s=600
            )
            (row,) = answer["engines"]
            if row.get("status") != "scored":
                raise DeviceError(f"{address.name}: {engine}: {row.get('reason')}")
            await session.ask("bye", limit_s=30)
        found: list[Arrays] = [{} for _ in inputs]
        for key, array in load_file(outputs).items():
            number, _, name = key.split(".", 2)
            found[int(number)][name] = array
        return found


async def _build(
    session: Session, address: Address, bundle: Bundle, package: Package, target: str | None
) -> str:
    """Build, or take from the cache there, the engine to run; its id."""
    facts = await probe(session)
    options = DeployOptions(target=target, energy=False)
    plan = make_plan(address.name, facts, package, options, None)
    wanted = chosen_there(bundle, address.name)
    candidate = next((c for c in plan.builds if c.id == wanted), plan.builds[0])
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
    return candidate.id


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
