"""What to install on a device so that it serves an engine: a systemd user unit, or a Dockerfile.

Both start the agent's ``serve`` on a folder that holds the model and ``engine.json``. The plan is built at the first
start, on the device and by its own TensorRT, and again after an update of it. One hash in the start line pins
``engine.json``, which names the bundle's hash and that of every file.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from ..artifact.atomic_file import publish_directory, write_json, write_text
from ..artifact.content_hash import hash_file
from ..errors import BundleError, InputError, nearest
from ..runtime.device.zipapp_build import build_agent
from .base_image import BaseImage, base_image
from .package import Candidate, pack
from .record import DeviceRecord

KINDS = ("systemd", "dockerfile")
AGENT, SPEC = "edgeml-agent.pyz", "engine.json"


# ONNX Runtime needs no JetPack.
CPU_IMAGE = "python:3.11-slim-bookworm"

_UNIT = """# edgeml: {title} of bundle {bundle}
# Install: see README.txt. It builds its engine at the first start (minutes), then listens.
[Unit]
Description=edgeml {name} on a Unix socket

[Service]
WorkingDirectory=%h/.local/share/edgeml/{name}
ExecStart=/usr/bin/python3 {agent} serve . --socket %t/edgeml/{name}.sock --sha256 {pin}
Environment=PYTHONUTF8=1 ORT_DISABLE_TELEMETRY=1
Restart=on-failure
RestartSec=5
NoNewPrivileges=yes

[Install]
WantedBy=default.target
"""

_DOCKERFILE = """# edgeml: {title} of bundle {bundle}
# Base image: {source}
FROM {image}
{install}COPY . /opt/edgeml/{name}
ENV PYTHONUTF8=1 ORT_DISABLE_TELEMETRY=1
# The engine is built here at the first start, and again after an update of TensorRT.
VOLUME /var/cache/edgeml
CMD {command}
"""

_README = """{title} of bundle {bundle},
chosen by edgeml deploy on {device}.

{steps}
Then, {who}:

    {client} client.py {socket} inputs.npz outputs.npz

inputs.npz holds an array an input name: {inputs}, preprocessed as preprocess.json says where there is one.
"""

_SYSTEMD_STEPS = """    mkdir -p ~/.local/share/edgeml ~/.config/systemd/user
    cp -r . ~/.local/share/edgeml/{name}
    cp edgeml-{name}.service ~/.config/systemd/user/
    systemctl --user daemon-reload
    systemctl --user enable --now edgeml-{name}
    journalctl --user -fu edgeml-{name}        # until it says: listening
    loginctl enable-linger                     # to start without a login
"""

_DOCKER_STEPS = """    docker build -t edgeml-{name} .
    mkdir -p ~/edgeml-{name}
    docker run -d --restart unless-stopped {gpu}-v edgeml-cache:/var/cache/edgeml \\
        -v ~/edgeml-{name}:/run/edgeml edgeml-{name}
