"""Addresses and hosts.yaml: what is taken, and which line is told."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest
from edgeml.deploy.address import Address, parse_address, read_addresses
from edgeml.errors import InputError


def test_doctests() -> None:
    assert doctest.testmod(import_module("edgeml.deploy.address")).failed == 0


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("orin1", Address("orin1", None, None, "orin1")),
        ("jetson@orin1", Address("orin1", "jetson", None, "orin1")),
        ("ssh://orin1/", Address("orin1", None, None, "orin1")),
        ("ssh://a.b@10.0.0.2:22", Address("10.0.0.2", "a.b", 22, "10.0.0.2")),
        ("user@domain@host", Address("host", "user@domain", None, "host")),
        ("[::1]:2200", Address("::1", None, 2200, "::1")),
    ],
)
def test_addresses(text: str, want: Address) -> None:
    assert parse_address(text) == want


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a b",
        "o'rin",
        "orin;reboot",
        "$(id)",
        "-oProxyCommand=id",
        "orin:",
        "orin:0",
        "orin:99999",
        "orin:ssh",
        "http://orin",
        "@orin",
        "us er@orin",
        "[::1",
        "[orin]",
        "u:secret@orin",
        "orin/path",
    ],
)
def test_what_is_no_address_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError) as error:
        parse_address(text)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_hosts_file(tmp_path: Path) -> None:
    file = tmp_path / "my hosts.yaml"
    file.write_text("- jetson@orin1\n- to: ssh://orin2:22\n  name: bench\n  power-mode: 15W\n")
    first, second = read_addresses(str(file))
    assert first == Address("orin1", "jetson", None, "orin1")
    assert second == Address("orin2", None, 22, "bench", "15W")


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("- a\n- b b\n", 2, "host name"),
        ("- a\n- too: b\n", 2, "did you mean to"),
        ("- a\n- to: b\n  powermode: 15W\n", 3, "power-mode"),
        ("- a\n- a\n", 2, "second host"),
        ("- a\n- name: b\n", 2, "no `to`"),
        ("- a\n- [b]\n", 2, "mapping"),
        ("- a\n- to: [b]\n", 2, "wants a text"),
        ("hosts: [a]\n", 1, "list of hosts"),
        ("", 1, "list of hosts"),
        ("- a\n- 'b\n", 3, ""),
    ],
)
def test_a_wrong_line_is_told_by_its_number(
    tmp_path: Path, text: str, line: int, word: str
) -> None:
    file = tmp_path / "hosts.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        read_addresses(str(file))
    assert f"line {line}" in str(error.value)
    assert word in str(error.value)


def test_a_missing_hosts_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_addresses(str(tmp_path / "none.yaml"))
