"""What the witnesses share: other people's programs, whose output is kept as it is."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from harness.errors import EnvironmentLackError
from harness.host.deadline import Deadline
from harness.model.scenario import Peer, TrafficKind, TrafficSection
from harness.traffic.endpoint import Endpoint, Output

__all__ = ["keep", "require_programs", "until_listening"]

_PROGRAMS = {TrafficKind.ICMP: ("ping", "iputils-ping"), TrafficKind.IPERF3: ("iperf3", "iperf3"), TrafficKind.IRTT: ("irtt", "irtt")}
"""Program and Debian package. Guests have them all."""


def require_programs(sections: Iterable[TrafficSection], *, peer: Peer) -> None:
    """`EnvironmentLackError` if a witness would have to run on this host, and isn't there."""
    if peer is Peer.GUEST:
        return
    for kind in dict.fromkeys(section.kind for section in sections):
        program, package = _PROGRAMS.get(kind, ("", ""))
        if program and shutil.which(program) is None:
            raise EnvironmentLackError(
                f"{program} is not installed, and traffic of kind {kind} needs it at the peer",
                hint=f'apt-get install {package}, or take network.peer = "guest"',
            )


def keep(output: Output, path: Path) -> None:
    """Write a program's output, and what it complained about beside it."""
    path.write_bytes(output.content)
    if output.messages.strip():
        path.with_suffix(".messages").write_text(output.messages)


async def until_listening(endpoint: Endpoint, port: int, *, who: str, udp: bool = False, deadline: Deadline) -> None:
    """Wait for a server at an endpoint."""

    async def there() -> bool:
        return await endpoint.listens(port, udp=udp)

    await deadline.within(10.0).poll(there, awaited=f"{who} at {endpoint.name} to listen on port {port}", interval_s=0.02)
