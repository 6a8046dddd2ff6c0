"""A defect of released QEMUs that bears on every packet's account: what is known of it, told from a version and an accelerator."""

from __future__ import annotations

from harness.model.facts import RunFacts

__all__ = ["KERNEL_PANICKED", "loses_writes", "lost_writes_note"]

KERNEL_PANICKED = "the guest's kernel panicked"
"""How a failure begins to tell of it."""
_MENDED = (9, 0)


def loses_writes(version: str, *, accelerator: str) -> bool:
    """Whether a source of this version loses writes of its guest in a migration (docs/tcg-dirty-log.md): under TCG, before 9.0.

    A distribution may have mended an older one; the version does not tell.
    """
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    return accelerator == "tcg" and numbers < _MENDED


def lost_writes_note(facts: RunFacts, *, unexplained: int) -> str | None:
    """What to say beside packets that nobody can account for, and beside a guest that panicked: part of its memory may have arrived old."""
    if not unexplained and KERNEL_PANICKED not in (facts.failure or ""):
        return None
    sources = (facts.qemu.source, facts.qemu.destination)[: 1 if len(facts.migrations) < 2 else 2]
    versions = [version for version in dict.fromkeys(each.version for each in sources) if loses_writes(version, accelerator=facts.accelerator)]
    if not versions or not any(migration.moved for migration in facts.migrations):
        return None
    return (
        f"QEMU {' and '.join(versions)} under TCG now and then loses what a migrating guest writes (before 9.0; docs/tcg-dirty-log.md):"
        " the guest may have forgotten what it received or sent last; KVM and newer QEMUs are not concerned"
    )
