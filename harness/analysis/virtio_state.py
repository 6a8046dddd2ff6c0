"""A virtio device's state as a migration would send it, field by field: what QMP `x-query-virtio-state` answers."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from harness.errors import TestbedError

__all__ = ["decode_state", "state_differences"]

Description = Mapping[str, Any]


def decode_state(reply: Mapping[str, str]) -> dict[str, bytes]:
    """The fields by their path ("device.mac", "vq[0].desc"), in the order of the stream.

    `reply` has `description` (JSON in the manner of the stream's own description) and `data` (base64). `TestbedError` where they don't fit.
    """
    content = base64.b64decode(reply["data"])
    fields: dict[str, bytes] = {}
    offset = 0
    for path, size_bytes, is_field in _layout(json.loads(reply["description"])["fields"], ""):
        if offset + size_bytes > len(content):
            raise TestbedError(f"a virtio state ends within {path}: {len(content)} bytes")
        if is_field:
            fields[path] = content[offset : offset + size_bytes]
        offset += size_bytes
    if offset != len(content):
        raise TestbedError(f"a virtio state has {len(content) - offset} bytes that its description does not name")
    return fields


def state_differences(one: Mapping[str, bytes], other: Mapping[str, bytes]) -> dict[str, tuple[str, str]]:
    """The fields that differ, or that one side lacks, with both values in hexadecimal."""

    def shown(value: bytes | None) -> str:
        return "absent" if value is None else value.hex()

    return {
        path: (shown(one.get(path)), shown(other.get(path)))
        for path in dict.fromkeys((*one, *other))
        if one.get(path) != other.get(path)
    }


def _layout(fields: Iterable[Description], prefix: str) -> Iterator[tuple[str, int, bool]]:
    """Path and size of everything in the stream; not a field: the header of a subsection."""
    for field in fields:
        for index in range(int(field.get("array_len", 1))):
            path = prefix + str(field["name"])
            if "array_len" in field:
                path += f"[{index}]"
            elif "index" in field:
                path += f"[{field['index']}]"
            inner = field.get("struct", field)  # a temporary structure has its members in itself
            if "fields" in inner:
                yield from _structure(inner, path)
            else:
                yield path, int(field["size"]), True


def _structure(structure: Description, path: str) -> Iterator[tuple[str, int, bool]]:
    yield from _layout(structure["fields"], f"{path}.")
    for section in structure.get("subsections", ()):
        name = str(section["vmsd_name"])
        yield f"{path}.{name}", 1 + 1 + len(name) + 4, False  # marker, the name and its length, version
        yield from _structure(section, f"{path}.{name}")
