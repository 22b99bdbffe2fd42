"""The first program on the device: takes blobs by their hash, then becomes the agent.

Its text is the remote command (``remote_command.py``), so: standard library, Python 3.6 syntax (an
older Python shall answer, not fail to parse), ASCII, nothing of edgeml. The lines are those of
``docs/decisions/009-device-protocol.md``. Memory is flat: files pass in pieces of 64 KiB.
"""

import errno
import fcntl
import hashlib
import json
import os
import platform
import select
import sys
import time

# The host sends a line every 5 s; after so long without one it is gone.
IDLE_S = 30.0
PIECE = 1 << 16
LINE_LIMIT = 1 << 24


class Refusal(Exception):
    """Ends the bootstrap with an error line: code, message."""


def say(**fields):
    """One line to the host."""
    os.write(1, (json.dumps(fields) + "\n").encode())


def read_piece(n):
    """At most `n` bytes of stdin; a host that is gone ends the program."""
    ready, _, _ = select.select([0], [], [], IDLE_S)
    data = os.read(0, n) if ready else b""
    if not data:
        sys.exit(1)
    return data


def read_line():
    """The next line that is no heartbeat."""
    while True:
        line = bytearray()
        # Byte by byte, so that what follows the line stays in the pipe for the agent.
        while not line.endswith(b"\n"):
            line += read_piece(1)
            if len(line) > LINE_LIMIT:
                raise Refusal("bad-request", "a line longer than 16 MiB")
        try:
            fields = json.loads(line.decode())
        except ValueError as e:
            raise Refusal("bad-request", f"no JSON: {e}") from e
        if fields.get("do") != "beat":
            return fields


def hash_file(path):
    """sha256 of a file, or None where there is none."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            for piece in iter(lambda: file.read(PIECE), b""):
                digest.update(piece)
    except FileNotFoundError:
        return None
    return digest.hexdigest()


def size_of(path):
    """Bytes of a file, 0 where there is none."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def take_lock(cache, client, wait_s):
    """The handle of CACHE/lock, inherited by the agent: one deploy a device at a time.

    Waits, because the agent of a host that vanished lives for up to 30 s.
    """
    handle = os.open(os.path.join(cache, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    until, told = time.monotonic() + wait_s, False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as e:
            if e.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        holder = os.pread(handle, 300, 0).decode("utf-8", "replace").strip() or "unknown"
        if time.monotonic() >= until:
            raise Refusal("busy", f"another deploy runs there: {holder}")
        if not told:
            say(event="waiting", message=f"another deploy runs there: {holder}")
            told = True
        time.sleep(0.2)
    os.ftruncate(handle, 0)
    os.pwrite(handle, client.encode("utf-8", "replace"), 0)
    os.set_inheritable(handle, True)
    return handle


def look(cache, blobs):
    """Which blobs are whole, how much of the others is there, which had changed."""
    present, parts, changed = [], {}, []
    for name, size in sorted(blobs.items()):
        if not (len(name) == 64 and set(name) <= set("0123456789abcdef")):
            raise Refusal("bad-request", f"no hash: {name!r}")
        blob, part = os.path.join(cache, "blobs", name), os.path.join(cache, "parts", name)
        found = hash_file(blob)
        if found == name:
            os.utime(blob)  # used now: the oldest are cleaned first
            present.append(name)
            continue
        if found is not None:
            os.unlink(blob)
            changed.append(name)
        length = size_of(part)
        if length > size:
            os.unlink(part)
        elif length:
            parts[name] = length
    return present, parts, changed


def put(cache, blobs, fields):
    """One piece of a blob; the last one is checked and renamed."""
    name, offset, n = fields["hash"], fields["offset"], fields["bytes"]
    if name not in blobs:
        raise Refusal("bad-request", f"a blob that the first line does not name: {name!r}")
    part = os.path.join(cache, "parts", name)
    if size_of(part) != offset:
        raise Refusal("bad-request", f"offset {offset}, have {size_of(part)} bytes")
    try:
        with open(part, "ab", buffering=0) as file:
            while n:
                piece = read_piece(min(n, PIECE))
                n -= len(piece)
                while piece:
                    piece = piece[file.write(piece) :]
    except OSError as e:
        # A full disk is given back at once: others live on it.
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            os.unlink(part)
        raise
    if size_of(part) < blobs[name]:
        return
    if hash_file(part) != name:
        os.unlink(part)
        raise Refusal("damaged", "what came does not match its hash")
    os.replace(part, os.path.join(cache, "blobs", name))
    say(event="stored", hash=name)


def refuse_shared(cache):
    """What lies in the cache is run: nobody else may be able to put something there."""
    state = os.stat(cache)
    if state.st_uid not in (os.geteuid(), 0) or state.st_mode & 0o002:
        text = "{} is another user's, or all may write to it; --cache DIR takes another place there"
        raise Refusal("unsupported", text.format(cache))


def serve(cache, first):
    """Hello, puts, run."""
    os.makedirs(cache, exist_ok=True)
    refuse_shared(cache)
    for folder in ("blobs", "parts"):
        os.makedirs(os.path.join(cache, folder), exist_ok=True)
    handle = take_lock(cache, first["client"], first.get("lock_wait_s", 40))
    blobs = first["blobs"]
    present, parts, changed = look(cache, blobs)
    room = os.statvfs(cache)
    say(
        event="hello",
        protocol=1,
        python=platform.python_version(),
        machine=platform.machine(),
        cache=cache,
        present=present,
        parts=parts,
        changed=changed,
        free_bytes=room.f_bavail * room.f_frsize,
    )
    while True:
        fields = read_line()
        if fields.get("do") == "put":
            put(cache, blobs, fields)
        elif fields.get("do") == "run":
            break
        else:
            raise Refusal("bad-request", f"unknown request {fields.get('do')!r}")
    agent = os.path.join(cache, "blobs", first["agent"])
    os.environ.update(LC_ALL="C.UTF-8", PYTHONUTF8="1", ORT_DISABLE_TELEMETRY="1")
    python = sys.executable or "/usr/bin/python3"
    words = [python, "-u", agent, "agent", "--cache", cache, "--lock-fd", str(handle)]
    os.execv(python, words)


def main():
    """The whole life of the bootstrap; a refusal is one line and status 1."""
    first, cache = {}, "the cache"
    try:
        first = read_line()
        # A line of its own, whatever a login shell printed last.
        os.write(1, f"\nEDGEML-BEGIN {first['nonce']}\n".encode())
        cache = os.path.expanduser(first["cache"])
        serve(cache, first)
    except BrokenPipeError:
        sys.exit(1)
    except Refusal as e:
        say(event="error", code=e.args[0], message=e.args[1])
    except OSError as e:
        code = "internal"
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            code = "no-space"
        elif e.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            code = "read-only"
        say(event="error", code=code, message=f"{e.strerror}: {e.filename or cache}")
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        say(event="error", code="bad-request", message=f"{type(e).__name__}: {e}")
    sys.exit(1)


if __name__ == "__main__":
    main()
