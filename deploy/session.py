"""The conversation with one device: lines as ``docs/decisions/009-device-protocol.md`` has them.

One SSH channel; a heartbeat every 5 s; each request is waited for, and how many were is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NoReturn

from ..artifact.row_text import printable
from ..errors import DeviceError, InputError
from .remote_command import remote_command

BEAT_S = 5.0
LINE_LIMIT = 16 * 2**20
# A login shell that prints more than this before our marker is not a banner.
BANNER_LIMIT = 256 * 1024
PIECE = 256 * 1024
# Beside the wait for the lock: a login, Python's start, and a slow disk's hashing of what lies there.
START_S = 60.0
HASHED_BYTES_PER_S = 10e6
# What the user could mend is exit 2 where nothing had begun; the rest is exit 1.
MENDABLE = {"no-mode", "needs-reboot", "no-sudo", "read-only", "unsupported"}

Progress = Callable[[str], None]


class RemoteError(DeviceError):
    """An error line of the device.

    Attributes:
        code: as the protocol names it.
        fields: the whole line.
    """

    def __init__(self, message: str, code: str, fields: dict[str, Any]) -> None:
        super().__init__(message)
        self.code = code
        self.fields = fields


class Session:
    """One conversation; made by `open_session`.

    Attributes:
        name: of the device, for messages.
        stage: what is being done; the message of a lost link names it.
        waits: requests that were waited for.
        banner: what a login shell printed before our marker.
        hello: the bootstrap's first answer.
    """

    def __init__(self, name: str, process: Any, progress: Progress) -> None:
        self.name = name
        self.stage = "login"
        self.waits = 0
        self.banner = ""
        self.hello: dict[str, Any] = {}
        self._process = process
        self._progress = progress
        self._writing = asyncio.Lock()
        self._next_id = 1
        self._stderr = b""

    async def ask(
        self,
        do: str,
        *,
        on_data: Callable[[dict[str, Any]], Path] | None = None,
        on_progress: Callable[[dict[str, Any]], None] | None = None,
        limit_s: float | None = None,
        **fields: Any,
    ) -> dict[str, Any]:
        """Send a request, wait for its answer.

        Args:
            on_data: names the file that a `data` event's bytes are written to, piece by piece.
            on_progress: sees each progress line; None writes its text to the log.
            limit_s: give up after so long.

        Raises:
            RemoteError: the device answers with an error.
            DeviceError: the link is lost, the agent ended or does not answer in `limit_s`.
        """
        number, self._next_id = self._next_id, self._next_id + 1
        self.stage = do
        self.waits += 1
        await self.send({"id": number, "do": do, **fields})
        try:
            return await asyncio.wait_for(self._answer(number, on_data, on_progress), limit_s)
        except (asyncio.TimeoutError, TimeoutError) as e:
            raise DeviceError(f"{self.name}: {do}: no answer in {limit_s:.0f} s") from e

    async def _answer(
        self,
        number: int,
        on_data: Callable[[dict[str, Any]], Path] | None,
        on_progress: Callable[[dict[str, Any]], None] | None,
    ) -> dict[str, Any]:
        while True:
            fields = await self.read()
            event = fields.get("event")
            if event == "data":
                await self._save(fields, on_data)
            elif fields.get("id") != number:
                continue
            elif event == "progress":
                if on_progress is not None:
                    on_progress(fields)
                else:
                    self.log(str(fields.get("text", "")))
            elif event == "result":
                return fields

    async def _save(
        self, fields: dict[str, Any], on_data: Callable[[dict[str, Any]], Path] | None
    ) -> None:
        left = int(fields["bytes"])
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(on_data(fields).open("wb")) if on_data else None
            while left:
                try:
                    piece = await self._process.stdout.read(min(left, PIECE))
                except Exception as e:
                    await self._lost(e)
                if not piece:
                    await self._lost(None)
                left -= len(piece)
                if file is not None:
                    file.write(piece)

    async def send(self, fields: dict[str, Any], raw: bytes = b"") -> None:
        """One line, and the bytes that belong to it."""
        line = json.dumps(fields, ensure_ascii=True).encode("ascii") + b"\n"
        async with self._writing:
            try:
                self._process.stdin.write(line + raw)
                await self._process.stdin.drain()
            except Exception as e:
                error: Exception = e
            else:
                return
        # The device may have said why before it ended, as in: no space.
        try:
            await asyncio.wait_for(self._last_error(), 2)
        except RemoteError:
            raise
        except (DeviceError, asyncio.TimeoutError, TimeoutError):
            await self._lost(error)

    async def _last_error(self) -> NoReturn:
        """Read what is left; raises the error line that is found."""
        while True:
            await self.read()

    async def read(self) -> dict[str, Any]:
        """The next line.

        Raises:
            RemoteError: it is an error.
            DeviceError: there is none.
        """
        try:
            line = await self._process.stdout.readuntil(b"\n")
        except asyncio.IncompleteReadError as e:
            await self._lost(None, e.partial)
        except Exception as e:
            await self._lost(e)
        try:
            # NaN and Infinity are no JSON; where a device says so, there is no figure.
            fields = json.loads(line, parse_constant=lambda _: None)
            event = fields.get("event")
        except (ValueError, AttributeError, RecursionError) as e:
            raise DeviceError(f"{self.name}: {self.stage}: no JSON line: {line[:80]!r}") from e
        if event == "error":
            self._refused(fields)
        return fields

    def _refused(self, fields: dict[str, Any]) -> NoReturn:
        code = str(fields.get("code", "internal"))
        message = printable(str(fields.get("message", code)))
        stage = fields.get("stage") or self.stage
        raise RemoteError(f"{self.name}: {stage}: {_told(code, message)}", code, fields)

    async def _lost(self, error: Exception | None, partial: bytes = b"") -> NoReturn:
        """The link or the process ended: say which, where, and what it last said."""
        status = None
        if error is None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self._process.wait_closed(), 2)
            # asyncssh: -1 where the channel was closed without a status.
            status = self._process.exit_signal or self._process.exit_status
        told = printable(self._stderr.decode("utf-8", "replace"))[-300:]
        if status in (None, -1):
            cause = "connection lost"
            if error is not None and str(error) and "connection lost" not in str(error).lower():
                cause += f" ({' '.join(str(error).split())})"
        elif isinstance(status, tuple):
            cause = f"the process there was ended by signal {status[0]}"
        else:
            cause = f"the process there ended with status {status}"
        raise DeviceError(
            f"{self.name}: {self.stage}: {cause}" + (f": {told}" if told else "")
        ) from error

    def log(self, text: str) -> None:
        """One line of progress, with the device's name."""
        self._progress(f"{self.name}: {printable(text)}")

    async def begin(self, cache: str, agent: str, blobs: dict[str, int], wait_s: float) -> None:
        """The first line, the marker and hello."""
        self.stage = "start"
        nonce = secrets.token_hex(8)
        first = {
            "edgeml": 1,
            "nonce": nonce,
            "cache": cache,
            "agent": agent,
            "blobs": blobs,
            "client": _client(),
            "lock_wait_s": wait_s,
        }
        self.waits += 1
        limit_s = START_S + wait_s + sum(blobs.values()) / HASHED_BYTES_PER_S
        try:
            await asyncio.wait_for(self._greet(first), limit_s)
        except (asyncio.TimeoutError, TimeoutError) as e:
            raise DeviceError(
                f"{self.name}: start: no answer in {limit_s:.0f} s; does its login shell wait for something?"
            ) from e

    async def _greet(self, first: dict[str, Any]) -> None:
        nonce = first["nonce"]
        await self.send(first)
        await self._skip_banner(f"EDGEML-BEGIN {nonce}".encode())
        while (answer := await self.read()).get("event") == "waiting":
            self.log(f"waiting: {answer.get('message')}")
        if answer.get("event") != "hello" or answer.get("protocol") != 1:
            raise DeviceError(f"{self.name}: start: an answer of another protocol: {answer}")
        self.hello = answer
        for name in answer.get("changed", ()):
            self.log(f"{name[:12]}… had changed in the cache there; it is sent again")

    async def _skip_banner(self, marker: bytes) -> None:
        skipped = b""
        while True:
            try:
                line = await self._process.stdout.readuntil(b"\n")
            except asyncio.IncompleteReadError as e:
                skipped += e.partial
                self._stderr = skipped[-300:] + self._stderr
                await self._lost(None)
            except Exception as e:
                await self._lost(e)
            if line.rstrip(b"\r\n") == marker:
                break
            skipped += line
            if len(skipped) > BANNER_LIMIT:
                raise DeviceError(f"{self.name}: start: the login shell prints without end")
        self.banner = skipped.decode("utf-8", "replace").strip()
        if self.banner:
            first, *more = self.banner.splitlines()
            rest = f" and {len(more)} more lines" if more else ""
            self.log(f"the login shell prints {first.strip()[:60]!r}{rest}; skipped")

    async def beat(self) -> None:
        """Heartbeats without end; run as a task beside the conversation."""
        while True:
            await asyncio.sleep(BEAT_S)
            await self.send({"do": "beat"})

    async def collect_errors(self) -> None:
        """Keep the end of what the process writes to stderr."""
        while piece := await self._process.stderr.read(4096):
            self._stderr = (self._stderr + piece)[-2000:]


