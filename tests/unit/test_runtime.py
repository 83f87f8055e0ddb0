"""One loop per process, used from its threads."""

import asyncio
import threading

import pytest

from gaelp_tasks.runtime import Runtime, shared_runtime


@pytest.fixture
def runtime():
    made = Runtime()
    yield made
    if not made.loop.is_closed():
        made.close()


def test_coroutines_of_all_threads_run_on_the_one_loop(runtime):
    async def where():
        return asyncio.get_running_loop(), threading.current_thread()

    seen = []
    threads = [threading.Thread(target=lambda: seen.append(runtime.run(where()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) == {(runtime.loop, runtime._thread)}
    assert len(seen) == 4
    assert runtime._thread is not threading.current_thread()


def test_what_a_coroutine_raises_comes_out(runtime):
    async def fail():
        raise KeyError("x")

    with pytest.raises(KeyError):
        runtime.run(fail())


def test_waiting_on_the_loop_for_the_loop_is_refused_at_once(runtime):
    async def never():
        pytest.fail("it must not run")

    async def wait_for_itself():
        runtime.run(never())

    with pytest.raises(RuntimeError, match="await"):
        runtime.run(wait_for_itself())


def test_a_thread_that_is_interrupted_takes_its_coroutine_with_it(runtime, monkeypatch):
    ended = threading.Event()

    class Interrupted:
        def __init__(self, future):
            self._future = future

        def result(self):
            raise KeyboardInterrupt

        def cancel(self):
            return self._future.cancel()

    submit = asyncio.run_coroutine_threadsafe
    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", lambda *args: Interrupted(submit(*args)))

    async def wait():
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    begun = threading.Event()

    async def begin_and_wait():
        begun.set()
        await wait()

    with pytest.raises(KeyboardInterrupt):
        runtime.run(begin_and_wait())
    monkeypatch.undo()
    assert ended.wait(10) or not begun.is_set()


def test_closing_ends_what_runs_and_the_thread(runtime):
    async def begin():
        async def wait():
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(True)

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        return task

    ended = []
    task = runtime.run(begin())
    runtime.close()
    assert task.cancelled()
    assert ended == [True]
    assert not runtime._thread.is_alive()
    assert runtime.loop.is_closed()


def test_the_shared_runtime_is_one_per_process():
    assert shared_runtime() is shared_runtime()
    assert shared_runtime()._thread.daemon
