"""A fault server: a real SSH server in this process that runs the real command in a local shell."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh
import numpy as np
import pytest
from edgeml.artifact.bundle import open_bundle
from edgeml.artifact.content_hash import hash_file
from edgeml.artifact.manifest import EngineEntry
from edgeml.artifact.measurement import Measurement
from edgeml.deploy import fleet
from edgeml.deploy.address import Address
from edgeml.deploy.plan import DeployOptions
from edgeml.deploy.run_deploy import Shared
from onnx import helper
from safetensors.numpy import load_file as load_tensors
from safetensors.numpy import save


@dataclass
class Device:
    """One served device: its HOME, the faults it shows, what it saw.

    Attributes:
        shell: words of the login shell; the command is appended.
        lose_at: (request or "put" or "hello", how often seen before): the link is cut there.
        on_request: called with each request before it is passed on.
        on_line: the same with all of its fields.
        bytes_per_s: a slow link, up.
        file_limit: bytes that the device may write into one file (a full disk).
        requests: `do` of every request that came, heartbeats left out.
        sent: raw bytes of blobs that came.
        commands: exec requests that came.
    """

    home: Path
    port: int = 0
    shell: tuple[str, ...] = ("/bin/bash", "-c")
    environment: dict[str, str] = field(default_factory=dict)
    lose_at: tuple[str, int] | None = None
    on_request: Callable[[str], None] = lambda do: None
    on_line: Callable[[dict[str, Any]], None] = lambda fields: None
    bytes_per_s: float | None = None
    file_limit: int | None = None
    requests: list[str] = field(default_factory=list)
    sent: int = 0
    commands: list[str] = field(default_factory=list)
    children: list[asyncio.subprocess.Process] = field(default_factory=list)
    address: Address = Address("127.0.0.1")  # noqa: RUF009 - frozen
    waits: int = 0

    def settings(self, **values: Any) -> None:
        """What the stand-in agent answers."""
        (self.home / "stand_in.json").write_text(json.dumps(values))

    @property
    def cache(self) -> Path:
        return self.home / ".cache" / "edgeml"

    def blobs(self) -> list[Path]:
        return sorted((self.cache / "blobs").glob("*"))

    async def handle(self, process: asyncssh.SSHServerProcess) -> None:
        """Run the exec request through the shell, watching what passes."""
        self.commands.append(process.command)
        limits = self.file_limit

        def prepare() -> None:
            os.setsid()
            if limits is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limits, limits))

        environment = {"HOME": str(self.home), "PATH": os.environ["PATH"], **self.environment}
        child = await asyncio.create_subprocess_exec(
            *self.shell,
            process.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
            preexec_fn=prepare,
            limit=2**24,
        )
        self.children.append(child)
        up = asyncio.create_task(self._up(process, child))
        down = [
            asyncio.create_task(_copy(child.stdout, process.stdout)),
            asyncio.create_task(_copy(child.stderr, process.stderr)),
        ]
        await asyncio.gather(*down, return_exceptions=True)
        status = await child.wait()
        up.cancel()
        with contextlib.suppress(Exception):
            if status < 0:
                process.exit_with_signal({9: "KILL", 15: "TERM"}.get(-status, "ABRT"))
            else:
                process.exit(status)

    async def _up(self, process: asyncssh.SSHServerProcess, child: Any) -> None:
        try:
            while True:
                line = await process.stdin.readline()
                if not line:
                    break
                fields = json.loads(line)
                do = fields.get("do", "hello")
                if do != "beat":
                    seen = self.requests.count(do)
                    self.requests.append(do)
                    self.waits += do == "hello" or "id" in fields
                    self.on_request(do)
                    self.on_line(fields)
                    if self.lose_at == (do, seen):
                        process.get_extra_info("connection").abort()
                        break
                child.stdin.write(line)
                left = fields.get("bytes", 0) if do == "put" else 0
                while left:
                    piece = await process.stdin.read(min(left, 16384))
                    if not piece:
                        break
                    left -= len(piece)
                    self.sent += len(piece)
                    if self.bytes_per_s:
                        await asyncio.sleep(len(piece) / self.bytes_per_s)
                    child.stdin.write(piece)
                await child.stdin.drain()
        except (ConnectionError, asyncssh.Error, asyncio.IncompleteReadError):
            pass
        finally:
            with contextlib.suppress(Exception):
                child.stdin.close()


async def _copy(source: Any, sink: Any) -> None:
    while piece := await source.read(65536):
        sink.write(piece)
        await sink.drain()


class Server(asyncssh.SSHServer):
    """Lets everybody in: what is tested is our side."""

    def begin_auth(self, username: str) -> bool:
        return False


@contextlib.asynccontextmanager
async def serve(device: Device, key: asyncssh.SSHKey, **options: Any) -> AsyncIterator[Device]:
    """Serve a device on a loopback port."""
    server = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_factory=options.pop("server_factory", Server),
        server_host_keys=[key],
        process_factory=device.handle,
        encoding=None,
        **options,
    )
    device.port = server.sockets[0].getsockname()[1]
    try:
        yield device
    finally:
        server.close()
        await server.wait_closed()
        for child in device.children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, 9)
            await child.wait()
            child._transport.close()


@pytest.fixture(scope="session")
def host_key() -> asyncssh.SSHKey:
    return asyncssh.generate_private_key("ssh-ed25519")


@pytest.fixture(scope="session")
def host_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """$EDGEML_CACHE of all these tests: reference outputs are made once."""
    return tmp_path_factory.mktemp("host-cache")


@pytest.fixture
def user_home(tmp_path: Path, host_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host user's HOME: an empty .ssh, no agent."""
    home = tmp_path / "user home"
    (home / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("EDGEML_CACHE", str(host_cache))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return home


@pytest.fixture
def make_device(tmp_path: Path) -> Callable[..., Device]:
    """Devices whose HOMEs have spaces and quotes in their names."""

    def make(name: str = "orin1", **values: Any) -> Device:
        home = tmp_path / f'{name} it\'s "the" $HOME'
        home.mkdir()
        return Device(home, **values)

    return make


@pytest.fixture
def device(make_device: Callable[..., Device]) -> Device:
    return make_device()


@pytest.fixture
def serving(user_home: Path, host_key: asyncssh.SSHKey) -> Callable[..., Any]:
    """``async with serving(device):`` serves it; its key is in the user's known_hosts."""

    @contextlib.asynccontextmanager
    async def start(
        device: Device, trusted: bool = True, name: str = "orin1", **options: Any
    ) -> AsyncIterator[Device]:
        async with serve(device, host_key, **options) as served:
            served.address = Address("127.0.0.1", "jetson", served.port, name)
            if trusted:
                trust(user_home, served, host_key)
            yield served

    return start


def trust(home: Path, device: Device, key: asyncssh.SSHKey) -> None:
    """A line in the user's known_hosts."""
    line = f"[127.0.0.1]:{device.port} {key.export_public_key().decode()}"
    with (home / ".ssh" / "known_hosts").open("a") as file:
        file.write(line)


@pytest.fixture
def accept() -> Callable[..., None]:
    return trust


@pytest.fixture(scope="session")
def digits_model(tmp_path_factory: pytest.TempPathFactory, save_graph) -> Path:
    """A linear classifier of `digits`, ``x batch×1×8×8 -> y batch×10``, about 95 % right."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import RidgeClassifier

    data = load_digits()
    fitted = RidgeClassifier().fit(data.images.reshape(-1, 64) / 16.0, data.target)
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["y"]),
    ]
    return save_graph(
        tmp_path_factory.mktemp("digits") / "model.onnx",
        nodes,
        [("x", ["batch", 1, 8, 8])],
        [("y", ["batch", 10])],
        [("w", fitted.coef_.T.astype(np.float32)), ("b", fitted.intercept_.astype(np.float32))],
    )


@pytest.fixture
def device_bundle(tmp_path: Path, make_bundle: Any, int8_onnx: Path, images: Any) -> Any:
    """A bundle for a Jetson in a folder whose name has spaces and quotes: INT8 and the float network."""
    tensors = {f"{i:03}.input.x": image[None] for i, image in enumerate(images)}
    entry = EngineEntry(
        id="tensorrt-int8",
        runtime="tensorrt",
        precision="int8",
        files=["model.int8.onnx"],
        input_shapes={"x": [1, 3, 16, 16]},
    )
    root = make_bundle(
        tmp_path / "my 'bundle' $out",
        engines=[entry],
        shipped="tensorrt-int8",
        files={"model.int8.onnx": int8_onnx.read_bytes(), "reference.safetensors": save(tensors)},
        reference_files=["reference.safetensors"],
    )
    return open_bundle(root)


@pytest.fixture
def deploying(
    device_bundle: Any, stand_in_agent: Path, user_home: Path, tmp_path: Path
) -> Callable[..., Any]:
    """``await deploying(device)``: the whole deploy with the stand-in agent, in the test's loop."""

    async def go(
        *devices: Device,
        options: DeployOptions | None = None,
        parallel: int = 4,
        plan_only: bool = False,
        bundle: Any = None,
        agent: tuple[Path, str] | None = None,
        **shared: Any,
    ) -> list[Any]:
        lines: list[str] = []
        with tempfile.TemporaryDirectory(dir=tmp_path) as scratch:
            made = Shared(
                bundle or device_bundle,
                agent or (stand_in_agent, hash_file(stand_in_agent)),
                Path(scratch),
                **shared,
            )
            chosen = options or DeployOptions(duration_s=0.1, steady_s=0, lock_wait_s=5)
            found = await fleet._all(
                [device.address for device in devices],
                made,
                chosen,
                plan_only,
                parallel,
                lines.append,
            )
        for record in found:
            record.plan = record.plan or lines
        return found

    return go


@pytest.fixture
def run_async() -> Callable[..., Any]:
    """Run a coroutine in a loop of its own, with a bound."""

    def run(coroutine: Any, limit_s: float = 60.0) -> Any:
        return asyncio.run(asyncio.wait_for(coroutine, limit_s))

    return run


@pytest.fixture
def stand_in_agent() -> Path:
    """Speaks the protocol, computes nothing."""
    return Path(__file__).with_name("stand_in_agent.py")


class SignScorer:
    """Samples whose answer is the sign of the first float; a device engine should keep it."""

    primary = "agreement"
    points_per_unit = 100.0

    def __init__(self, images: Any) -> None:
        self.images = images

    def sample_files(self, folder: Path) -> list[Path]:
        file = folder / "samples-0.safetensors"
        file.write_bytes(save({f"{i:03}.input.x": a[None] for i, a in enumerate(self.images)}))
        return [file]

    def judge(self, outputs: Any) -> dict[str, Any]:
        found = {}
        for engine, files in outputs.items():
            tensors = {}
            for file in files:
                tensors |= load_tensors(file)
            right = [
                float(a.ravel()[0]) * float(self.images[int(key[:3])].ravel()[0]) > 0
                for key, a in tensors.items()
                if ".output." in key
            ]
            drop = 100.0 * (1 - sum(right) / len(right))
            measured = Measurement(value=drop, unit="points", n=len(right), high=drop + 0.5)
            found[engine] = {"drop_points": measured}
        return found


@pytest.fixture
def scorer(images: Any) -> SignScorer:
    return SignScorer(images)
