"""Discovery on the host's own QEMU, checked against what that QEMU prints about itself."""

from __future__ import annotations

import asyncio
import re
import subprocess
from pathlib import Path

import msgspec
import pytest

from harness.builds import QemuInstall, resolve_qemu
from harness.errors import DeadlineError, EnvironmentLackError, ProcessError
from harness.vm import discovery
from harness.vm.discovery import FEATURES, Features, discover


@pytest.fixture(scope="module")
def qemu() -> QemuInstall:
    try:
        return resolve_qemu("system")
    except EnvironmentLackError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def found(qemu: QemuInstall, cache: Path) -> Features:
    return asyncio.run(discover(qemu, cache=cache))


def printed(qemu: QemuInstall, *arguments: str) -> str:
    answer = subprocess.run([*qemu.start, *arguments], capture_output=True, text=True, check=True, timeout=60)
    return answer.stdout


def test_identity(qemu: QemuInstall, found: Features) -> None:
    assert found.version == qemu.version
    assert (found.name, found.build_id) == (qemu.name, qemu.build_id)


def test_names_that_every_supported_qemu_has(found: Features) -> None:
    wishes = ["capability:xbzrle", "capability:postcopy-ram", "parameter:downtime-limit", "parameter:announce-initial",
              "command:migrate-continue", "command:query-migrate", "event:STOP", "event:RESUME", "event:MIGRATION",
              "netdev-option:tap.fds", "netdev-option:tap.vhost", "filter:filter-buffer", "filter-property:filter-buffer.interval",
              "filter-property:filter-redirector.outdev", "device-property:virtio-net-pci.mq", "trace:runstate_set",
              "migration-property:store-global-state", "machine:q35", "machine:pc", "machine-property:hpet", "machine-property:vmport",
              "pause-before-switchover", "return-path", "postcopy", "multifd", "ring-status"]  # fmt: skip
    assert found.lacking(wishes) == []


def test_machines_are_those_that_it_lists(qemu: QemuInstall, found: Features) -> None:
    lines = printed(qemu, "-machine", "help").splitlines()[1:]
    assert {name for each in found.machines for name in (each.name, each.alias) if name} == {line.split()[0] for line in lines}
    (default,) = (line.split()[0] for line in lines if line.endswith("(default)"))
    assert [each.name for each in found.machines if each.default] == [default]


def test_netdevs_are_those_that_it_lists(qemu: QemuInstall, found: Features) -> None:
    listed = set(printed(qemu, "-netdev", "help").split("\n")[1:]) - {""}
    assert listed <= set(found.netdev_options)
    # for -net, which has its own help; and the schema of 7.2 has netmap whether it was compiled in or not
    assert set(found.netdev_options) - listed <= {"none", "nic", "netmap"}


def test_properties_are_those_that_it_lists(qemu: QemuInstall, found: Features) -> None:
    listed = set(re.findall(r"^  (\S+)=", printed(qemu, "-device", "virtio-net-pci,help"), re.MULTILINE))
    assert len(listed) > 30
    assert listed == set(found.device_properties["virtio-net-pci"])


def test_trace_events_are_those_that_it_lists(qemu: QemuInstall, found: Features) -> None:
    listed = set(printed(qemu, "-trace", "help").split())
    assert len(listed) > 1000
    assert listed == set(found.trace_events)


def test_values_of_a_parameter(found: Features) -> None:
    assert {"none", "zlib"} <= set(found.parameter_values["multifd-compression"])
    assert "downtime-limit" not in found.parameter_values


def test_every_feature_has_an_answer(found: Features) -> None:
    reasons = {feature: found.lacking([feature]) for feature in FEATURES}
    for feature, said in reasons.items():
        assert found.has(feature) is (said == [])
        assert all(reason.startswith(f"QEMU {found.version} (system) lacks {feature}: no ") for reason in said)


def test_it_is_asked_once(qemu: QemuInstall, cache: Path, found: Features) -> None:
    unstartable = msgspec.structs.replace(qemu, name="same build", argv_prefix=("/nonexistent",))
    assert asyncio.run(discover(unstartable, cache=cache)) == msgspec.structs.replace(found, name="same build")


@pytest.mark.parametrize("spoilt", [b"", b"{", b'{"schema_version":99}'])
def test_a_spoilt_cache_is_asked_again(qemu: QemuInstall, found: Features, tmp_path: Path, spoilt: bytes) -> None:
    memory = tmp_path / "features" / f"{qemu.build_id}.json"
    memory.parent.mkdir()
    memory.write_bytes(spoilt)
    assert asyncio.run(discover(qemu, cache=tmp_path)) == found
    assert msgspec.json.decode(memory.read_bytes(), type=Features) == found
    assert list(memory.parent.iterdir()) == [memory]


def test_a_cache_that_can_not_be_written_is_no_error(qemu: QemuInstall, found: Features, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    assert asyncio.run(discover(qemu, cache=in_the_way)) == found


def test_several_at_once(qemu: QemuInstall, found: Features, tmp_path: Path) -> None:
    async def both() -> list[Features]:
        return await asyncio.gather(discover(qemu, cache=tmp_path), discover(qemu, cache=tmp_path))

    assert asyncio.run(both()) == [found, found]
    assert [path.name for path in (tmp_path / "features").iterdir()] == [f"{qemu.build_id}.json"]


def test_a_qemu_that_dies_says_why(qemu: QemuInstall, tmp_path: Path) -> None:
    broken = msgspec.structs.replace(qemu, argv_prefix=(qemu.path, "-no-such-option"))
    with pytest.raises(ProcessError, match=r"(?s)could not be asked.*exit status 1.*-no-such-option.*invalid option"):
        asyncio.run(discover(broken, cache=tmp_path))
    assert not (tmp_path / "features").exists()


def test_a_qemu_that_says_nothing_is_named(
    qemu: QemuInstall, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "_DEADLINE_S", 0.5)
    mute = msgspec.structs.replace(qemu, argv_prefix=("/bin/sh", "-c", "sleep 60", "qemu"), data_dirs=())
    with pytest.raises(DeadlineError, match="waiting for the QMP greeting of QEMU system"):
        asyncio.run(discover(mute, cache=tmp_path))
