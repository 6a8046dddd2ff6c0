"""The mechanisms by name."""

from __future__ import annotations

import difflib

from harness.errors import UsageError
from harness.migrate.mechanisms.base import Mechanism
from harness.migrate.mechanisms.local_tap import LocalTap
from harness.migrate.mechanisms.netpass import NetPass
from harness.migrate.mechanisms.none import NoMechanism
from harness.migrate.mechanisms.redirect import Redirect
from harness.migrate.mechanisms.redirect_packet import RedirectPacket
from harness.migrate.mechanisms.tap_handover import TapHandover

__all__ = ["MECHANISMS", "make_mechanism"]

MECHANISMS: dict[str, type[Mechanism]] = {
    kind.name: kind for kind in (NoMechanism, TapHandover, NetPass, Redirect, RedirectPacket, LocalTap)
}


def make_mechanism(name: str) -> Mechanism:
    """A fresh mechanism for one migration; `UsageError` names the nearest known one."""
    try:
        return MECHANISMS[name]()
    except KeyError:
        near = difflib.get_close_matches(name, MECHANISMS, n=1)
        raise UsageError(
            f"there is no mechanism {name!r}",
            hint=f"did you mean {near[0]!r}?" if near else f"known: {', '.join(MECHANISMS)}",
        ) from None
