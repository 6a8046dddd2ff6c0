"""Does a guest's memory arrive as it was, under TCG? Source and destination are compared while both stand still (docs/tcg-dirty-log.md)."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.builds import QemuInstall, build, resolve_qemu
from harness.builds._recipe import images_dir
from harness.errors import TestbedError

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(3600)]

MIB = 1 << 20
PAGE = 4096
MEMORY_MIB = 96
PAGES = 32
LOW, HIGH = MIB, 0x5F40000
NMIS = 0x30000
LIMIT_S = 120
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")

LOSING = {"10.0": "10.0.13", "11.1": "11.1.3"}
"""Releases with two blocks of memory: name in the list, and the version that was seen to lose writes."""


class MissedError(Exception):
    """The migration went on before it could be met where the case wants it; nothing is known."""


class Abort(Exception):  # noqa: N818 - what QEMU did, not a fault of the test
    """The source aborted; the text is its last words."""


class Machine:
    """A QEMU with the guest of dirty_log.S and two blocks of memory, the first of `first_mib`."""

    def __init__(self, name: str, qemu: QemuInstall, folder: Path, rom: Path, *, first_mib: int, options: tuple[str, ...] = ()) -> None:
        self._folder = folder
        self._words = folder / f"{name}.log"
        sizes = (first_mib, MEMORY_MIB - first_mib)
        blocks = [word for number, size in enumerate(sizes)
                  for word in ("-object", f"memory-backend-ram,id=m{number},size={size}M", "-numa", f"node,memdev=m{number}")]
        path = folder / f"{name}.qmp"
        with self._words.open("wb") as words:
            self._process = subprocess.Popen(
                [*DIES_WITH_US, *qemu.start, "-accel", "tcg", "-machine", "q35", "-m", str(MEMORY_MIB), *blocks, "-nodefaults", "-display", "none",
                 "-bios", str(rom), "-qmp", f"unix:{path},server=on,wait=off", *options],
                stdin=subprocess.DEVNULL, stderr=words)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(LIMIT_S)
        wait(lambda: self._socket.connect_ex(str(path)) == 0 or self._process.poll() is not None, every_s=0.02)
        assert self._process.poll() is None, self._words.read_text()
        self._lines = self._socket.makefile("r")
        self._lines.readline()
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: Any) -> Any:
        try:
            self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
            while line := self._lines.readline():
                answer = json.loads(line)
                assert "error" not in answer, (command, answer)
                if "return" in answer:
                    return answer["return"]
        except ConnectionError:
            pass
        assert self._process.wait(LIMIT_S) == -signal.SIGABRT, self._words.read_text()
        raise Abort(self._words.read_text())

    def memory(self, address: int = 0, size_bytes: int = MEMORY_MIB * MIB) -> bytes:
        path = self._folder / "memory"
        self("pmemsave", val=address, size=size_bytes, filename=str(path))
        return path.read_bytes()

    def limit(self, bandwidth_bytes: int) -> None:
        self("migrate-set-parameters", **{"max-bandwidth": bandwidth_bytes, "downtime-limit": 600})

    def progress(self) -> tuple[int, int]:
        """The number of the pass, and the bytes sent so far, of a migration that is under way."""
        answer = self("query-migrate")
        if answer["status"] not in ("setup", "active"):
            raise MissedError(answer["status"])
        memory = answer.get("ram", {})
        return memory.get("dirty-sync-count", 0), memory.get("transferred", 0)

    def nmi(self) -> None:
        """Send one, and return when the guest's first instruction of its handler was carried out."""
        before = self.memory(NMIS, 4)
        self("inject-nmi")
        wait(lambda: self.memory(NMIS, 4) != before)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._lines.close()
        self._socket.close()


def wait(condition: Callable[[], bool], *, every_s: float = 0.01) -> None:
    limit = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < limit
        time.sleep(every_s)


@contextmanager
def machines(*arguments: Any, **options: Any) -> Iterator[tuple[Machine, Machine]]:
    with ExitStack() as stack:
        source = Machine("source", *arguments, **options)
        stack.callback(source.end)
        destination = Machine("destination", *arguments, options=("-S", "-incoming", "defer"), **options)
        stack.callback(destination.end)
        yield source, destination


