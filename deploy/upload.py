"""Files to a device by content hash: what is there is not sent, what was cut off goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import DeviceError, InputError
from .session import PIECE, Session

# Kept free on the device beside what is sent: engines and logs are written there too.
SPARE_BYTES = 64 * 2**20


async def upload(session: Session, files: Mapping[str, Path]) -> int:
    """Send the blobs that the device lacks; host memory does not grow with them.

    Args:
        files: sha256 → file; the same hashes that `open_session` named.

    Returns:
        The bytes that were sent.

    Raises:
        InputError: they do not fit the device's disk.
        DeviceError: the link is lost, its disk is full, a file changed while it was read.
    """
    session.stage = "upload"
    hello = session.hello
    parts = hello["parts"]
    missing = [name for name in files if name not in hello["present"]]
    sizes = {name: files[name].stat().st_size for name in missing}
    left = sum(sizes[name] - parts.get(name, 0) for name in missing)
    free = hello["free_bytes"]
    if missing and left + SPARE_BYTES > free:
        raise InputError(
            f"{session.name}: {left / 1e6:,.0f} MB to send and {SPARE_BYTES / 1e6:.0f} MB to spare, "
            f"{free / 1e6:,.0f} MB free in {hello['cache']}; free some (edgeml deploy --clean)"
        )
    sent = 0
    for name in missing:
        sent += await _send_file(session, name, files[name], sizes[name], parts.get(name, 0))
    if missing:
        session.log(f"sent {len(missing)} files, {sent / 1e6:,.1f} MB")
    return sent


async def _send_file(session: Session, name: str, path: Path, size: int, offset: int) -> int:
    begin, told = offset, 0.0
    if offset:
        session.log(f"{path.name} goes on at {offset / 1e6:,.1f} of {size / 1e6:,.1f} MB")
    with path.open("rb") as file:
        file.seek(offset)
        while True:
            piece = file.read(PIECE)
            if offset + len(piece) > size or (not piece and offset < size):
                raise DeviceError(f"{session.name}: upload: {path} changed while it was sent")
            await session.send(
                {"do": "put", "hash": name, "offset": offset, "bytes": len(piece)}, piece
            )
            offset += len(piece)
            if size > 50e6 and offset / size - told >= 0.1:
                told = offset / size
                session.log(f"{path.name}: {told:.0%} of {size / 1e6:,.0f} MB")
            if offset == size:
                break
    answer = await session.read()
    if answer.get("event") != "stored" or answer.get("hash") != name:
        raise DeviceError(f"{session.name}: upload: {path.name} was not stored: {answer}")
    return size - begin
