"""The table of ways to migrate: complete for the QEMUs at hand, sound in itself, and what it refuses."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from harness.builds import resolve_qemu
from harness.cache import cache_dir
from harness.errors import EnvironmentLackError, FeatureLackError, UsageError
from harness.migrate.checks import check_plan
from harness.migrate.modes import (
    CAPABILITIES,
    MODES,
    PARAMETERS,
    TRANSPORTS,
    Circumstances,
    Sides,
    effective_parameters,
    find_setting,
    settings_for,
)
from harness.migrate.trials import TRIALS, exercised
from harness.model.load import KNOWN_NAMES
from harness.model.plan import MigrationPlan
from harness.model.scenario import GuestSection, MigrationMode, MigrationSection, Scenario, Transport
from harness.vm.discovery import Features, discover

QEMUS = ("system", "7.2", "10.0", "11.1", "reference")
EVERY_SETTING = [*CAPABILITIES.values(), *PARAMETERS.values(), *MODES.values(), *TRANSPORTS.values()]


def features_of(name: str) -> Features:
    """A QEMU's features; a skip where it isn't there (nothing is fetched or built here)."""
    try:
        return asyncio.run(discover(resolve_qemu(name), cache=cache_dir()))
    except EnvironmentLackError as error:
        pytest.skip(str(error))
    except UsageError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("qemu", QEMUS)
def test_the_table_knows_everything_that_a_qemu_lists(qemu):
    features = features_of(qemu)
    unknown = [name for name in features.capabilities if find_setting("capability", name) is None]
    unknown += [name for name in features.parameters if find_setting("parameter", name) is None]
    assert unknown == [], f"QEMU {features.version} lists what harness/migrate/modes.py does not know"


@pytest.mark.parametrize("qemu", QEMUS)
def test_everything_that_a_qemu_lists_is_exercised_or_skipped_with_a_reason(qemu):
    features = features_of(qemu)
    capabilities, parameters = exercised()
    left = [name for name in features.capabilities if name not in capabilities and not CAPABILITIES[name].skip]
    left += [name for name in features.parameters if name not in parameters and not PARAMETERS[name].skip]
    # Handing the TAP over has a mechanism, and tests, of its own.
    assert set(left) <= {"backend-transfer", "local"}


def test_nothing_is_both_skipped_and_exercised():
    capabilities, parameters = exercised()
    assert not [name for name in capabilities if CAPABILITIES[name].skip]
    assert not [name for name in parameters if PARAMETERS[name].skip]


def test_the_names_that_scenario_files_are_checked_against_are_the_tables():
    assert set(KNOWN_NAMES["capability"]) == set(CAPABILITIES)
    assert set(KNOWN_NAMES["parameter"]) == set(PARAMETERS)


def test_modes_and_transports_are_all_there():
    assert set(MODES) == set(MigrationMode)
    assert set(TRANSPORTS) == set(Transport)


@pytest.mark.parametrize("setting", EVERY_SETTING, ids=lambda setting: setting.name)
def test_conditions_name_things_that_exist(setting):
    nothing = Circumstances(mode=MigrationMode.PRECOPY, transport=Transport.UNIX, capabilities=frozenset(), parameters={})
    tables = {"capability": CAPABILITIES, "mode": MODES, "transport": TRANSPORTS}
    for condition in (*setting.needs, *setting.excludes):
        nothing.meets(condition)  # knows the kind
        kind, _, values = condition.partition(":")
        for value in values.split("|"):
            if kind == "parameter":
                assert value.partition("=")[0] in PARAMETERS
            elif kind in tables:
                assert value in tables[kind]
    assert setting.name not in setting.former


def test_trials_have_names_of_their_own_and_say_what_scenarios_can_say():
    assert len({trial.name for trial in TRIALS}) == len(TRIALS)
    for trial in TRIALS:
        msgspec.convert(trial.migration, MigrationSection)
        msgspec.convert(trial.guest, GuestSection)


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.name)
def test_each_trial_passes_the_checks_of_a_qemu_that_has_everything(trial):
    check(
        {**trial.migration}, guest=trial.guest, mechanism=trial.mechanism, accelerator="kvm" if trial.name == "dirty-limit" else "tcg"
    )


EVERYTHING = Features(
    name="all", version="99.0.0", package="", build_id="x", kvm=True, capabilities=tuple(sorted(CAPABILITIES)),
    parameters=tuple(sorted(PARAMETERS)), parameter_values={"multifd-compression": ("none", "zlib", "zstd")}, migration_properties=(),
    commands=(), events=(), netdev_options={}, device_properties={}, filter_properties={}, trace_events=(), machines=(),
)  # fmt: skip


def check(migration, *, guest=None, mechanism="none", accelerator="tcg", features=EVERYTHING):
    section = msgspec.convert(migration, MigrationSection)
    plan = MigrationPlan.from_section(section, mechanism=mechanism)
    scenario = Scenario(name="x", migration=section, guest=msgspec.convert(guest or {}, GuestSection))
    check_plan(plan, scenario=scenario, source=features, destination=features, accelerator=accelerator)


REFUSED = [
    ({"capabilities": ["multifd"], "transport": "exec"}, "multifd needs transport unix or tcp or tcp6 or file", "set migration.transport"),
    ({"capabilities": ["multifd", "xbzrle"]}, "multifd and capability xbzrle exclude each other", "leave one out"),
    ({"capabilities": ["multifd"], "mode": "postcopy"}, "multifd and capability postcopy-ram exclude each other", "leave one out"),
    ({"capabilities": ["switchover-ack"]}, "switchover-ack needs capability return-path", "migration.capabilities: return-path"),
    ({"capabilities": ["postcopy-preempt"]}, "postcopy-preempt needs capability postcopy-ram", "postcopy-ram"),
    ({"mode": "postcopy", "transport": "exec"}, "mode postcopy needs transport", "set migration.transport"),
    ({"mode": "postcopy", "transport": "file"}, "mode postcopy needs transport", "set migration.transport"),
    ({"capabilities": ["mapped-ram"]}, "mapped-ram needs transport file", "set migration.transport to file"),
    ({"mode": "background-snapshot"}, "background-snapshot needs transport file", "set migration.transport to file"),
    ({"mode": "background-snapshot", "transport": "file", "hold_ms": 5}, "has no switchover", "hold_ms to 0"),
    ({"mode": "cpr-transfer"}, "cpr-transfer needs shared memory", "guest.shared_memory to true"),
    ({"capabilities": ["x-ignore-shared"]}, "x-ignore-shared needs shared memory", "guest.shared_memory to true"),
    ({"capabilities": ["dirty-bitmaps"]}, "dirty-bitmaps needs a disk", 'guest.disk to "raw"'),
    ({"capabilities": ["zero-copy-send", "multifd"], "transport": "tcp", "tls": True}, "zero-copy-send and TLS exclude", "leave one out"),
    ({"capabilities": ["zero-copy-send", "multifd"]}, "zero-copy-send needs transport tcp", "set migration.transport"),
    ({"tls": True, "transport": "fd"}, "transport fd and TLS exclude", "leave one out"),
    ({"parameters": {"tls-hostname": "x"}}, "tls-hostname needs TLS", "migration.tls to true"),
    ({"parameters": {"multifd-channels": 2}}, "multifd-channels needs capability multifd", "multifd"),
    ({"parameters": {"xbzrle-cache-size": 4096}}, "xbzrle-cache-size needs capability xbzrle", "xbzrle"),
    ({"mode": "cpr-exec", "transport": "file", "hold_ms": 50}, "can't be held", "cpr-transfer"),
    ({"cut_after_ms": 5}, "only postcopy can recover", "cut_after_ms"),
    ({"cancel_at_percent": 5, "cancel_at_switchover": True}, "cancelled once", "leave one out"),
]


@pytest.mark.parametrize(("migration", "wrong", "mend"), REFUSED)
def test_what_can_not_work_is_refused_with_a_mend(migration, wrong, mend):
    with pytest.raises(UsageError) as caught:
        check(migration)
    assert wrong in str(caught.value)
    assert mend in str(caught.value)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(UsageError) as caught:
        check({"capabilities": ["multifd", "xbzrle", "mapped-ram"], "mode": "postcopy", "transport": "exec"})
    assert str(caught.value).count("mend:") >= 4


def test_what_only_the_accelerator_lacks_is_a_lack_of_this_environment():
    with pytest.raises(FeatureLackError, match="dirty-limit needs accelerator kvm"):
        check({"capabilities": ["dirty-limit"]})
    check({"capabilities": ["dirty-limit"]}, accelerator="kvm")


def test_a_missing_name_says_since_when_there_is_one():
    old = msgspec.structs.replace(EVERYTHING, version="7.2.0", capabilities=tuple(n for n in CAPABILITIES if n != "mapped-ram"))
    with pytest.raises(FeatureLackError, match=r"7\.2\.0 has no migration capability 'mapped-ram'; it came with 9\.0"):
        check({"capabilities": ["mapped-ram"], "transport": "file"}, features=old)


def test_a_missing_value_is_named():
    with pytest.raises(FeatureLackError, match="multifd-compression=qatzip"):
        check({"capabilities": ["multifd"], "parameters": {"multifd-compression": "qatzip"}})


def test_what_belongs_to_one_side_is_set_there_only():
    capabilities = ("auto-converge", "postcopy-blocktime", "multifd", "of-a-patched-qemu")
    parameters = {"max-bandwidth": 1, "tls-authz": "a", "announce-rounds": 3}
    assert settings_for(Sides.SOURCE, capabilities, parameters) == (
        ["auto-converge", "multifd", "of-a-patched-qemu"], {"max-bandwidth": 1, "announce-rounds": 3},
    )  # fmt: skip
    assert settings_for(Sides.DESTINATION, capabilities, parameters) == (
        ["postcopy-blocktime", "multifd", "of-a-patched-qemu"], {"tls-authz": "a", "announce-rounds": 3},
    )  # fmt: skip


def test_parameters_that_follow_from_the_mode():
    assert effective_parameters(MigrationMode.CPR_REBOOT, {}) == {"mode": "cpr-reboot"}
    assert effective_parameters(MigrationMode.PRECOPY, {"x": 1}, tls=True) == {"x": 1, "tls-creds": "tls0"}
