"""Secrets at rest: they open in their own place, by a key that is there, unchanged; and nowhere else."""

import base64
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks.errors import Conflict
from gaelp_tasks.services.sealing import Sealer, sealed
from gaelp_tasks.settings import Settings

KEYS = [base64.b64encode(bytes([n]) * 32).decode() for n in range(3)]
HERE = ("tenant", 1, "KEY")


@cache
def sealer(*keys):
    return Sealer(Settings(secret_keys=",".join(keys)))


@given(st.text(min_size=1))
def test_what_was_sealed_opens(text):
    kept = sealer(KEYS[0]).seal(text, HERE)
    assert sealer(KEYS[1], KEYS[0]).open(kept, HERE) == text
    assert len(text) < 8 or text not in kept


@pytest.mark.parametrize(
    "place", [("other", 1, "KEY"), ("tenant", 2, "KEY"), ("tenant", 1, "KEZ"), ("tenan", 1, "tKEY")]
)
def test_it_does_not_open_in_another_place(place):
    kept = sealer(KEYS[0]).seal("hush", HERE)
    with pytest.raises(Conflict, match="is not what was sealed"):
        sealer(KEYS[0]).open(kept, place)


def test_what_was_changed_does_not_open():
    kept = sealer(KEYS[0]).seal("hush!", HERE)  # of a length whose base64 has no bits to spare
    assert not kept.endswith("=")
    changed = [
        kept[:at] + mark + kept[at + 1 :] for at in range(len(kept)) for mark in "Ab0+:" if mark != kept[at]
    ]
    for text in [*changed, kept[:-4], kept[:12], "", kept + "AAAA"]:
        with pytest.raises(Conflict):
            sealer(KEYS[0]).open(text, HERE)


def test_another_key_is_named_as_missing_and_without_any_nothing_is_sealed():
    kept = sealer(KEYS[0]).seal("hush", HERE)
    with pytest.raises(Conflict, match="by a key that GAELP_SECRET_KEYS does not have"):
        sealer(KEYS[1]).open(kept, HERE)
    with pytest.raises(Conflict, match="openssl rand -base64 32"):
        sealer().seal("hush", HERE)
    assert sealed(Settings(), "", 1, {}) == {}


def test_the_first_key_seals():
    assert not sealer(KEYS[1], KEYS[0]).is_stale(sealer(KEYS[1]).seal("hush", HERE))
    assert sealer(KEYS[1], KEYS[0]).is_stale(sealer(KEYS[0]).seal("hush", HERE))


def test_no_two_sealed_texts_are_the_same():
    assert len({sealer(KEYS[0]).seal("hush", HERE) for _ in range(20)}) == 20
