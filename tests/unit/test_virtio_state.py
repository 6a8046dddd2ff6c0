"""Device states as QEMU describes them."""

from __future__ import annotations

import base64
import json

import pytest

from harness.analysis.virtio_state import decode_state, state_differences
from harness.errors import TestbedError

FIELDS = [
    {"name": "status", "size": 1},
    {"name": "vq", "index": 3, "size": 2},
    {"name": "device", "struct": {
        "fields": [{"name": "mac", "array_len": 2, "size": 3}, {"name": "tmp", "fields": [{"name": "inner", "size": 1}]}],
        "subsections": [{"vmsd_name": "rss", "fields": [{"name": "on", "size": 1}]}],
    }},
]  # fmt: skip
DATA = b"\x07" + b"\x00\x09" + b"abcdef" + b"\x55" + b"\x05\x03rss\x00\x00\x00\x01" + b"\x01"


def reply(data: bytes = DATA) -> dict[str, str]:
    return {"description": json.dumps({"fields": FIELDS}), "data": base64.b64encode(data).decode()}


def test_fields_are_named_by_their_path():
    assert decode_state(reply()) == {
        "status": b"\x07", "vq[3]": b"\x00\x09", "device.mac[0]": b"abc", "device.mac[1]": b"def",
        "device.tmp.inner": b"\x55", "device.rss.on": b"\x01",
    }  # fmt: skip


@pytest.mark.parametrize(("data", "complaint"), [(DATA[:-1], "ends within"), (DATA + b"x", "1 bytes that its description")])
def test_data_that_does_not_fit_its_description_is_refused(data, complaint):
    with pytest.raises(TestbedError, match=complaint):
        decode_state(reply(data))


def test_differences_name_the_field_and_both_values():
    one = decode_state(reply())
    other = decode_state(reply(DATA.replace(b"def", b"deg")))
    assert state_differences(one, one) == {}
    assert state_differences(one, other) == {"device.mac[1]": (b"def".hex(), b"deg".hex())}
    del other["status"]
    assert state_differences(one, other)["status"] == ("07", "absent")
