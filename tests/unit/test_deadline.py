"""Deadlines: what ends a wait, and that a cancelled one ends."""

from __future__ import annotations

import asyncio

import pytest

from harness.errors import DeadlineError
from harness.host.deadline import Deadline


def test_what_is_there_in_time_is_given():
    async def body() -> str:
        return await Deadline(5.0).wait(asyncio.sleep(0, "there"), awaited="it")

    assert asyncio.run(body()) == "there"


def test_what_is_not_there_in_time_is_named():
    async def body() -> None:
        await Deadline(0.01).wait(asyncio.Event().wait(), awaited="the moon", seen=lambda: "clouds")

    with pytest.raises(DeadlineError, match=r"timed out after 0\.01 s waiting for the moon; seen last: clouds"):
        asyncio.run(body())


def test_a_timeout_of_the_awaited_is_its_own():
    async def own() -> None:
        raise TimeoutError("mine")

    async def body() -> None:
        await Deadline(5.0).wait(own(), awaited="it")

    with pytest.raises(TimeoutError, match="mine"):
        asyncio.run(body())


def test_what_is_done_already_needs_no_time():
    async def body() -> int:
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        done.set_result(7)
        return await Deadline(0.0).wait(done, awaited="it")

    assert asyncio.run(body()) == 7


def test_a_wait_cancelled_in_the_moment_of_its_answer_is_cancelled():
    """A loop that waits again and again must end when it is cancelled, whatever arrives in that moment."""

    async def body() -> bool:
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(Deadline(60.0).wait(answer, awaited="an answer"))
        await asyncio.sleep(0)
        answer.set_result(None)
        task.cancel()
        await asyncio.wait({task})
        return task.cancelled()

    assert asyncio.run(body())
