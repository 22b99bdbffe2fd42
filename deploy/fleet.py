"""The same deploy to many devices at once; one that fails does not stop the rest."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..artifact.bundle import Bundle
from .address import Address
from .connection import Passphrases
from .plan import DeployOptions
from .record import DeviceRecord, new_record
from .run_deploy import Progress, Scorer, Shared, deploy_to


def deploy(
    bundle: Bundle,
    addresses: Sequence[Address],
    options: DeployOptions,
    *,
    scorer: Scorer | None = None,
    images: Sequence[Path] = (),
    plan_only: bool = False,
    parallel: int = 4,
    log: Progress = lambda _: None,
    agent: Path | None = None,
    passphrases: Passphrases | None = None,
    ssh_config: list[str] | None = None,
) -> list[DeviceRecord]:
    """Deploy a bundle to devices, at most `parallel` at a time.

    Args:
        scorer: None scores nothing.
        images: encoded images for end to end.
        agent: the agent's file; None packs the installed one.

    Returns:
        A record a device, in the order of `addresses`.
    """
    with tempfile.TemporaryDirectory(prefix="edgeml-deploy-") as scratch:
        made = agent_file(Path(scratch)) if agent is None else (agent, _hash(agent))
        shared = Shared(
            bundle,
            made,
            Path(scratch),
            scorer,
            images,
            passphrases or Passphrases(),
            ssh_config,
        )
        return asyncio.run(_all(addresses, shared, options, plan_only, parallel, log))


async def _all(
    addresses: Sequence[Address],
    shared: Shared,
    options: DeployOptions,
    plan_only: bool,
    parallel: int,
    log: Progress,
) -> list[DeviceRecord]:
    places = asyncio.Semaphore(parallel)

    async def one(address: Address) -> DeviceRecord:
        async with places:
            return await deploy_to(address, shared, options, plan_only, log)

    return await asyncio.gather(*map(one, addresses))


def exit_code(records: Sequence[DeviceRecord]) -> int:
    """2 if nothing was started anywhere, else 1 if any host failed, else 3 if any missed its budget.

    >>> from edgeml.deploy.record import DeviceRecord
    >>> make = lambda *words: [DeviceRecord(device="d", address="d", status=w) for w in words]
    >>> [exit_code(make(*w)) for w in (("done",), ("refused",), ("done", "refused"), ("done", "missed"))]
    [0, 2, 1, 3]
    """
    words = {record.status for record in records}
    if words == {"refused"}:
        return 2
    if words & {"refused", "failed"}:
        return 1
    return 3 if "missed" in words else 0


def agent_file(folder: Path) -> tuple[Path, str]:
    """Pack the agent into `folder`; its file and sha256."""
    from ..runtime.device.zipapp_build import build_agent

    path = folder / "agent.pyz"
    return path, build_agent(path)


def _hash(path: Path) -> str:
    from ..artifact.content_hash import hash_file

    return hash_file(path)


def clean(
    addresses: Sequence[Address],
    cache: str = "~/.cache/edgeml",
    *,
    limit_bytes: int | None = None,
    log: Progress = lambda _: None,
    agent: Path | None = None,
    passphrases: Passphrases | None = None,
    ssh_config: list[str] | None = None,
) -> list[DeviceRecord]:
    """Empty the caches of devices, or cut them to `limit_bytes`; a record a device."""
    from ..errors import EdgemlError, InputError
    from .connection import connect
    from .session import open_session
    from .upload import upload

    asked = passphrases or Passphrases()

    async def one(address: Address, made: tuple[Path, str]) -> DeviceRecord:
        record = new_record(address.name, str(address), None)
        size = {made[1]: made[0].stat().st_size}
        try:
            async with (
                connect(address, asked, ssh_config) as connection,
                open_session(
                    connection, address.name, agent=made[1], blobs=size, progress=log, cache=cache
                ) as session,
            ):
                await upload(session, {made[1]: made[0]})
                await session.send({"do": "run"})
                answer = await session.ask(
                    "clean", all=limit_bytes is None, limit_bytes=limit_bytes, limit_s=300
                )
                await session.ask("bye", limit_s=60)
                gone, kept = answer.get("removed_bytes", 0), answer.get("kept_bytes", 0)
                record.verdict_line = f"removed {gone / 1e6:,.1f} MB, kept {kept / 1e6:,.1f} MB"
        except EdgemlError as e:
            record.status = "refused" if isinstance(e, InputError) else "failed"
            record.reason = str(e)
        return record

    async def every() -> list[DeviceRecord]:
        with contextlib.ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            made = agent_file(scratch) if agent is None else (agent, _hash(agent))
            return await asyncio.gather(*(one(address, made) for address in addresses))

    return asyncio.run(every())
