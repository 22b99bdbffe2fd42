"""Where a device is: ``[ssh://][USER@]HOST[:PORT]``, or a list of them in a YAML file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError, nearest, one_line

# Host names, ssh_config aliases, IPv4; IPv6 comes in brackets.
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*\$?")
_KEYS = ("to", "name", "power-mode")
_FORM = "[ssh://][USER@]HOST[:PORT]"


@dataclass(frozen=True)
class Address:
    """One device.

    Attributes:
        host: a host name, an ssh_config alias or an address without brackets.
        user, port: None leaves them to ssh_config.
        name: what the tables call it.
        power_mode: set before its bench, as in ``15W``; None leaves it, or takes the command's.
    """

    host: str
    user: str | None = None
    port: int | None = None
    name: str = ""
    power_mode: str | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = f"{self.user}@" if self.user else ""
        return f"{user}{host}" + (f":{self.port}" if self.port else "")


def parse_address(text: str, where: str = "--to") -> Address:
    """One address from its text.

    >>> parse_address("ssh://jetson@orin1:2222")
    Address(host='orin1', user='jetson', port=2222, name='orin1', power_mode=None)
    >>> str(parse_address("[fe80::1]:22"))
    '[fe80::1]:22'

    Raises:
        InputError: it is none.
    """
    rest = text[6:] if text.startswith("ssh://") else text
    if "://" in rest:
        raise InputError(f"{where} {text!r} is no SSH address; give {_FORM}")
    rest = rest.rstrip("/") if text.startswith("ssh://") else rest
    user, at, place = rest.rpartition("@")
    if at and ":" in user:
        raise InputError(f"{where}: a password does not belong into an address; use a key or agent")
    if at and not _USER.fullmatch(user):
        raise InputError(f"{where} {text!r}: {user!r} is no user name; give {_FORM}")
    if place.startswith("["):
        host, bracket, port = place[1:].partition("]")
        port = port[1:] if port.startswith(":") else ("" if not port else "?")
        fits = bool(bracket) and _IPV6.fullmatch(host)
    else:
        host, colon, port = place.partition(":")
        port = port or ("?" if colon else "")
        fits = _HOST.fullmatch(host)
    if not fits:
        raise InputError(f"{where} {text!r}: {host!r} is no host name; give {_FORM}")
    if port and not (re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 65536):
        raise InputError(f"{where} {text!r}: the port is no number from 1 to 65535; give {_FORM}")
    return Address(host, user or None, int(port) if port else None, host)


def read_addresses(to: str) -> list[Address]:
    """The devices that ``--to`` names: one address, or a path that ends in .yaml or .yml.

    Raises:
        InputError: it is neither, or the file has a wrong line (told by its number).
    """
    if to.endswith((".yaml", ".yml")):
        return read_hosts(Path(to))
    return [parse_address(to)]


def read_hosts(path: Path) -> list[Address]:
    """A list of addresses, or of mappings with ``to`` and optionally ``name``, ``power-mode``.

    Raises:
        InputError: the file cannot be read, a line is wrong, or two hosts have one name.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{path} cannot be read: {one_line(e)}") from e
    except yaml.MarkedYAMLError as e:
        line = e.problem_mark.line + 1 if e.problem_mark else 1
        raise InputError(f"{path} line {line}: {e.problem or 'no YAML'}") from e
    except yaml.YAMLError as e:
        raise InputError(f"{path} is no YAML: {one_line(e)}") from e
    if not isinstance(root, yaml.SequenceNode) or not root.value:
        raise InputError(f"{path} line 1: give a list of hosts, as in `- jetson@orin1`")
    found: list[Address] = []
    for node in root.value:
        where = f"{path} line {node.start_mark.line + 1}"
        address = _host(node, path, where)
        if any(address.name == other.name for other in found):
            raise InputError(f"{where}: a second host {address.name!r}; give each a `name`")
        found.append(address)
    return found


def _host(node: Any, path: Path, where: str) -> Address:
    if isinstance(node, yaml.ScalarNode):
        return parse_address(str(node.value), f"{where}:")
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{where}: a host is {_FORM} or a mapping with `to`")
    values: dict[str, str] = {}
    for key, value in node.value:
        line = f"{path} line {key.start_mark.line + 1}"
        if key.value not in _KEYS:
            raise InputError(f"{line}: unknown key {key.value!r}, {nearest(str(key.value), _KEYS)}")
        if not isinstance(value, yaml.ScalarNode) or not value.value:
            raise InputError(f"{line}: {key.value} wants a text")
        if key.value in values:
            raise InputError(f"{line}: {key.value} is given twice")
        values[key.value] = str(value.value)
    if "to" not in values:
        raise InputError(f"{where}: no `to`; give {_FORM}")
    address = parse_address(values["to"], f"{where}: to")
    name = values.get("name", address.name)
    return Address(address.host, address.user, address.port, name, values.get("power-mode"))
