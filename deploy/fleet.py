"""The same deploy to many devices at once; one that fails does not stop the rest."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..artifact.bundle import Bundle
from ..artifact.content_hash import hash_file
from .address import Address
from .connection import Passphrases
from .plan import DeployOptions
from .record import DeviceRecord
from .run_deploy import Progress, Scorer, Shared, deploy_to


def deploy(
    bundle: Bundle,
    addresses: Sequence[Address],
    options: DeployOptions,
    *,
    scorer: Scorer | None = None,
    images: Sequence[bytes] = (),
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
        made = agent_file(Path(scratch)) if agent is None else (agent, hash_file(agent))
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