def differing(qemu: QemuInstall, folder: Path, *, first_mib: int = 64, spread: bool = False, stop_in_pass: int = 2) -> set[int]:
    """Migrate, end the guest's writing in the midst of that pass, and return the addresses of the pages that are not the same on both sides."""
    rom = assembled(folder, spread=spread)
    for _ in range(3):
        try:
            return _differing(qemu, folder, rom, first_mib=first_mib, stop_in_pass=stop_in_pass)
        except MissedError:
            (folder / "m.sock").unlink(missing_ok=True)
    pytest.fail("the host is too slow for this case: three migrations went on unmet")


def _differing(qemu: QemuInstall, folder: Path, rom: Path, *, first_mib: int, stop_in_pass: int) -> set[int]:
    with machines(qemu, folder, rom, first_mib=first_mib) as (source, destination):
        wait(lambda: any(source.memory(LOW, 4)))
        where = f"unix:{folder / 'm.sock'}"
        destination("migrate-incoming", uri=where)
        source.limit(4 * MIB)
        source("migrate", uri=where)
        wait(lambda: source.progress()[1] > 4 * MIB)
        source.nmi()
        if stop_in_pass == 1:
            source.nmi()
        if source.progress()[0] != 1:
            raise MissedError
        if stop_in_pass == 2:
            wait(lambda: source.progress()[0] == 2)
            sent = source.progress()[1]
            wait(lambda: source.progress()[1] > sent + 4 * MIB)  # the rest of the first pass, and both groups
            source.limit(MIB)
            source.nmi()
            if source.progress()[0] != 2:
                raise MissedError
        source.limit(1 << 33)
        wait(lambda: source("query-migrate")["status"] == "completed")
        wait(lambda: destination("query-status")["status"] == "paused")
        here, there = source.memory(), destination.memory()
    return {at for at in range(0, len(here), PAGE) if here[at : at + PAGE] != there[at : at + PAGE]}


def assembled(folder: Path, *, spread: bool) -> Path:
    """The guest, as firmware."""
    if shutil.which("as") is None or shutil.which("ld") is None:
        pytest.skip("no assembler: Debian's package binutils")
    rom, code = folder / "rom.bin", folder / "rom.o"
    symbols = {"PAGES": PAGES, "LOW": LOW, "HIGH": HIGH, "SPREAD": int(spread)}
    words = [word for name, value in symbols.items() for word in ("--defsym", f"{name}={value}")]
    subprocess.run(["as", "--32", *words, "-o", code, Path(__file__).with_name("dirty_log.S")], check=True)
    subprocess.run(["ld", "-m", "elf_i386", "-Ttext", "0", "-e", "0", "--oformat", "binary", "-o", rom, code], check=True)
    return rom


def group(address: int) -> set[int]:
    return {address + number * PAGE for number in range(PAGES)}


@pytest.fixture(scope="module")
def mended() -> QemuInstall:
    """Debian's source with the series alone."""
    try:
        return build("tcg-dirty-log", series=[images_dir() / "series" / "tcg-dirty-log"])
    except TestbedError as error:
        pytest.skip(str(error))


@pytest.fixture(params=LOSING)
def stock(request) -> QemuInstall:
    try:
        qemu = resolve_qemu(request.param)
    except TestbedError as error:
        pytest.skip(str(error))
    if qemu.version != LOSING[request.param]:
        pytest.skip(f"what {qemu.version} does is not known")
    return qemu


def test_a_qemu_that_resets_no_tlb_loses_what_is_written_in_a_later_pass(tmp_path):
    qemu = resolve_qemu("system")
    if not qemu.version.startswith("7.2."):
        pytest.skip(f"7.2 is known to, not {qemu.version}")
    assert differing(qemu, tmp_path) >= group(LOW) | group(HIGH)
    assert differing(qemu, tmp_path, stop_in_pass=1) == set(), "what the start of the dirty log does covers the first pass"


@pytest.mark.parametrize("spread", [False, True], ids=["nothing new in the block", "one page is new in the block"])
def test_a_stock_qemu_loses_what_is_written_in_a_second_block(stock, spread, tmp_path):
    assert differing(stock, tmp_path, spread=spread) == group(HIGH)


def test_a_stock_qemu_aborts_when_the_second_block_is_the_larger(stock, tmp_path):
    with pytest.raises(Abort, match="tlb_reset_dirty_range_all: Assertion"):
        differing(stock, tmp_path, first_mib=32, spread=True)


@pytest.mark.parametrize("stop_in_pass", [1, 2])
@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("first_mib", [64, 32])
def test_nothing_is_lost_with_the_series(mended, first_mib, spread, stop_in_pass, tmp_path):
    assert differing(mended, tmp_path, first_mib=first_mib, spread=spread, stop_in_pass=stop_in_pass) == set()
