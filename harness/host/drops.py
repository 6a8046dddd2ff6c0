"""Drop chosen packets at a port, by a classic BPF filter of the kernel's traffic control."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence

from harness.errors import EnvironmentLackError
from harness.host.deadline import Deadline
from harness.host.network import Port
from harness.host.warden import Warden

__all__ = ["PortDrops"]

_CALL_S = 10.0


class PortDrops:
    """A filter at a port's ingress, behind the capture there and before the bridge. It goes with the lab."""

    def __init__(self, warden: Warden, port: Port) -> None:
        self._warden, self._port = warden, port

    @classmethod
    async def install(cls, warden: Warden, *, port: Port, program: str) -> PortDrops:
        """`program` is bytecode as `tc filter ... bpf da bytecode` takes it. `EnvironmentLackError` where the kernel has no such filter."""
        drops = cls(warden, port)
        await drops._tc(["qdisc", "add", "dev", port.name, "clsact"])
        await drops._tc(["filter", "add", "dev", port.name, "ingress", "protocol", "all", "bpf", "da", "bytecode", program])
        return drops

    async def count(self) -> int:
        """How many packets it dropped, by the kernel's own counter."""
        shown = json.loads(await self._tc(["-s", "-j", "qdisc", "show", "dev", self._port.name]))
        return sum(int(each["drops"]) for each in shown if each["kind"] == "clsact")

    async def _tc(self, words: Sequence[str]) -> str:
        program = shutil.which("tc", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if program is None:
            raise EnvironmentLackError("packets can't be dropped on purpose: there is no tc", hint="install iproute2")
        process = await self._warden.spawn("tc", [program, *words])
        if await process.wait(Deadline(_CALL_S)) != 0:
            raise EnvironmentLackError(
                f"packets can't be dropped on purpose: {process.error('it was refused').message}",
                hint="use a kernel with CONFIG_NET_CLS_BPF and CONFIG_NET_SCH_INGRESS (modprobe cls_bpf sch_ingress)",
            )
        return process.read_output().decode()
