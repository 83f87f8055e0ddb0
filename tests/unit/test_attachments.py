"""What goes by reference, and that it comes back as it was or not at all."""

import hashlib
import json
import uuid

import fakeredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks import attachments
from gaelp_tasks.connections import Refused
from gaelp_tasks.errors import AttachmentLost
from gaelp_tasks.keys import Keys
from gaelp_tasks.models import Embedding, Invocation
from gaelp_tasks.models.attachment import HEAVY, REFERENCE, Reference, is_reference, pack, referring, unpack
from gaelp_tasks.settings import Settings
from gaelp_workers.envelope import HEADERS

PLACE = uuid.UUID(int=7).hex
KEYS = Keys("ns:")
PLENTY = 10**7
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)
rest = st.fixed_dictionaries(
    {},
    optional={
        "agent": st.sampled_from(["chat", "coding"]),
        "model": st.sampled_from(["tiny", "llama3.2:3b"]),
        "tier": st.sampled_from(["interactive", "batch", "background"]),
        "priority": st.integers(1, 10),
        "options": st.dictionaries(st.sampled_from(["seed", "stop"]), json_values),
        "format": st.just("json"),
        "documents": st.lists(texts, max_size=2),
        "tenant": st.just("me"),
        "idempotency_key": st.just("k"),
        "metadata": st.dictionaries(st.text(max_size=5), json_values, max_size=3),
    },
)
asks = st.one_of(
    st.fixed_dictionaries({"prompt": texts}),
    st.fixed_dictionaries({"prompt": texts, "images": st.just(["iVBORw0KGgo="])}),
    st.fixed_dictionaries(
        {"messages": st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": texts}), min_size=1)}
    ),
)
invocations = st.builds(lambda ask, more: ask | more, asks, rest)


def carried(wire, *, above_bytes):
    """What a run is given of these arguments, after both of their parts have travelled as JSON."""
    packed = pack(wire, above_bytes=above_bytes)
    given_ = json.loads(json.dumps(packed.given))
    if packed.attachment is None:
        return given_
    return given_ | unpack(referring(PLACE, packed.attachment), packed.attachment)


@given(invocations, st.integers(0, 200))
def test_an_invocation_comes_back_the_same_whichever_way_it_went(asked, above_bytes):
    wire = Invocation.parse(asked, max_prompt_bytes=PLENTY).wire()
    back = carried(wire, above_bytes=above_bytes)
    assert back == wire
    assert Invocation.parse(back, max_prompt_bytes=PLENTY).wire() == wire


@given(st.lists(texts, min_size=1, max_size=5), st.integers(1, 100))
def test_texts_to_embed_come_back_the_same(given_texts, above_bytes):
    wire = Embedding.parse({"input": given_texts, "model": "m"}, max_prompt_bytes=PLENTY).wire()
    assert carried(wire, above_bytes=above_bytes) == wire


@given(invocations, st.integers(1, 2000))
def test_exactly_what_takes_more_than_the_limit_goes_aside(asked, above_bytes):
    wire = Invocation.parse(asked, max_prompt_bytes=PLENTY).wire()
    heavy = {name: value for name, value in wire.items() if name in HEAVY}
    exact_bytes = len(json.dumps(heavy, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))
    packed = pack(wire, above_bytes=above_bytes)
    if packed.attachment is None:
        assert packed.given == wire
        assert exact_bytes <= above_bytes
    else:
        assert not packed.given.keys() & HEAVY
        assert len(packed.attachment) > above_bytes


def test_what_queues_and_people_look_at_stays_in_the_message():
    asked = Invocation.parse(
        {"prompt": "x" * 100, "model": "m", "tenant": "me", "idempotency_key": "k", "deadline_s": 5},
        max_prompt_bytes=PLENTY,
    )
    stays = {"agent", "model", "tier", "priority", "tenant", "idempotency_key", "deadline_s"}
    assert pack(asked.wire(), above_bytes=10).given.keys() == stays


def test_nothing_goes_aside_where_that_is_switched_off():
    wire = {"prompt": "x" * 1_000_000}
    assert pack(wire, above_bytes=0) == (wire, None)


def test_half_a_character_in_somebodys_options_travels_as_well():
    wire = {"prompt": "x", "options": {"stop": "\ud83d"}}
    assert carried(wire, above_bytes=1) == wire


CONTENT = b'{"prompt":"Hi"}'
GOOD = referring(PLACE, CONTENT)


@pytest.mark.parametrize(
    ("found", "reference", "says"),
    [
        (b"", GOOD, "not there any more"),
        (b'{"prompt":"Ho"}', GOOD, "not what was published"),
        (CONTENT + b" ", GOOD, "not what was published"),
        (CONTENT[:-1], GOOD, "not what was published"),
        *((junk, referring(PLACE, junk), "not what was published") for junk in (
            b"[]", b"nothing", b'{"prompt":', b"\xff\xfe", b'{"tenant":"another"}', b"[" * 100_000,
        )),
    ],
)  # fmt: skip
def test_what_is_not_what_was_published_is_refused_in_one_sentence(found, reference, says):
    with pytest.raises(AttachmentLost, match=says) as caught:
        unpack(reference, found)
    assert str(caught.value).endswith("call it again.")
    assert "Ho" not in str(caught.value).split()


@pytest.mark.parametrize(
    ("header", "is_one"),
    [
        (None, True),
        (GOOD.model_dump(), True),
        ("x", False),
        ({}, False),
        (GOOD.model_dump() | {"place": "../x"}, False),
        (GOOD.model_dump() | {"place": "A" * 32}, False),
        (GOOD.model_dump() | {"place": "0" * 32 + "\n"}, False),
        (GOOD.model_dump() | {"sha256": "0" * 63}, False),
        (GOOD.model_dump() | {"size_bytes": 0}, False),
        (GOOD.model_dump() | {"size_bytes": 1.5}, False),
        (GOOD.model_dump() | {"size_bytes": True}, False),
        (GOOD.model_dump() | {"more": 1}, False),
    ],
)
def test_a_header_that_is_no_reference_makes_a_dead_letter(header, is_one):
    assert is_reference(header) is is_one
    assert HEADERS[REFERENCE](header) is is_one


# -- in Redis


@pytest.fixture
def redis():
    return fakeredis.FakeRedis(decode_responses=True)


def fetch(redis, reference, *, most_bytes=1000, invocation_id="i"):
    return attachments.fetch(redis, KEYS, invocation_id, reference, most_bytes=most_bytes)


def test_what_is_put_has_a_day_until_its_message_is_published(redis):
    reference = attachments.put(redis, KEYS, "i", CONTENT)
    [key] = redis.keys()
    assert key == f"ns:gaelp:attachment:i:{reference.place}"
    assert redis.ttl(key) == attachments.UNPUBLISHED_S
    attachments.keep(redis, KEYS, "i", reference)
    assert redis.ttl(key) == -1
    assert fetch(redis, reference) == {"prompt": "Hi"}


def test_what_is_read_stays_even_if_its_publisher_died_before_it_said_so(redis):
    reference = attachments.put(redis, KEYS, "i", CONTENT)
    fetch(redis, reference)
    assert redis.ttl(redis.keys()[0]) == -1


def test_two_publications_of_one_id_have_each_their_own(redis):
    first, second = (attachments.put(redis, KEYS, "i", CONTENT) for _ in range(2))
    redis.delete(KEYS.attachment("i", first.place))
    assert fetch(redis, second) == {"prompt": "Hi"}
    with pytest.raises(AttachmentLost, match="not there any more"):
        fetch(redis, first)


def test_an_invocation_never_sees_what_lies_beside_another_one(redis):
    reference = attachments.put(redis, KEYS, "theirs", CONTENT)
    with pytest.raises(AttachmentLost):
        fetch(redis, reference, invocation_id="mine")


def test_no_more_is_read_than_the_reference_tells(redis, monkeypatch):
    reference = attachments.put(redis, KEYS, "i", CONTENT)
    redis.set(KEYS.attachment("i", reference.place), "x" * 10_000)
    read = []
    monkeypatch.setattr(attachments, "unpack", lambda _, found: read.append(len(found)))
    fetch(redis, reference)
    assert read == [reference.size_bytes + 1]


def test_what_is_larger_than_the_worker_allows_is_not_read(redis):
    reference = attachments.put(redis, KEYS, "i", CONTENT)
    with pytest.raises(
        AttachmentLost, match=r"has 15 bytes, and 14 are read at most: raise GAELP_MAX_PROMPT"
    ):
        fetch(redis, reference, most_bytes=14)


def test_what_redis_refuses_is_told_as_that(redis):
    reference = attachments.put(redis, KEYS, "i", CONTENT)
    redis.delete(key := KEYS.attachment("i", reference.place))
    redis.hset(key, "a", "b")
    with pytest.raises(Refused, match="WRONGTYPE"):
        fetch(redis, reference)


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({}, None),
        ({"id": "i", REFERENCE: "x"}, None),
        ({"id": "i", REFERENCE: GOOD.model_dump()}, f"ns:gaelp:attachment:i:{PLACE}"),
    ],
)
def test_the_key_is_known_by_the_headers_of_the_message(headers, key):
    assert attachments.key_of(KEYS, headers) == key


# -- limits


def test_where_nothing_goes_by_reference_a_prompt_has_to_fit_into_a_message():
    assert Settings().most_prompt_bytes == 32 * 1024**2
    assert Settings(reference_bytes=0).most_prompt_bytes == 1024**2
    assert Settings(reference_bytes=0, max_prompt_bytes=100).most_prompt_bytes == 100
    assert Settings(max_prompt_bytes=100).most_attachment_bytes == 400


def test_the_reference_is_the_hash_that_anybody_can_check():
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert referring(PLACE, CONTENT) == Reference(place=PLACE, sha256=digest, size_bytes=len(CONTENT))
