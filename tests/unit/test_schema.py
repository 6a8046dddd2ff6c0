"""The JSON Schemas follow from the types."""

from __future__ import annotations

import json
from typing import Any

import pytest

from harness.model.result import Outcome, Verdict
from harness.model.scenario import Scenario
from harness.model.schema import did_you_mean, nearest, schemas


def definition(name: str, kind: str) -> dict[str, Any]:
    return schemas()[name]["$defs"][kind]


def test_both_are_there_as_json() -> None:
    assert set(schemas()) == {"scenario", "result"}
    for name, schema in schemas().items():
        assert json.loads(json.dumps(schema)) == schema
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        assert schema["title"] == name
        assert schema["$ref"].removeprefix("#/$defs/") in schema["$defs"]


def test_the_scenario_refuses_unknown_keys_and_carries_the_limits() -> None:
    top = definition("scenario", "Scenario")
    assert top["required"] == ["name"]
    assert set(top["properties"]) == set(Scenario.__struct_fields__)
    for kind in schemas()["scenario"]["$defs"].values():
        assert "enum" in kind or kind["additionalProperties"] is False
    traffic = definition("scenario", "TrafficSection")["properties"]
    rate_pps, size = traffic["rate_pps"]["anyOf"][0], traffic["size"]["anyOf"][0]
    assert rate_pps["exclusiveMinimum"] == 0
    assert (size["minimum"], size["maximum"]) == (32, 65507)
    assert sorted(traffic["ip"]["enum"]) == [4, 6]


def test_the_result_names_its_version_and_its_words() -> None:
    assert definition("result", "RunResult")["properties"]["schema_version"]["enum"] == [1]
    assert set(definition("result", "Outcome")["enum"]) == {word.value for word in Outcome}
    assert set(definition("result", "Verdict")["enum"]) == {word.value for word in Verdict}


@pytest.mark.parametrize(
    ("word", "near"),
    [("los", "lost"), ("LOST", "lost"), ("hold-ms", "hold_ms"), ("Return_Path", "return-path"), ("zzzz", None), ("", None)],
)
def test_nearest(word: str, near: str | None) -> None:
    assert nearest(word, ["lost", "hold_ms", "return-path"]) == near


def test_without_a_near_word_all_are_named() -> None:
    assert did_you_mean("zzzz", ["a1", "b2"]) == "known: a1, b2"
