"""Serves one engine on a Unix socket: tensors in, tensors out, each message with its length before it.

A message is a little-endian u64, then that many bytes: a safetensors file. The request holds a tensor an input
name, the answer one an output name. What goes wrong is an answer too: a tensor named ``error`` of bytes (UTF-8).
The socket is its owner's alone (mode 600); `client` speaks it, with numpy and the standard library.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from typing import Any, Callable

from ...errors import EdgemlError, InputError
from .tensor_file import Tensor, parse_tensors, write_tensors

# No network has inputs of this size; a client that sends one has sent something else.
MESSAGE_LIMIT = 2**31


def serve(runner: Any, path: str, ready: Callable[[], None] = lambda: None) -> None:
    """Answer clients until the process ends. One inference at a time: engines have one set of buffers.

    Args:
        runner: see `load_runner`.
        path: of the socket; a stale one, that nobody listens at, is replaced.
        ready: called once it listens.

    Raises:
        InputError: the path cannot be listened at, or another server is there.
    """
    listener = listen(path)
    running = threading.Lock()
    ready()
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_talk, args=(connection, runner, running), daemon=True).start()


def listen(path: str) -> socket.socket:
    """The socket at `path`, readable by its owner only.

    Raises:
        InputError: another server is there, or the path cannot be used.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
            other.connect(path)
        raise InputError(f"{path}: a server listens there already")
    except ConnectionRefusedError:
        os.unlink(path)  # left by a server that was killed
    except FileNotFoundError:
        pass
    except OSError as e:
        raise InputError(f"{path}: {e.strerror}") from e
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    except OSError as e:
        raise InputError(f"--socket {path}: {e.strerror or e}") from e
    finally:
        os.umask(mask)
    listener.listen(16)
    return listener


def _talk(connection: socket.socket, runner: Any, running: threading.Lock) -> None:
    with connection:
        while True:
            try:
                request = read_message(connection)
            except (OSError, InputError):
                return
            if request is None:
                return
            try:
                inputs = parse_tensors(request, "the request")
                with running:
                    outputs = runner.run(inputs)
                answer = write_tensors(outputs)
            except Exception as e:  # a bad request must not end the server
                text = str(e) if isinstance(e, EdgemlError) else f"{type(e).__name__}: {e}"
                data = text.encode("utf-8")
                answer = write_tensors({"error": Tensor("uint8", (len(data),), data)})
            try:
                connection.sendall(struct.pack("<Q", len(answer)) + answer)
            except OSError:
                return


def read_message(connection: socket.socket) -> bytes | None:
    """The next message's bytes, None at the end.

    Raises:
        InputError: it says to be longer than `MESSAGE_LIMIT`, or ends early.
    """
    head = _read(connection, 8)
    if not head:
        return None
    if len(head) < 8:
        raise InputError(f"a message of {len(head)} bytes")
    (length,) = struct.unpack("<Q", head)
    if length > MESSAGE_LIMIT:
        raise InputError(f"a message of {length:,} bytes")
    body = _read(connection, length)
    if len(body) < length:
        raise InputError(f"a message that ends after {len(body):,} of {length:,} bytes")
    return body


def _read(connection: socket.socket, n: int) -> bytes:
    parts, left = [], n
    while left:
        piece = connection.recv(min(left, 2**20))
        if not piece:
            break
        parts.append(piece)
        left -= len(piece)
    return b"".join(parts)