@contextlib.asynccontextmanager
async def open_session(
    connection: Any,
    name: str,
    *,
    agent: str,
    blobs: dict[str, int],
    progress: Progress,
    cache: str = "~/.cache/edgeml",
    lock_wait_s: float = 40.0,
) -> AsyncIterator[Session]:
    """Start the remote command and greet it; at the block's end its stdin closes, and it ends.

    Args:
        agent: sha256 of the agent's file, one of `blobs` (sha256 → bytes).
        lock_wait_s: how long to wait for another deploy there; the agent of a host that vanished
            lives for up to 30 s.

    Raises:
        RemoteError: ``busy``, ``read-only``, ``no-space``.
        DeviceError: the link is lost, or what answers is not ours.
    """
    # The window is what one line may hold; asyncssh reads no line longer than that.
    process = await connection.create_process(
        remote_command(), encoding=None, window=LINE_LIMIT, request_pty=False
    )
    session = Session(name, process, progress)
    tasks = [asyncio.create_task(session.beat()), asyncio.create_task(session.collect_errors())]
    try:
        await session.begin(cache, agent, blobs, lock_wait_s)
        yield session
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(Exception):
            process.stdin.write_eof()
        process.close()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(process.wait_closed(), 2)


def _client() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "?"
    return f"{user}@{socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S %Z')}"


_HINTS = {
    "no-space": "free some on the device (edgeml deploy --clean), the same command goes on",
    "read-only": "its cache must be writable; --cache DIR takes another place there",
    "busy": "wait for it, or end it there",
    "changed": "the same command sends it again",
    "damaged": "the same command sends it again",
}


def _told(code: str, message: str) -> str:
    return f"{message}; {_HINTS[code]}" if code in _HINTS else message


def refuse_input(error: RemoteError) -> InputError | None:
    """The same as bad input, where the user's own words were at fault (a power mode, a place)."""
    return InputError(str(error)) if error.code in MENDABLE else None
