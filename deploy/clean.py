"""Gives back the disk that deploys took on devices."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..artifact.content_hash import hash_file
from ..errors import EdgemlError, InputError, one_line
from .address import Address
from .connection import Passphrases, connect
from .fleet import agent_file
from .plan import check_cache
from .record import DeviceRecord, new_record
from .run_deploy import Progress
from .session import open_session
from .upload import upload


def clean_devices(
    addresses: Sequence[Address],
    cache: str = "~/.cache/edgeml",
    *,
    limit_bytes: int | None = None,
    log: Progress = lambda _: None,
    agent: Path | None = None,
    passphrases: Passphrases | None = None,
    ssh_config: list[str] | None = None,
) -> list[DeviceRecord]:
    """Empty the caches of devices, or cut them to `limit_bytes`; a record a device.

    Raises:
        InputError: `cache` is neither absolute nor under ``~``.
    """
    check_cache(cache)
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
        except Exception as e:  # as in a deploy: the other devices finish
            record.status = "failed"
            record.reason = f"{address.name}: clean: {type(e).__name__}: {one_line(e)}"
        return record

    async def every() -> list[DeviceRecord]:
        with tempfile.TemporaryDirectory(prefix="edgeml-clean-") as scratch:
            made = agent_file(Path(scratch)) if agent is None else (agent, hash_file(agent))
            return await asyncio.gather(*(one(address, made) for address in addresses))

    return asyncio.run(every())