"""


def output_folder(bundle: Path, device: str, kind: str) -> Path:
    """Where `emit` writes: beside the bundle.

    Raises:
        InputError: it is there already.
    """
    root = Path(bundle).absolute()
    folder = root.with_name(f"{root.name}-{_word(device)}-{kind}")
    if folder.exists() or folder.is_symlink():
        raise InputError(f"--emit {kind}: {folder} exists; remove it first")
    return folder


def emit(record: DeviceRecord, bundle: Any, kind: str) -> Path:
    """Write the folder that serves what was chosen on one device.

    Args:
        record: of a deploy that chose an engine.
        bundle: the opened bundle.
        kind: systemd or dockerfile.

    Raises:
        InputError: an unknown kind, nothing was chosen, no base image, or the folder exists.
    """
    if kind not in KINDS:
        raise InputError(f"--emit {kind!r} is unknown, {nearest(kind, KINDS)}")
    if record.chosen is None:
        raise InputError(f"{record.device}: nothing to emit: no engine was chosen there")
    # The texts below are lines of a unit and of a Dockerfile, which run.
    version = record.facts.get("onnxruntime")
    for word in (record.chosen, version or ""):
        if re.search(r"[^A-Za-z0-9._+-]", str(word)):
            raise InputError(
                f"--emit {kind}: {str(word)[:80]!r} is no name of an engine or version"
            )
    package = pack(bundle)
    candidate = next((c for c in package.candidates if c.id == record.chosen), None)
    if candidate is None:
        raise BundleError(f"{bundle.root} has no {record.chosen} any more; deploy it again")
    image = base_image(record.facts.get("jetpack")) if _needs_image(kind, candidate) else None
    out = output_folder(bundle.root, record.device, kind)
    name = _word(bundle.root.absolute().name)
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        _fill(part, package, candidate, bundle)
        texts = _texts(part, name, candidate, record, bundle, package.shapes)
        write_text(part / "README.txt", _readme(kind, texts, record))
        if kind == "systemd":
            write_text(part / f"edgeml-{name}.service", _UNIT.format(**texts))
        else:
            write_text(part / "Dockerfile", _dockerfile(texts, image, record))
            write_text(part / ".dockerignore", "Dockerfile\nREADME.txt\n")
        publish_directory(part, out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return out


def _needs_image(kind: str, candidate: Candidate) -> bool:
    return kind == "dockerfile" and candidate.runtime == "tensorrt"


def _fill(part: Path, package: Any, candidate: Candidate, bundle: Any) -> None:
    """Model files under their own names, ``engine.json``, the agent, an example client."""
    files = package.hashes(candidate)
    for name, source in zip(files, candidate.names, strict=True):
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.file(source), part / name)
    for name in ("preprocess.json", "classes.txt", "tokenizer.json"):
        if name in bundle.manifest.files:
            shutil.copyfile(bundle.file(name), part / name)
    spec = {
        "id": candidate.id,
        "bundle": bundle.hash,
        "runtime": candidate.runtime,
        "precision": candidate.precision,
        "execution": candidate.execution,
        "files": files,
        "model": next(iter(files)),
        "shapes": package.shapes,
        "threads": candidate.threads,
    }
    write_json(part / SPEC, spec)
    build_agent(part / AGENT)
    client = Path(__file__).parents[1] / "runtime" / "device" / "client.py"
    shutil.copyfile(client, part / "client.py")


def _texts(
    part: Path,
    name: str,
    candidate: Candidate,
    record: DeviceRecord,
    bundle: Any,
    shapes: dict[str, list[int]],
) -> dict[str, str]:
    return {
        "name": name,
        "agent": AGENT,
        "title": candidate.id,
        "bundle": bundle.hash,
        "pin": hash_file(part / SPEC),
        "device": record.device,
        "inputs": ", ".join(f"{n} {'×'.join(map(str, s))}" for n, s in shapes.items()),
    }


def _readme(kind: str, texts: dict[str, str], record: DeviceRecord) -> str:
    name = texts["name"]
    if kind == "systemd":
        steps, socket = _SYSTEMD_STEPS.format(name=name), f"$XDG_RUNTIME_DIR/edgeml/{name}.sock"
        who, client = "as the same user", "python3"
    else:
        gpu = "" if record.runtime == "onnxruntime" else "--runtime nvidia "
        steps = _DOCKER_STEPS.format(name=name, gpu=gpu)
        socket = f"~/edgeml-{name}/{name}.sock"
        who, client = "as root, whose the container's socket is", "sudo python3"
    return _README.format(steps=steps, socket=socket, who=who, client=client, **texts)


def _dockerfile(texts: dict[str, str], image: BaseImage | None, record: DeviceRecord) -> str:
    name = texts["name"]
    words = ["python3", f"/opt/edgeml/{name}/{AGENT}", "serve", f"/opt/edgeml/{name}"]
    words += ["--socket", f"/run/edgeml/{name}.sock", "--sha256", texts["pin"]]
    words += ["--cache", "/var/cache/edgeml"]
    if image is not None:
        base, source, install = image.image, image.source, ""
    else:
        version = record.facts.get("onnxruntime")
        pinned = f"onnxruntime=={version}" if version else "onnxruntime"
        base, source = CPU_IMAGE, "https://hub.docker.com/_/python"
        install = f"RUN pip install --no-cache-dir numpy {pinned}\n"
    return _DOCKERFILE.format(
        image=base, source=source, install=install, command=json.dumps(words), **texts
    )


def _word(text: str) -> str:
    """A name that units, images and paths take, whatever the folder is called.

    >>> _word("my bundle (v2)")
    'my-bundle-v2'
    """
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-") or "engine"
