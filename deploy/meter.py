"""Times ONNX files on a device, in the shape of `runtime.latency.bench`.

`edgeml compress --target ssh://…` hands it to `compress`, which so never knows where it measures. One
SSH connection for as long as it is open; every call is one conversation (upload, build, bench), in which
all engines are timed in interleaved blocks of one process there. Builds stay in the device's cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..artifact.content_hash import hash_file
from ..runtime.remote_bench import ModelFile, RemoteBench, RemoteProfile
from .address import Address
from .connection import Passphrases, connect
from .device_words import machine_of, target_of, timing_state
from .fleet import agent_file
from .meter_answers import bench_of, busy_warnings, profile_of, refuse_failed
from .plan import DeployOptions
from .probe import DeviceFacts, probe
from .session import open_session
from .upload import upload

Inputs = Mapping[str, np.ndarray]
SLACK_S = 300.0
T = TypeVar("T")


class DeviceMeter:
    """Use as ``with DeviceMeter(address) as meter: meter.bench({"int8": model}, inputs)``.

    Args:
        options: cache, time limits; `DeployOptions` as of a deploy.
        agent: the agent's file; None packs the installed one.

    Attributes:
        facts: what the device is and has.
    """

    facts: DeviceFacts

    def __init__(
        self,
        address: Address,
        options: DeployOptions | None = None,
        *,
        log: Callable[[str], None] = lambda _: None,
        passphrases: Passphrases | None = None,
        ssh_config: list[str] | None = None,
        agent: Path | None = None,
    ) -> None:
        self.address = address
        self._options = options or DeployOptions(steady_s=0)
        self._log = log
        self._passphrases, self._config = passphrases or Passphrases(), ssh_config
        self._given = agent
        # The loop has a thread of its own: between two calls heartbeats and keepalives go on.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._stack = contextlib.AsyncExitStack()

    def __enter__(self) -> DeviceMeter:
        self._thread.start()
        self._folder = tempfile.TemporaryDirectory(prefix="edgeml-meter-")
        try:
            scratch = Path(self._folder.name)
            self._agent = (
                agent_file(scratch)
                if self._given is None
                else (self._given, hash_file(self._given))
            )
            self._await(self._open())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; nothing is left running there."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(Exception):
            self._await(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._folder.cleanup()

    @property
    def target(self) -> str:
        """See `device_words.target_of`."""
        return target_of(self.facts, self.address.name)

    def describe(self) -> dict[str, Any]:
        """The device in a table's `machine`."""
        return machine_of(self.facts, self.address.name)

    def state(self) -> dict[str, Any]:
        """What a time there depends on beside the engine's file."""
        return timing_state(self.facts, self.address, self._options.steady_s)

    def bench(
        self,
        models: Mapping[str, ModelFile],
        inputs: Inputs,
        *,
        duration_s: float = 2.0,
        reference: str | None = None,
        seed: int = 0,
        build: int = 0,
    ) -> RemoteBench:
        """Build and time engines there, in interleaved blocks.

        Args:
            models: by id.
            inputs: one set of arrays for all, batch included.
            reference: the engine that `speedup` is against.
            build: engines are built once for each number; from 1 on without the timings of earlier builds.

        Raises:
            DeviceError: the link is lost, or the agent failed. One engine's failure is in `failed`.
        """
        return self._await(self._bench(models, inputs, duration_s, reference, seed, build))

    def layer_times(
        self, models: Mapping[str, ModelFile], inputs: Inputs, *, iterations: int = 50
    ) -> RemoteProfile:
        """Each engine's layers with their milliseconds, by the runtime's own profile there.

        Raises:
            DeviceError: the link is lost, or an engine cannot be profiled.
        """
        return self._await(self._layer_times(models, inputs, iterations))

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _open(self) -> None:
        self._connection = await self._stack.enter_async_context(
            connect(self.address, self._passphrases, self._config)
        )
        async with self._session({}) as session:
            self.facts = await probe(session)
            await session.ask("bye", limit_s=30)

    @contextlib.asynccontextmanager
    async def _session(self, files: Mapping[str, Path]) -> Any:
        path, digest = self._agent
        needed = {**files, digest: path}
        async with open_session(
            self._connection,
            self.address.name,
            agent=digest,
            blobs={name: file.stat().st_size for name, file in needed.items()},
            progress=self._log,
            cache=self._options.cache,
            lock_wait_s=self._options.lock_wait_s,
        ) as session:
            await upload(session, needed)
            await session.send({"do": "run"})
            yield session

    @contextlib.asynccontextmanager
    async def _built(self, models: Mapping[str, ModelFile], inputs: Inputs, build: int = 0) -> Any:
        """A session in which the models are built: (session, hash of the inputs, failed, bytes of each)."""
        from safetensors.numpy import save_file

        feed = Path(self._folder.name) / "inputs.safetensors"
        save_file({f"000.input.{n}": np.ascontiguousarray(a) for n, a in inputs.items()}, feed)
        digest = await asyncio.to_thread(hash_file, feed)
        files, engines = {digest: feed}, []
        for name, model in models.items():
            hashes = {}
            for path in model.files:
                hashes[path.relative_to(model.files[0].parent).as_posix()] = (
                    h
                ) = await asyncio.to_thread(hash_file, path)
                files[h] = path
            engines.append(
                {
                    "id": name,
                    "runtime": model.runtime,
                    "precision": model.precision,
                    "execution": model.execution,
                    "files": hashes,
                    "model": next(iter(hashes)),
                    "shapes": {n: list(a.shape) for n, a in inputs.items()},
                    "threads": None,
                    "build": build,
                }
            )
        limit = self._options.build_timeout_s
        async with self._session(files) as session:
            answer = await session.ask(
                "build",
                engines=engines,
                timeout_s=limit,
                limit_s=len(engines) * limit + SLACK_S,
                on_progress=lambda _: None,
            )
            failed = {
                entry["id"]: f"build: {entry.get('reason')}"
                for entry in answer["engines"]
                if entry.get("status") not in ("built", "cached")
            }
            sizes = {
                e["id"]: int(e["size_bytes"]) for e in answer["engines"] if e.get("size_bytes")
            }
            yield session, digest, failed, sizes

    async def _bench(
        self,
        models: Mapping[str, ModelFile],
        inputs: Inputs,
        duration_s: float,
        reference: str | None,
        seed: int,
        build: int,
    ) -> RemoteBench:
        async with self._built(models, inputs, build) as (session, feed, failed, sizes):
            names = [name for name in models if name not in failed]
            if not names:
                await session.ask("bye", limit_s=30)
                return RemoteBench({}, [], failed)
            answer = await session.ask(
                "bench",
                engines=names,
                duration_s=duration_s,
                reference=feed,
                steady=self._options.steady_s > 0,
                max_s=self._options.steady_s,
                limit_s=SLACK_S + self._options.steady_s + 6 * duration_s * len(names),
            )
            await session.ask("bye", limit_s=30)
        found = bench_of(
            answer,
            session.name,
            failed,
            sizes,
            reference=reference,
            seed=seed,
            emulated=self.facts.emulated,
        )
        busy = busy_warnings(self.facts, self.address.name, models.values())
        return replace(found, warnings=[*busy, *found.warnings])

    async def _layer_times(
        self, models: Mapping[str, ModelFile], inputs: Inputs, iterations: int
    ) -> RemoteProfile:
        async with self._built(models, inputs) as (session, feed, failed, _):
            refuse_failed(session.name, failed)
            answer = await session.ask(
                "profile",
                engines=list(models),
                reference=feed,
                iterations=iterations,
                limit_s=SLACK_S * len(models),
            )
            await session.ask("bye", limit_s=30)
        found = profile_of(answer, session.name)
        busy = busy_warnings(self.facts, self.address.name, models.values())
        return replace(found, warnings=[*busy, *found.warnings])
