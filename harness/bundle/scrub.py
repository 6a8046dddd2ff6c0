"""Take out of a run's texts what is nobody's business: secrets, keys, names, addresses outside the lab, paths of the machine.

`Scrubber` is a pure function of an `Identity`; only `identity_of_host` looks at the host.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import os
import platform
import pwd
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from harness.model.addresses import LAB_NETWORKS

__all__ = ["Identity", "Scrubber", "identity_of_host"]


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What would tell whose machine it was. `places` are folders and the words that stand for them."""

    hosts: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    places: tuple[tuple[str, str], ...] = ()


_COMMON = frozenset((
    "root", "user", "users", "admin", "debian", "ubuntu", "fedora", "nobody", "test", "guest", "host", "peer", "vm", "qemu", "kvm", "lab",
    "localhost", "localdomain", "linux", "local", "source", "destination", "mobile", "machine", "server", "client", "home", "tcg", "runner",
    "build", "docker", "container", "none", "default",
))  # fmt: skip
"""Names that tell nothing, and whose replacement would damage what does."""


def identity_of_host(places: Iterable[tuple[Path, str]] = ()) -> Identity:
    """The host's and its users' names, its machine id, and the folders given (with the user's home)."""
    node = platform.node()
    hosts = {node, *node.split(".")}
    users = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "SUDO_USER")}
    for entry in pwd.getpwall():
        if 1000 <= entry.pw_uid < 65_000 or entry.pw_uid == os.getuid():
            users |= {entry.pw_name, entry.pw_gecos.split(",")[0]}
    marks = set()
    for path in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        try:
            marks.add(Path(path).read_text().strip())
        except OSError:
            continue
    found = [(str(path.absolute()), word) for path, word in (*places, (Path.home(), "<home>"))]
    return Identity(hosts=_telling(hosts), users=_telling(users), marks=tuple(sorted(marks - {""})), places=_longest_first(found))


def _telling(names: Iterable[str]) -> tuple[str, ...]:
    kept = {name for name in names if len(name) >= 3 and name.lower() not in _COMMON and not name.isdecimal()}
    return tuple(sorted(kept, key=lambda name: (-len(name), name)))


def _longest_first(places: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted({p for p in places if len(p[0]) > 1}, key=lambda place: (-len(place[0]), place)))


