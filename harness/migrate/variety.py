"""Trials that are not about the way: guests and NICs of other kinds, other networks, and failures, each with what it must come to."""

from __future__ import annotations

from typing import Any

from harness.migrate.trials import Expectations, Trial

__all__ = ["FAILURES", "VARIETY"]


def _guest(name: str, **more: Any) -> Trial:
    return Trial(name=name, group="guest", **more)


def _network(name: str, *, mechanism: str = "none", **more: Any) -> Trial:
    return Trial(name=name, group="network", mechanism=mechanism, network=more)


VARIETY: tuple[Trial, ...] = (
    _guest("i440fx", guest={"machine": "pc"}),
    _guest("i440fx-postcopy", guest={"machine": "pc"}, migration={"mode": "postcopy"}),
    *(_guest(f"vcpus-{count}", guest={"vcpus": count}) for count in (2, 4)),
    _guest("disk-root", guest={"root": "disk"}),
    _guest("disk-root-postcopy", guest={"root": "disk"}, migration={"mode": "postcopy"}),
    _guest("one-nic", guest={"management": False}),
    _guest("busy-memory", guest={"dirty_mib_s": 15, "dirty_mib": 32}),
    *(_network(f"queues-{count}", queues=count, enabled_queues=count) for count in (2, 4, 8)),
    _network("five-nics", extra_nics=3),
    _network("packed-ring", packed=True),
    _network("packed-ring-handover", mechanism="tap-handover", packed=True),
    _network("no-mergeable-buffers", mergeable=False),
    _network("no-mergeable-buffers-handover", mechanism="tap-handover", mergeable=False),
    _network("no-offloads", offloads=False),
    _network("no-offloads-handover", mechanism="tap-handover", offloads=False),
    _network("mtu-9000", mtu=9000),
    Trial(name="mtu-9000-large", group="network", network={"mtu": 9000}, traffic={"size": 8000}),
    Trial(name="ipv6", group="network", traffic={"ip": 6}),
    Trial(name="ipv6-handover", group="network", traffic={"ip": 6}, mechanism="tap-handover"),
    _network("two-bridges", topology="two-bridges"),
    Trial(name="two-bridges-postcopy", group="network", network={"topology": "two-bridges"}, migration={"mode": "postcopy"}),
    *(Trial(name=f"two-hosts-{name}", group="network", network={"topology": "two-hosts", **link}, migration={"transport": "tcp", **more})
      for name, link, more in (("200-mbit", {"link_mbit_s": 200}, {}), ("postcopy", {"link_mbit_s": 200}, {"mode": "postcopy"}),
                               ("10-ms", {"link_mbit_s": 200, "link_delay_ms": 5}, {}), ("lossy", {"link_mbit_s": 200, "link_loss_percent": 0.1}, {}))),
    Trial(name="broadcast", group="network", traffic={"cast": "broadcast", "direction": "to-guest"}),
    Trial(name="broadcast-flooded", group="network", traffic={"cast": "broadcast", "direction": "to-guest"},
          network={"destination_port": "from-start"}, expect={"duplicated": "> 0"}),
    *(Trial(name=f"announce-{rounds}-rounds", group="announce",
            migration={"parameters": {"announce-initial": initial, "announce-max": most, "announce-rounds": rounds, "announce-step": step}})
      for initial, most, rounds, step in ((1, 10, 1, 1), (50, 550, 5, 100), (10, 50, 20, 10))),
)  # fmt: skip
"""Guests, NICs, networks. Where the destination's port floods from the start, broadcasts come twice."""

_STAYS: Expectations = {"outcome": "cancelled", "lost": "<= 3"}
"""Cancelled: the guest goes on, and what a stop path frees now and then is all that may be missing."""
_FAILS: Expectations = {"outcome": "failed", "lost": "<= 60"}
"""Failed: the source goes on. What it lost it lost while it was stopped, on its way into the failure."""
_DIES: Expectations = {"outcome": "completed", "lost": "> 0"}
"""The guest died with its machine: everything after that is lost, and none of it unexplained."""
_ECHO = {"direction": "echo"}
"""Judged at the peer: what a guest noted dies with it."""
_BUSY = {"dirty_mib_s": 15, "dirty_mib": 32}


def _fault(action: str, at: str, **more: Any) -> dict[str, Any]:
    return {"action": action, "at": at, **more}


