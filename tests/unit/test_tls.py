"""Keys for a migration over TLS, with a QEMU that has no TLS."""

from __future__ import annotations

import contextlib
import io
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import FeatureLackError
from harness.migrate.tls import add_credentials
from harness.vm.qmp import CommandRefusedError


class Keeper:
    """A lab's warden, as far as it keeps files."""

    async def request(self, *_: Any, **__: Any) -> None:
        pass

    async def open(self, *_: Any, **__: Any) -> Any:
        return contextlib.closing(io.BytesIO())


class Monitor:
    def __init__(self, reason: str) -> None:
        self.reason = reason

    async def command(self, command: str, **words: Any) -> list[Any]:
        if command == "object-add":
            error: Any = SimpleNamespace(error=SimpleNamespace(error=SimpleNamespace(desc=self.reason)))
            raise CommandRefusedError(command, words, error, "source")
        return []


@pytest.mark.parametrize(
    ("reason", "raised"), [("TLS credentials support requires GNUTLS", FeatureLackError), ("Unable to access credentials", CommandRefusedError)]
)
def test_a_qemu_without_tls_lacks_it_and_any_other_refusal_is_no_lack(run, reason, raised):
    machine: Any = SimpleNamespace(role="source", spec=SimpleNamespace(name="m0"), qmp=Monitor(reason))
    with pytest.raises(raised, match=reason):
        run(add_credentials(machine, Keeper(), server=False, authorise=True))  # type: ignore[arg-type]
