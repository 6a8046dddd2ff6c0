"""The exception tree: exit codes, and messages that carry their mend."""

from __future__ import annotations

import pytest

from harness import errors


@pytest.mark.parametrize(
    ("kind", "exit_code"),
    [
        (errors.SwitchoverError, 2), (errors.UsageError, 4), (errors.ScenarioError, 4), (errors.EnvironmentLackError, 3),
        (errors.FeatureLackError, 3), (errors.TestbedError, 2), (errors.DeadlineError, 2), (errors.ProcessError, 2),
        (errors.MigrationError, 2),
    ],
)  # fmt: skip
def test_exit_codes(kind: type[errors.SwitchoverError], exit_code: int) -> None:
    assert kind("x").exit_code == exit_code


def test_every_error_is_in_the_tree_and_its_docstring() -> None:
    kinds = [getattr(errors, name) for name in errors.__all__]
    assert all(issubclass(kind, errors.SwitchoverError) for kind in kinds)
    assert errors.__doc__ is not None
    assert not [kind.__name__ for kind in kinds if kind.__name__ not in errors.__doc__]


def test_the_mend_stands_below_the_message() -> None:
    error = errors.UsageError("wrong", hint="do this")
    assert (error.message, error.hint, str(error)) == ("wrong", "do this", "wrong\n  mend: do this")
    assert str(errors.UsageError("wrong")) == "wrong"