FAILURES: tuple[Trial, ...] = (
    *(Trial(name=f"cancel-at-{percent}-percent", group="failure", expect=_STAYS,
            migration={"cancel_at_percent": percent, "parameters": {"max-bandwidth": 16 << 20}}) for percent in (10, 50, 90)),
    Trial(name="cancel-at-switchover", group="failure", expect=_STAYS, migration={"cancel_at_switchover": True, "hold_ms": 50}),
    Trial(name="never-converges", group="failure", guest=_BUSY, expect=_STAYS,
          migration={"cancel_after_ms": 3000, "parameters": {"max-bandwidth": 1 << 20, "downtime-limit": 10}}),
    Trial(name="destination-dies-in-precopy", group="failure", expect={"outcome": "completed", "lost": "<= 3"},
          migration={"fault": _fault("kill-destination", "active"), "parameters": {"max-bandwidth": 16 << 20}}),
    Trial(name="destination-dies-at-the-stop", group="failure", expect={"outcome": "completed"},
          migration={"hold_ms": 50, "fault": _fault("kill-destination", "stopped")}),
    Trial(name="destination-dies-after-switchover", group="failure", expect=_DIES, traffic=_ECHO,
          migration={"fault": _fault("kill-destination", "started", after_ms=200)}),
    Trial(name="destination-hangs", group="failure", expect={"outcome": "completed"},
          migration={"hold_ms": 50, "fault": _fault("freeze-destination", "stopped", for_ms=300)}),
    Trial(name="source-dies-in-precopy", group="failure", expect=_DIES, traffic=_ECHO,
          migration={"fault": _fault("kill-source", "active"), "parameters": {"max-bandwidth": 16 << 20}}),
    Trial(name="source-dies-at-the-stop", group="failure", expect=_DIES, traffic=_ECHO,
          migration={"hold_ms": 50, "fault": _fault("kill-source", "stopped")}),
    Trial(name="source-dies-in-postcopy", group="failure", expect={"outcome": "completed"}, traffic=_ECHO,
          migration={"mode": "postcopy", "fault": _fault("kill-source", "started"), "parameters": {"max-postcopy-bandwidth": 4 << 20}}),
    Trial(name="other-memory", group="failure", expect=_FAILS, migration={"obstacle": "other-memory", "capabilities": ["return-path"]}),
    Trial(name="missing-device", group="failure", expect=_FAILS, migration={"obstacle": "missing-device", "capabilities": ["return-path"]}),
    Trial(name="missing-feature", group="failure", expect=_FAILS, migration={"obstacle": "missing-feature", "capabilities": ["return-path"]}),
    Trial(name="missing-device-handover", group="failure", mechanism="tap-handover",
          expect={"outcome": "failed", "lost": 0}, migration={"obstacle": "missing-device", "capabilities": ["return-path"],
          "hold_ms": 50}),
    Trial(name="missing-feature-unnoticed", group="failure", expect=_FAILS, migration={"obstacle": "missing-feature"}),
    Trial(name="missing-feature-unnoticed-handover", group="failure", mechanism="tap-handover", expect={"outcome": "failed", "lost": 0},
          migration={"obstacle": "missing-feature", "hold_ms": 50}),
    Trial(name="missing-feature-from-a-file", group="failure", expect=_FAILS, migration={"obstacle": "missing-feature", "transport": "file"}),
    Trial(name="missing-feature-in-postcopy", group="failure", expect={"outcome": "failed"}, traffic=_ECHO,
          migration={"mode": "postcopy", "obstacle": "missing-feature"}),
    Trial(name="disk-full", group="failure", expect=_FAILS, migration={"obstacle": "full-disk", "transport": "file"}),
    Trial(name="wrong-tls-identity", group="failure", expect=_FAILS,
          migration={"tls": True, "transport": "tcp", "parameters": {"tls-hostname": "someone-else.test"}}),
    Trial(name="link-cut-and-recovered", group="failure",
          migration={"mode": "postcopy", "transport": "tcp", "capabilities": ["postcopy-preempt"], "cut_after_ms": 200,
                     "parameters": {"max-postcopy-bandwidth": 8 << 20}}),
)  # fmt: skip
"""Failures. Without a return path a source may take its migration for completed when the destination refuses, and is continued then."""
