"""Host keys, permissions, jumps: what is refused, in one line that says what to do."""

from __future__ import annotations

import asyncio
import re
import socket
from pathlib import Path

import asyncssh
import pytest
from edgeml.deploy.address import Address
from edgeml.deploy.connection import Passphrases, connect
from edgeml.errors import InputError, Unreachable


async def _try(address: Address, **options) -> None:
    async with connect(address, **options):
        pass


def _refusal(run_async, coroutine) -> str:
    with pytest.raises(InputError) as error:
        run_async(coroutine)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_known_host_is_let_in(run_async, serving, device) -> None:
    async def go() -> None:
        async with serving(device):
            await _try(device.address)

    run_async(go())


def test_an_unknown_key_is_refused_with_its_fingerprint_and_the_line_that_accepts_it(
    run_async, serving, device, user_home: Path, host_key
) -> None:
    async def go() -> None:
        async with serving(device, trusted=False):
            with pytest.raises(Unreachable) as error:
                await _try(device.address)
            line = str(error.value)
            assert host_key.get_fingerprint() in line
            command = re.search(r"accept it: (echo .*)", line)
            assert command
            shell = await asyncio.create_subprocess_shell(command[1])
            await shell.wait()
            await _try(device.address)

    run_async(go())


def test_a_changed_key_is_told_with_both_fingerprints(
    run_async, serving, device, user_home: Path, accept, host_key
) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519")

    async def go() -> str:
        async with serving(device, trusted=False):
            accept(user_home, device, other)
            with pytest.raises(Unreachable) as error:
                await _try(device.address)
            return str(error.value)

    line = run_async(go())
    assert "ssh-keygen -R '[127.0.0.1]:" in line
    assert other.get_fingerprint() in line
    assert host_key.get_fingerprint() in line


def test_a_key_of_another_kind_counts_as_changed(
    run_async, serving, device, user_home: Path, accept
) -> None:
    other = asyncssh.generate_private_key("ecdsa-sha2-nistp256")

    async def go() -> str:
        async with serving(device, trusted=False):
            accept(user_home, device, other)
            with pytest.raises(Unreachable) as error:
                await _try(device.address)
            return str(error.value)

    assert "not the one in known_hosts" in run_async(go())


def test_user_known_hosts_file_none_does_not_switch_the_check_off(
    run_async, serving, device, user_home: Path
) -> None:
    config = user_home / ".ssh" / "config"
    config.write_text("Host *\n  UserKnownHostsFile none\n")

    async def go() -> None:
        async with serving(device, trusted=False):
            with pytest.raises(Unreachable, match="host key unknown"):
                await _try(device.address)

    run_async(go())


def test_an_alias_of_ssh_config_is_followed(run_async, serving, device, user_home: Path) -> None:
    async def go() -> None:
        async with serving(device):
            (user_home / ".ssh" / "config").write_text(
                f"Host orin1\n  HostName 127.0.0.1\n  Port {device.port}\n  User jetson\n"
            )
            await _try(Address("orin1"))

    run_async(go())


def test_a_jump_host_needs_a_known_key_too(
    run_async, serving, make_device, user_home: Path, accept, host_key
) -> None:
    class Jump(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            return False

        def connection_requested(self, host: str, port: int, *_: object) -> bool:
            return True

    jump, device = make_device("jump"), make_device("orin")

    async def go() -> None:
        async with serving(jump, trusted=False, server_factory=Jump), serving(device):
            (user_home / ".ssh" / "config").write_text(
                f"Host hop\n  HostName 127.0.0.1\n  Port {jump.port}\n  User j\n"
                f"Host orin1\n  HostName 127.0.0.1\n  Port {device.port}\n  User j\n  ProxyJump hop\n"
            )
            with pytest.raises(Unreachable, match=r"^j?@?hop.*host key unknown"):
                await _try(Address("orin1"))
            accept(user_home, jump, host_key)
            await _try(Address("orin1"))

    run_async(go())


def test_nothing_listens_there(run_async, user_home: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = _refusal(run_async, _try(Address("127.0.0.1", port=port)))
    assert "refused; does sshd run there?" in line


def test_no_such_host(run_async, user_home: Path) -> None:
    assert "no host" in _refusal(run_async, _try(Address("no-such-host.invalid")))


def test_a_server_that_says_nothing(run_async, user_home: Path, monkeypatch) -> None:
    monkeypatch.setattr("edgeml.deploy.connection.CONNECT_S", 0.3)

    async def go() -> None:
        writers: list[asyncio.StreamWriter] = []
        server = await asyncio.start_server(lambda _, w: writers.append(w), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Unreachable, match="did not answer"):
            await _try(Address("127.0.0.1", port=port))
        for writer in writers:
            writer.close()
            await writer.wait_closed()
        server.close()

    run_async(go())


class _WantsAKey(asyncssh.SSHServer):
    allowed: str = ""

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return key.get_fingerprint() == self.allowed


def test_no_permission_names_the_command_that_gives_it(run_async, serving, device) -> None:
    async def go() -> str:
        async with serving(device, server_factory=_WantsAKey):
            with pytest.raises(Unreachable) as error:
                await _try(device.address)
            return str(error.value)

    line = run_async(go())
    assert f"ssh-copy-id -p {device.port} jetson@127.0.0.1" in line


def test_the_passphrase_of_a_key_is_asked_once_for_all_hosts(
    run_async, serving, make_device, user_home: Path
) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    file = user_home / ".ssh" / "id_ed25519"
    key.write_private_key(str(file), passphrase="open sesame", format_name="pkcs8-pem")
    key.write_public_key(f"{file}.pub")
    asked: list[str] = []

    def ask(name: str) -> str:
        asked.append(name)
        return "open sesame"

    factory = type("Server", (_WantsAKey,), {"allowed": key.get_fingerprint()})
    passphrases = Passphrases(ask)

    async def go() -> None:
        for name in ("a", "b"):
            device = make_device(name)
            async with serving(device, server_factory=factory):
                await _try(device.address, passphrases=passphrases)

    run_async(go())
    assert asked == [str(file)]


def test_a_wrong_passphrase_is_told(run_async, serving, device, user_home: Path) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    file = user_home / ".ssh" / "id_ed25519"
    key.write_private_key(str(file), passphrase="open sesame", format_name="pkcs8-pem")
    key.write_public_key(f"{file}.pub")
    factory = type("Server", (_WantsAKey,), {"allowed": key.get_fingerprint()})

    async def go() -> None:
        async with serving(device, server_factory=factory):
            with pytest.raises(InputError, match="passphrase"):
                await _try(device.address, passphrases=Passphrases(lambda _: "wrong"))

    run_async(go())


def test_a_key_with_passphrase_but_without_its_public_half_is_told(
    run_async, user_home: Path
) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    file = user_home / ".ssh" / "id_ed25519"
    key.write_private_key(str(file), passphrase="open sesame", format_name="pkcs8-pem")
    assert "ssh-add" in _refusal(run_async, _try(Address("orin1")))


def test_a_broken_ssh_config_is_told(run_async, user_home: Path) -> None:
    (user_home / ".ssh" / "config").write_text("Port many\n")
    assert "ssh_config" in _refusal(run_async, _try(Address("orin1")))
