"""A conftest for test folders in which no guest is booted: pairs are made of finished recordings."""

CONFTEST = '''
import contextlib, sys
sys.path.insert(0, {unit!r})
import pytest
from bundle_factory import make_run
from harness.errors import DeadlineError, FeatureLackError
from harness.plugin import pair, pool
from harness.store.rundir import RunDirectory
from harness.plugin.told import figures_of

OPENED = []
STATE = {{"status": "running", "capabilities": {{}}}}

class Lab:
    peer_machine = None

class FakePair:
    busy = False
    def __init__(self, settings):
        self.settings, self.properties, self.directories, self.lab = settings, {{}}, [], Lab()
        self.number = len(OPENED)
        self.broken = []
        self.dirty = False
    def lend(self, settings):
        self.settings, self.properties, self.directories, self.broken = settings, {{}}, [], []
    def record(self):
        settings = self.settings
        run = make_run(settings.results, run_id=f"20260102T030405Z-demo-{{len(OPENED)}}{{len(self.directories)}}abcd")
        self.directories.append(run.path)
        self.properties |= figures_of(run.result(), number=len(self.directories))
        return run.result().streams[0]
    def keep(self, error):
        if self.directories:
            return self.directories[-1]
        self.broken.append(RunDirectory.create(self.settings.results, "wreck").path)
        error.kept = str(self.broken[-1])
        return self.broken[-1]
    def broke(self):
        raise DeadlineError("the guest was not ready", hint="see its console")
    def lacks(self):
        raise FeatureLackError("QEMU 7.2 lacks netpass")

@contextlib.contextmanager
def opened(settings, *, loop):
    OPENED.append(settings)
    yield FakePair(settings)

@pytest.fixture(autouse=True)
def _fake(monkeypatch):
    monkeypatch.setattr(pair.GuestPair, "open", opened)
    monkeypatch.setattr(pool, "state_of", lambda pair: {{"status": "paused" if pair.dirty else "running"}})

@pytest.fixture
def opened_settings():
    return OPENED
'''
