"""An example client of `serve`, to copy: standard library and numpy, nothing of edgeml.

    python3 client.py SOCKET inputs.npz outputs.npz

sends the arrays of ``inputs.npz`` (a name an input, shapes with the batch axis) and writes the outputs.
"""

from __future__ import annotations

import json
import socket
import struct
import sys

import numpy as np

NAMES = {
    "float32": "F32",
    "float16": "F16",
    "float64": "F64",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
TYPES = {word: name for name, word in NAMES.items()}


class Client:
    """A connection to a served engine: ``Client(path).run({"input": array}) -> {"logits": array}``."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(path)

    def run(self, inputs: dict) -> dict:
        """One inference.

        Raises:
            RuntimeError: the server's own words for what is wrong.
        """
        header, parts, at = {}, [], 0
        for name, array in inputs.items():
            data = np.ascontiguousarray(array).tobytes()
            header[name] = {
                "dtype": NAMES[str(array.dtype)],
                "shape": list(array.shape),
                "data_offsets": [at, at + len(data)],
            }
            parts.append(data)
            at += len(data)
        text = json.dumps(header).encode()
        body = struct.pack("<Q", len(text)) + text + b"".join(parts)
        self._socket.sendall(struct.pack("<Q", len(body)) + body)
        (length,) = struct.unpack("<Q", self._read(8))
        return self._parse(self._read(length))

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def _parse(self, body: bytes) -> dict:
        (length,) = struct.unpack_from("<Q", body)
        header = json.loads(body[8 : 8 + length])
        found = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            data = body[8 + length + begin : 8 + length + end]
            found[name] = np.frombuffer(data, TYPES[entry["dtype"]]).reshape(entry["shape"])
        if "error" in found:
            raise RuntimeError(found["error"].tobytes().decode())
        return found

    def _read(self, n: int) -> bytes:
        data = b""
        while len(data) < n:
            piece = self._socket.recv(n - len(data))
            if not piece:
                raise RuntimeError("the server closed the connection")
            data += piece
        return data


def main() -> None:
    path, source, target = sys.argv[1:]
    client = Client(path)
    with np.load(source) as arrays:
        np.savez(target, **client.run({name: arrays[name] for name in arrays.files}))
    client.close()


if __name__ == "__main__":
    main()
