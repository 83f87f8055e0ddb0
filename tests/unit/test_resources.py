"""Quantities: read as Kubernetes reads them, told back as text that reads the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gaelp_tasks.models.resources import MOST, Quantities, Resources

numbers = st.builds(
    Resources,
    cpu_milli=st.integers(0, MOST),
    memory_bytes=st.integers(0, MOST),
    gpus=st.integers(0, MOST),
    storage_bytes=st.integers(0, MOST),
)


def test_the_seeds_quantities_are_read():
    read = Resources.read({"cpu": "4", "memory": "8Gi", "gpu": "1"})
    assert read == Resources(cpu_milli=4000, memory_bytes=8 * 1024**3, gpus=1)
    assert read.quantities() == {"cpu": "4", "memory": "8Gi", "gpu": "1"}


@pytest.mark.parametrize(
    ("name", "text", "number"),
    [
        ("cpu", "500m", 500),
        ("cpu", "0.5", 500),
        ("cpu", ".1", 100),
        ("cpu", "1e1", 10_000),
        ("cpu", 4, 4000),
        ("cpu", 0.25, 250),
        ("cpu", "0.0001", 1),
        ("memory", "128974848", 128974848),
        ("memory", "129e6", 129_000_000),
        ("memory", "129M", 129_000_000),
        ("memory", "123Mi", 123 * 1024**2),
        ("memory", "1.5Gi", 3 * 1024**3 // 2),
        ("memory", "1k", 1000),
        ("memory", "1Ki", 1024),
        ("memory", "4E", 4 * 10**18),
        ("memory", "0.5", 1),
        ("gpu", 2, 2),
        ("gpu", "2.0", 2),
        ("storage", "100G", 100 * 10**9),
    ],
)
def test_a_quantity_is_read_and_rounded_up(name, text, number):
    read = Resources.read({name: text})
    assert max(read.model_dump().values()) == number


@pytest.mark.parametrize(
    "text", ["", " 4", "-1", "4 Gi", "8GiB", "8gi", "1K", "m", "1e", "1e999", "NaN", "٤"]
)
def test_what_is_no_quantity_is_refused(text):
    with pytest.raises(ValidationError):
        Resources.read({"memory": text})


@pytest.mark.parametrize(
    "given",
    [
        *({"gpu": "0.5"}, {"gpu": "500m"}, {"memory": "8Ei"}, {"memory": "1" * 33}, {"cpu": "10000E"}),
        *({"cpu": True}, {"cpu": None}, {"cpu": [4]}, {"cpu": float("nan")}, {"disk": "1Gi"}),
    ],
)
def test_what_no_machine_has_is_refused(given):
    with pytest.raises(ValidationError):
        Resources.read(given)


@given(numbers)
def test_numbers_told_as_text_read_back_the_same(resources):
    assert Resources.read(resources.quantities()) == resources


def test_quantities_stay_as_they_were_written():
    assert Quantities(cpu="4000m", memory="8192Mi").wire() == {"cpu": "4000m", "memory": "8192Mi"}
    assert Quantities(gpu=1, storage="0Gi").model_dump() == {"gpu": "1", "storage": "0Gi"}


@given(numbers, numbers)
def test_what_goes_beyond_a_limit_is_named(asked, limit):
    beyond = asked.beyond(limit)
    assert ("gpu" in beyond) == (asked.gpus > limit.gpus)
    assert (beyond == ()) == all(getattr(asked, f) <= getattr(limit, f) for f in Resources.model_fields)


def test_resources_add_up():
    half = Resources(cpu_milli=500, memory_bytes=10)
    assert half + half == Resources(cpu_milli=1000, memory_bytes=20)
