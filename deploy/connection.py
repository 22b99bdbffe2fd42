"""An SSH connection whose host keys are known: the device's, and that of every host jumped through.

asyncssh reads ssh_config, known_hosts and the agent. Two things it does not do are done here: a jump
host's key is checked by the same rules (its ``known_hosts=`` does not reach there), and an unknown key
is refused with its fingerprint and the line that accepts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import shlex
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from ..errors import InputError, MissingPart, Unreachable, one_line
from .address import Address, parse_address

CONNECT_S = 15
# A silent link is given up after KEEPALIVE_S · KEEPALIVE_COUNT; the agent ends itself after 30 s.
KEEPALIVE_S = 5
KEEPALIVE_COUNT = 4


class Passphrases:
    """Asks once for the passphrase of a key file, for all hosts of a run.

    Attributes:
        problem: why a key could not be unlocked; asyncssh goes on without that key.
    """

    def __init__(self, ask: Callable[[str], str] | None = None) -> None:
        self._ask = ask or _ask_at_terminal
        self._known: dict[str, str] = {}
        self.problem: str | None = None

    def __call__(self, file: str) -> str:
        if file not in self._known:
            self._known[file] = self._asked(file)
        return self._known[file]

    def _asked(self, file: str) -> str:
        asyncssh = _asyncssh()
        try:
            passphrase = self._ask(file)
            asyncssh.read_private_key(file, passphrase)
        except InputError as e:
            self.problem = str(e)
        except (asyncssh.KeyEncryptionError, asyncssh.KeyImportError) as e:
            self.problem = f"key {file} stays locked: {one_line(e)}; wrong passphrase?"
        else:
            return passphrase
        return ""


def _ask_at_terminal(file: str) -> str:
    if not sys.stdin.isatty():
        raise InputError(f"key {file} has a passphrase and nobody is here to ask: ssh-add {file}")
    return getpass.getpass(f"passphrase of {file}: ")


@contextlib.asynccontextmanager
async def connect(
    address: Address, passphrases: Passphrases | None = None, config: list[str] | None = None
) -> AsyncIterator[Any]:
    """A connection (`asyncssh.SSHClientConnection`) to a device, closed at the block's end.

    Args:
        config: ssh_config files; None takes ``~/.ssh/config`` where there is one.

    Raises:
        Unreachable: no such host, refused, timed out, key unknown or changed, no permission.
        InputError: ssh_config or a key file cannot be used.
    """
    async with contextlib.AsyncExitStack() as stack:
        yield await _open(address, passphrases or Passphrases(), config, stack, 0)


async def _open(
    address: Address,
    passphrases: Passphrases,
    config: list[str] | None,
    stack: contextlib.AsyncExitStack,
    depth: int,
) -> Any:
    asyncssh = _asyncssh()
    if depth > 8:
        raise Unreachable(f"{address}: more than 8 jumps; does a host jump through itself?")
    seen: list[Any] = []

    class Client(asyncssh.SSHClient):
        """Keeps the key that known_hosts does not have, and refuses it."""

        def validate_host_public_key(self, host: str, addr: str, port: int, key: Any) -> bool:
            seen.append(key)
            return False

    settings: dict[str, Any] = {
        "username": address.user or (),
        "port": address.port or (),
        "passphrase": passphrases,
        "config": _config_files(config),
        "client_factory": Client,
        "connect_timeout": CONNECT_S,
        "keepalive_interval": KEEPALIVE_S,
        "keepalive_count_max": KEEPALIVE_COUNT,
        # Nobody is asked for a password: a fleet is not typed for, and a key is safer.
        "password_auth": False,
        "kbdint_auth": False,
    }
    try:
        options = await asyncssh.SSHClientConnectionOptions.construct(host=address.host, **settings)
    except (asyncssh.ConfigParseError, asyncssh.KeyImportError, OSError, ValueError) as e:
        raise InputError(f"{address}: ssh_config or a key cannot be used: {one_line(e)}") from e
    except TypeError as e:
        # asyncssh 2.24 hands our callable on as the passphrase where a PEM key has no .pub beside it.
        raise InputError(
            f"{address}: a key with a passphrase has no .pub beside it: ssh-keygen -y -f KEY > KEY.pub, "
            "or ssh-add KEY"
        ) from e
    if not options.known_hosts:  # of `UserKnownHostsFile none` asyncssh makes "trust everything"
        settings["known_hosts"] = _known_hosts_files(options)
    if isinstance(options.tunnel, str) and options.tunnel.lower() != "none":
        jump: Any = None
        for word in options.tunnel.split(","):
            jump = await _open_through(word, jump, passphrases, config, stack, depth)
        settings["tunnel"] = jump
    return await _log_in(address, options, settings, seen, stack)


async def _open_through(
    word: str,
    before: Any,
    passphrases: Passphrases,
    config: list[str] | None,
    stack: contextlib.AsyncExitStack,
    depth: int,
) -> Any:
    """One host of ProxyJump; `before` is the connection that it is reached through."""
    if before is not None:
        raise InputError(
            f"ProxyJump through {word} after another: give that host a ProxyJump of its own in ssh_config"
        )
    address = parse_address(word.strip(), "ProxyJump")
    return await _open(address, passphrases, config, stack, depth + 1)


async def _log_in(
    address: Address,
    options: Any,
    settings: dict[str, Any],
    seen: list[Any],
    stack: contextlib.AsyncExitStack,
) -> Any:
    asyncssh = _asyncssh()
    place = f"{options.host}:{options.port}"
    try:
        connection = await asyncssh.connect(address.host, **settings)
    except asyncssh.HostKeyNotVerifiable as e:
        raise Unreachable(_key_line(address, options, settings, seen, one_line(e))) from e
    except asyncssh.KeyExchangeFailed as e:
        # With a key of another kind on record, no algorithm of the two sides matches.
        raise Unreachable(_key_line(address, options, settings, seen, one_line(e))) from e
    except asyncssh.PermissionDenied as e:
        passphrases = settings["passphrase"]
        if passphrases.problem:
            raise Unreachable(f"{address}: {passphrases.problem}") from e
        user = options.username
        port = f" -p {options.port}" if options.port != 22 else ""
        raise Unreachable(
            f"{address}: user {user} is not let in with your keys; try ssh-copy-id{port} {user}@{options.host}"
        ) from e
    except (asyncssh.KeyEncryptionError, asyncssh.KeyImportError) as e:
        raise InputError(f"{address}: a key cannot be read, wrong passphrase? {one_line(e)}") from e
    except socket.gaierror as e:
        raise Unreachable(
            f"{address}: no host {options.host!r}; check the name, or give its address"
        ) from e
    except (TimeoutError, asyncio.TimeoutError) as e:
        raise Unreachable(f"{address}: {place} did not answer in {CONNECT_S} s; is it on?") from e
    except ConnectionRefusedError as e:
        raise Unreachable(f"{address}: {place} refused; does sshd run there?") from e
    except (OSError, asyncssh.Error) as e:
        raise Unreachable(f"{address}: {place}: {one_line(e)}") from e
    stack.push_async_callback(_close, connection)
    return connection


async def _close(connection: Any) -> None:
    connection.close()
    # A dead link's close would wait for an answer.
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(connection.wait_closed(), 5)


def _key_line(
    address: Address, options: Any, settings: dict[str, Any], seen: list[Any], cause: str
) -> str:
    """What to say of a host key: never seen, or another than known_hosts has."""
    asyncssh = _asyncssh()
    name = options.host_key_alias or options.host
    port = None if options.port == 22 else options.port
    files = settings.get("known_hosts") or options.known_hosts
    entry = name if port is None else f"[{name}]:{port}"
    try:
        known = asyncssh.match_known_hosts(files, name, "", port)[0] if files else []
    except (OSError, ValueError):
        known = []
    if not seen and not known:
        return f"{address}: {cause}"
    if known:
        shown = f", it shows {seen[-1].get_fingerprint()}" if seen else ""
        return (
            f"{address}: its host key is not the one in known_hosts ({known[0].get_fingerprint()}{shown}); "
            f"another machine, or it was set up anew? If so: ssh-keygen -R {shlex.quote(entry)}"
        )
    key = seen[-1]
    line = f"{entry} {key.export_public_key().decode().strip()}"
    return (
        f"{address}: host key unknown, {key.get_algorithm()} {key.get_fingerprint()}; compare it with "
        f"`ssh-keygen -lf /etc/ssh/ssh_host_{_kind(key.get_algorithm())}_key.pub` there, then accept it: "
        f"echo {shlex.quote(line)} >> ~/.ssh/known_hosts"
    )


def _kind(algorithm: str) -> str:
    kinds = {"ssh-ed25519": "ed25519", "ssh-rsa": "rsa"}
    return kinds.get(algorithm, "ecdsa" if algorithm.startswith("ecdsa") else algorithm)


def _config_files(config: list[str] | None) -> list[str]:
    if config is not None:
        return config
    default = Path("~/.ssh/config").expanduser()
    return [str(default)] if default.is_file() else []


def _known_hosts_files(options: Any) -> Any:
    default = Path("~/.ssh/known_hosts").expanduser()
    return str(default) if default.is_file() else b""


def _asyncssh() -> Any:
    """asyncssh, imported when a device is spoken to.

    Raises:
        MissingPart: it is not installed.
    """
    try:
        import asyncssh
    except ImportError as e:
        raise MissingPart(
            "edgeml deploy needs asyncssh: pip install 'edgeml-toolchain[deploy]'"
        ) from e
    return asyncssh
