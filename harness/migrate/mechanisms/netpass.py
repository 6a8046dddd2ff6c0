"""netpass: the source's QEMU keeps the frames and passes them over the migration channel; the destination's injects them.

A capability of QEMU (ours is the series `netpass` under images/qemu/series; the posted one and a later upstream version have the
same name), so the harness only switches it on and says what was passed.
"""

from __future__ import annotations

from typing import ClassVar

from harness.errors import TestbedError
from harness.migrate.mechanisms.base import Mechanism, Report, SwitchContext
from harness.model.scenario import MigrationMode

__all__ = ["NetPass"]


class NetPass(Mechanism):
    """The mechanism `netpass`."""

    name: ClassVar[str] = "netpass"
    injects: ClassVar[bool] = True
    modes: ClassVar[frozenset[MigrationMode]] = frozenset({MigrationMode.PRECOPY, MigrationMode.POSTCOPY})
    capabilities: ClassVar[tuple[str, ...]] = ("return-path", "netpass")

    async def finish(self, context: SwitchContext) -> Report:
        """The frames sent to the source's TAP since its stop are the ones it had to pass on; both QEMUs' own figures go along.

        A side that has no figures, or that died, adds none. Where a QEMU left the NIC out (vhost=on: no filter sees those frames) it passed
        none, and its reason becomes a note.
        """
        figures: dict[str, int] = {}
        for role, side in (("source", context.source), ("destination", context.destination)):
            if side.machine.process.returncode is not None:
                continue
            try:
                info = await side.machine.qmp.command("query-migrate")
            except TestbedError:
                continue
            for key, value in info.get("netpass", {}).items():
                if isinstance(value, int):
                    figures[f"netpass-{role}-{key}"] = int(value)
        stop = context.stop_point
        if declined := _declined(context):
            context.note(declined)
            return Report(figures=figures)
        passed = () if stop is None else tuple(context.source.live.frames(first=stop.first_undelivered))
        return Report(passed=passed, figures=figures)


def _declined(context: SwitchContext) -> str:
    """What the source said about the NIC if it does not pass its frames; empty if it does."""
    said = f"frames of netdev '{context.nic}-netdev' are not passed"
    lines = context.source.machine.process.read_output().decode(errors="replace").splitlines()
    return next((line[line.index("netpass:") :] for line in lines if "netpass:" in line and said in line), "")
