"""Property tests draw the same examples on every machine and every day: a failure is one of the change under test.

And the traffic generator, compiled once for all tests of it.
"""

from __future__ import annotations

import itertools
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings
from swgen import Generator, Launch

from harness.resources import image_resources

settings.register_profile("deterministic", derandomize=True, database=None)
settings.load_profile("deterministic")


@pytest.fixture(scope="session")
def swgen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None or shutil.which("make") is None:
        pytest.skip("cc or make is missing")
    out = tmp_path_factory.mktemp("swgen") / "swgen"
    subprocess.run(["make", "-s", "-C", image_resources() / "guest" / "swgen", f"OUT={out}", out], check=True)
    return out


@pytest.fixture
def launch(swgen: Path, tmp_path: Path) -> Iterator[Launch]:
    with ExitStack() as stack:
        numbers = itertools.count()

        def start(*streams: str, nonce: int = 7, options: tuple[str, ...] = ()) -> Generator:
            generator = Generator(swgen, tmp_path / f"out{next(numbers)}", streams, nonce=nonce, options=options)
            stack.callback(generator.close)
            return generator

        yield start


@pytest.fixture
def port() -> int:
    """A port that was free a moment ago, on both families."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe_socket:
        probe_socket.bind(("::", 0))
        return int(probe_socket.getsockname()[1])