_SECRET_KEY = r"[\w-]*(?:password|passwd|passphrase|secret|token|api[_-]?key|credential|entropy|authorization|private[_-]?key|auth[_-]?key)s?"
_PEM = re.compile(r"-----BEGIN [A-Z0-9 ]+-----.*?(?:-----END [A-Z0-9 ]+-----|\Z)", re.S)
_SSH_KEY = re.compile(r"\b(?:ssh-(?:ed25519|rsa|dss)|ecdsa-sha2-[\w-]+|sk-[\w@.-]+)\s+AAAA[0-9A-Za-z+/=]+(?:\s+[\w.+-]+@[\w.-]+)?")
_URL_SECRET = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s:@\"']*:[^/\s@\"']+@", re.I)
_TOKEN = re.compile(
    r"\b(?:gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|AKIA[0-9A-Z]{16}|xox[abp]-[\w-]{10,}|sk-[A-Za-z0-9_-]{20,}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+)"
)
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{8,}", re.I)
_ASSIGNED = re.compile(rf"\b({_SECRET_KEY}\s*[=:]\s*)(?!<)(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s\"',;&]+)", re.I)
_IS_SECRET_KEY = re.compile(_SECRET_KEY, re.I)
_MAIL = re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}\b")
_PATH = re.compile(r"(?:(?<![\w/<>.~\\])|(?<=\s-[A-Za-z])|(?<=\"-[A-Za-z])|(?<=^-[A-Za-z]))(?:/[\w.+@%=~,-]+){2,}/?")
_PUBLIC_TOPS = frozenset(("usr", "bin", "sbin", "lib", "lib64", "dev", "proc", "sys", "machine", "objects", "backend"))
_IP4 = re.compile(r"(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)")
_IP6 = re.compile(r"(?<![\w:.])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?:%[\w.-]+)?(?![\w:])", re.I)
_MAC = re.compile(r"(?<![\w:])(?:[0-9a-f]{2}:){5}[0-9a-f]{2}(?![\w:])", re.I)
_LAB_MACS = ("52:54:00", "33:33:", "01:00:5e", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00")
_SAFE_NETWORKS = (
    *LAB_NETWORKS,
    *map(ipaddress.ip_network, ("127.0.0.0/8", "0.0.0.0/32", "224.0.0.0/4", "255.255.255.255/32", "::1/128", "::/128", "ff00::/8")),
)
_LAB_LINK_LOCAL = "fe80::5054:"

_BASE64_KEYS = frozenset({"out-data", "err-data", "buf-b64", "input-data"})
_LONG_BASE64 = 400


class Scrubber:
    """Replaces, and counts what it replaced under `counts`."""

    def __init__(self, identity: Identity) -> None:
        self.counts: Counter[str] = Counter()
        self._rules: list[tuple[str, re.Pattern[str], Callable[[re.Match[str]], str]]] = [
            ("key", _PEM, lambda _: "<key>"),
            ("key", _SSH_KEY, lambda _: "<key>"),
            ("secret", _URL_SECRET, lambda m: f"{m[1]}<secret>@"),
            ("secret", _TOKEN, lambda _: "<secret>"),
            ("secret", _BEARER, lambda m: f"{m[1]} <secret>"),
            ("secret", _ASSIGNED, lambda m: f"{m[1]}<secret>"),
            ("mail", _MAIL, lambda _: "<mail>"),
        ]
        for folder, word in identity.places:
            self._rules.append(("path", re.compile(rf"{re.escape(folder)}(?![\w.-])"), _constantly(word)))
        for kind, names in (("host", identity.hosts), ("user", identity.users), ("id", identity.marks)):
            if names:
                joined = "|".join(map(re.escape, names))
                tail = r"(?:\.[a-z][\w-]*)*" if kind == "host" else ""  # the domain goes with the name
                self._rules.append((kind, re.compile(rf"(?<![A-Za-z0-9])(?:{joined})(?![A-Za-z0-9]){tail}", re.I), _constantly(f"<{kind}>")))
        self._rules += [
            ("path", _PATH, _path),
            ("address", _MAC, _mac),
            ("address", _IP6, _address),
            ("address", _IP4, _address),
        ]

    def text(self, text: str) -> str:
        """The text without it; line breaks and tabs stay, other control characters become their escapes."""
        for kind, pattern, replace in self._rules:
            changed = 0

            def counted(match: re.Match[str], replace: Callable[[re.Match[str]], str] = replace) -> str:
                nonlocal changed
                new = replace(match)
                changed += new != match[0]
                return new

            text = pattern.sub(counted, text)
            if changed:
                self.counts[kind] += changed
        return text if text.isprintable() else "".join(c if c.isprintable() or c in "\n\t" else _escape(c) for c in text)

    def value(self, value: Any, *, key: str = "") -> Any:
        """A JSON value with every text in it scrubbed, keys included."""
        match value:
            case str() if key in _BASE64_KEYS:
                return self._base64(value)
            case str() if _IS_SECRET_KEY.fullmatch(key):
                self.counts["secret"] += 1
                return "<secret>"
            case str():
                return self.text(value)
            case dict():
                return {self.text(name): self.value(item, key=name) for name, item in value.items()}
            case list() | tuple():
                return [self.value(item) for item in value]
        return value

    def json(self, raw: bytes) -> bytes:
        """A JSON file, laid out as run directories have it. Raises msgspec.MsgspecError for what is none."""
        return msgspec.json.format(msgspec.json.encode(self.value(msgspec.json.decode(raw))), indent=2) + b"\n"

    def json_lines(self, raw: bytes) -> bytes:
        """A file of one JSON value a line; a last line that was cut off is scrubbed as text."""
        lines = []
        for line in raw.splitlines():
            try:
                lines.append(msgspec.json.encode(self.value(msgspec.json.decode(line))))
            except msgspec.MsgspecError:
                lines.append(msgspec.json.encode(self.text(line.decode("utf-8", "replace"))))
        return b"".join(line + b"\n" for line in lines)

    def _base64(self, value: str) -> str:
        """What came from a guest's agent: short texts are scrubbed inside, long ones (records) are in files of their own."""
        if len(value) > _LONG_BASE64:
            return f"<{len(value)} characters of base64>"
        try:
            plain = base64.b64decode(value, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return f"<{len(value)} characters of base64>"
        cleaned = self.text(plain)
        return value if cleaned == plain else base64.b64encode(cleaned.encode()).decode()


def _constantly(word: str) -> Callable[[re.Match[str]], str]:
    return lambda _: word


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _path(match: re.Match[str]) -> str:
    parts = match[0].strip("/").split("/")
    return match[0] if parts[0] in _PUBLIC_TOPS else f"<path>/{parts[-1]}"


def _mac(match: re.Match[str]) -> str:
    return match[0] if match[0].lower().startswith(_LAB_MACS) else "<address>"


def _address(match: re.Match[str]) -> str:
    text = match[0].partition("%")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return match[0]
    safe = any(address in network for network in _SAFE_NETWORKS if network.version == address.version)
    return match[0] if safe or str(address).startswith(_LAB_LINK_LOCAL) else "<address>"
