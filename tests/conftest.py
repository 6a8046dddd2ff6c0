"""Shared by all tests: a runner for coroutines that tests are written around, and the QEMU of those that name none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from harness.builds import resolve_qemu
from harness.cache import cache_dir
from harness.errors import SwitchoverError
from harness.host.accel import choose_accelerator
from harness.model.defects import loses_writes
from harness.model.scenario import Accelerator

STOCK = "10.0"

pytest_plugins = ["pytester"]


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Run a coroutine to its end."""
    return asyncio.run


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Where the host's QEMU would lose what a migrating guest writes, tests that name no QEMU get another stock one, if it was fetched.

    That defect (docs/tcg-dirty-log.md) makes any test of a migrated guest fail now and then; the nightly matrix has that QEMU all the same.
    """
    guests = [item for item in items if {"guest_pair", "qemu"} & set(getattr(item, "fixturenames", ()))]
    if not guests or config.getoption("--switchover-qemu") or not _system_loses_writes(config.getoption("--switchover-accel")):
        return
    try:
        resolve_qemu(STOCK, cache_dir())
    except SwitchoverError:
        return
    for item in guests:
        marker = item.get_closest_marker("switchover")
        words = marker.kwargs if marker is not None else {}
        item.add_marker(pytest.mark.switchover(**{"qemu": STOCK} | words), append=False)


def _system_loses_writes(accel: str) -> bool:
    try:
        system = resolve_qemu("system", cache_dir())
        accelerator, _ = asyncio.run(choose_accelerator(Accelerator(accel), argv_prefix=system.argv_prefix, cache=cache_dir()))
    except (SwitchoverError, ValueError):  # the tests say what is wrong
        return False
    return loses_writes(system.version, accelerator=accelerator)
