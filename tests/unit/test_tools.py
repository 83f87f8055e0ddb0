"""Tools: schemas from type hints, arguments checked before the call, failures told to the model."""

import asyncio
import threading
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from gaelp_tasks.tools import RESULT_CHARS, Tool


class Point(BaseModel):
    x: int
    title: str = ""


def plot(
    point: Point, colour: Literal["red", "blue"] = "red", json: Annotated[int, Field(description="how")] = 1
) -> str:
    """Draw a point
    on the plane.

    What it does beside that is nobody's business.

    Args:
        point: where to draw
        colour (str): of the pen
    """
    return f"{colour} at {point.x}, {json}"


async def run(function, *, timeout_s=10.0, **arguments):
    return await Tool.of(function, "f").run(arguments, timeout_s=timeout_s)


def test_a_schema_tells_types_defaults_and_descriptions():
    schema = Tool.of(plot, "plot").schema
    assert schema["type"] == "function"
    function = schema["function"]
    assert (function["name"], function["description"]) == ("plot", "Draw a point on the plane.")
    parameters = function["parameters"]
    assert (parameters["required"], parameters["additionalProperties"]) == (["point"], False)
    assert parameters["properties"]["colour"] == {
        "default": "red",
        "description": "of the pen",
        "enum": ["red", "blue"],
        "type": "string",
    }
    assert parameters["properties"]["json"] == {"default": 1, "description": "how", "type": "integer"}
    assert parameters["$defs"]["Point"]["properties"].keys() == {"x", "title"}


async def test_arguments_become_what_the_hints_say_and_defaults_stay_the_functions_own():
    done = await run(plot, point={"x": "3"}, colour="blue")
    assert (done.text, done.result, done.failed) == ("blue at 3, 1", "blue at 3, 1", False)
    assert done.data() == {
        "name": "f",
        "arguments": {"point": {"x": "3"}, "colour": "blue"},
        "result": "blue at 3, 1",
    }


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "point: Field required"),
        ({"point": {"x": "SECRET"}}, "point.x: Input should be a valid integer"),
        ({"point": {"x": 1}, "size": 2}, "size: Extra inputs"),
        ({"point": {"x": 1}, "colour": "green"}, "colour: Input should be 'red' or 'blue'"),
    ],
)
async def test_arguments_that_do_not_fit_are_told_to_the_model_and_nothing_is_called(arguments, told):
    def never(point: Point, colour: Literal["red", "blue"] = "red") -> str:
        raise AssertionError

    done = await run(never, **arguments)
    assert done.failed
    assert told in done.text
    assert "SECRET" not in done.text
    assert done.data()["error"] == done.text


async def test_an_error_in_a_tool_is_one_sentence_for_the_model():
    def fail(a: int) -> int:
        raise KeyError("no such row\nTraceback: much more")

    done = await run(fail, a=1)
    assert done.failed
    assert "KeyError" in done.text
    assert "\n" not in done.text


async def test_a_synchronous_tool_runs_in_a_thread_and_an_asynchronous_one_on_the_loop():
    def thread() -> bool:
        return threading.current_thread() is threading.main_thread()

    async def loop() -> bool:
        return threading.current_thread() is threading.main_thread()

    assert [(await run(function)).result for function in (thread, loop)] == [False, True]


async def test_a_tool_that_takes_too_long_is_given_up():
    async def hang() -> None:
        await asyncio.Event().wait()

    done = await run(hang, timeout_s=0.01)
    assert done.failed
    assert "within 0.01 s" in done.text


@pytest.mark.parametrize("error", [SystemExit(3), StopIteration(), KeyboardInterrupt()], ids=repr)
async def test_a_tool_that_wants_to_end_the_process_ends_only_itself(error):
    def leave() -> None:
        raise error

    async def leave_the_loop() -> None:
        raise SystemExit(3)

    for function in (leave, leave_the_loop):
        done = await run(function)
        assert done.failed
        assert "It failed" in done.text


async def test_tools_that_hang_take_no_threads_from_others():
    free = threading.Event()

    def hang() -> None:
        free.wait()

    hanging = [run(hang, timeout_s=0.05) for _ in range(64)]
    try:
        assert all(done.failed for done in await asyncio.gather(*hanging))
        assert (await run(lambda: 5)).result == 5
    finally:
        free.set()


async def test_a_cancelled_run_cancels_its_tool():
    reached = asyncio.Event()

    async def hang() -> None:
        reached.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(run(hang))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_results_are_json_bounded_and_well_formed():
    async def of(value):
        def give() -> object:
            return value

        return await run(give)

    assert (await of(Point(x=1))).text == '{"x": 1, "title": ""}'
    assert (await of(None)).text == "null"
    assert (await of(["\u20ac"])).text == '["\u20ac"]'
    assert (await of("half \ud83d")).text == "half ?"
    assert "PydanticSerializationError" in (await of(object())).text
    long = await of("x" * (RESULT_CHARS + 7))
    assert long.text.endswith("... (7 more characters were cut)")
    assert long.result == long.text


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda *a: a, "cannot be given by its name"),
        (lambda **a: a, "cannot be given by its name"),
        (lambda a: a, "type hint"),
        (5, "must be a function, not int"),
    ],
)
def test_what_no_schema_can_say_is_no_tool(function, told):
    with pytest.raises(ValueError, match=told):
        Tool.of(function, "f")


def test_hints_that_mean_nothing_to_json_are_no_tool():
    class Opaque:
        pass

    def first(a: Opaque) -> None: ...

    def second(a: "Nowhere") -> None: ...  # noqa: F821  that is the point

    for function in (first, second):
        with pytest.raises(ValueError, match="has no schema"):
            Tool.of(function, "f")


async def test_an_object_that_can_be_called_and_a_method_are_tools():
    class Adder:
        def __call__(self, a: int) -> int:
            return a + 1

        def twice(self, a: int) -> int:
            return 2 * a

    assert (await run(Adder(), a=2)).result == 3
    assert (await run(Adder().twice, a=2)).result == 4
