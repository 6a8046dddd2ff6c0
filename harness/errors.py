"""The exception tree.

::

    SwitchoverError                exit 2   root; a message for people and, where there is one, the mend
    |-- UsageError                 exit 4   bad usage or a bad file
    |   |-- ScenarioError                   a scenario that can't be meant: names file, key, value and mend
    |   `-- BundleError                     an archive of a run that is refused: one line, whatever is in it
    |-- EnvironmentLackError       exit 3   this environment lacks something
    |   `-- FeatureLackError                the QEMU at hand lacks a feature
    `-- TestbedError               exit 2   the testbed, or something it runs, broke
        |-- DeadlineError                   a wait ended: what was awaited, what was seen last
        |-- ProcessError                    a supervised process failed: command, status, tail of its output
        |-- BuildError                      a source that can't be built
        `-- MigrationError                  the migration ended in a state nobody asked for
"""

from __future__ import annotations

__all__ = [
    "BuildError",
    "BundleError",
    "DeadlineError",
    "EnvironmentLackError",
    "FeatureLackError",
    "MigrationError",
    "ProcessError",
    "ScenarioError",
    "SwitchoverError",
    "TestbedError",
    "UsageError",
]


class SwitchoverError(Exception):
    """Root of all errors this package raises on purpose.

    ``hint`` says how to mend it; ``exit_code`` is what the command ends with; ``kept`` is the folder with what there is of a run that it ended.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.kept: str | None = None

    def __str__(self) -> str:
        more = {"mend": self.hint, "kept": self.kept}
        return "\n".join([self.message, *(f"  {what}: {words}" for what, words in more.items() if words is not None)])


class UsageError(SwitchoverError):
    """What the user asked for can't be meant."""

    exit_code = 4


class ScenarioError(UsageError):
    """A scenario file or setting that is wrong."""


class BundleError(UsageError):
    """A bundle that is refused. Its message is one printable line, even where it quotes what a stranger wrote."""

    def __init__(self, message: str) -> None:
        line = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in message)
        super().__init__(line if len(line) <= 400 else f"{line[:397]}...")


class EnvironmentLackError(SwitchoverError):
    """This host lacks what the work needs."""

    exit_code = 3


class FeatureLackError(EnvironmentLackError):
    """This QEMU or guest lacks a feature that was asked for."""


class TestbedError(SwitchoverError):
    """The testbed broke, which says nothing about the claim under test."""

    __test__ = False  # pytest collects classes named Test*


class DeadlineError(TestbedError):
    """A wait ended without what it waited for."""


class ProcessError(TestbedError):
    """A supervised process failed."""


class BuildError(TestbedError):
    """A source that doesn't compile, or can't be configured."""


class MigrationError(TestbedError):
    """A migration ended in a state that the plan did not ask for."""


class GuestCrashError(MigrationError):
    """The mobile guest did not survive: its kernel panicked, or it was reset."""
