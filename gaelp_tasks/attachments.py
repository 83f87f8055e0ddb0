"""Attachments in Redis: the prompts, images and texts of long invocations, beside their small messages.

Each publication has its own, so that two messages of one id never take each other's away. It is put first,
for a day; the message follows; then it is kept without a limit, for nobody knows how long a message will be
queued, parked or a dead letter. It goes with the acknowledgement of the message that ends the invocation.
What is left over, where a queue was emptied by hand or a process died between two steps, gets a limit again
(`gaelp.maintenance.expire_lost_attachments`). Functions raise what redis-py raises.
"""

from collections.abc import Collection, Mapping
from typing import Any
from uuid import uuid4

from gaelp_tasks.connections import SyncRedis
from gaelp_tasks.errors import AttachmentLost
from gaelp_tasks.keys import Keys
from gaelp_tasks.models.attachment import REFERENCE, Reference, is_reference, referring, unpack

__all__ = ["UNPUBLISHED_S", "fetch", "keep", "key_of", "left_of", "put"]

UNPUBLISHED_S = 86_400  #: what nobody has published since then is not missed


def put(redis: SyncRedis, keys: Keys, invocation_id: str, attachment: bytes) -> Reference:
    """Lay it down for a message that is published next."""
    reference = referring(uuid4().hex, attachment)
    redis.set(keys.attachment(invocation_id, reference.place), attachment, ex=UNPUBLISHED_S)
    return reference


def keep(redis: SyncRedis, keys: Keys, invocation_id: str, reference: Reference) -> None:
    """Its message is published: it stays as long as that may still run."""
    redis.persist(keys.attachment(invocation_id, reference.place))


def fetch(
    redis: SyncRedis, keys: Keys, invocation_id: str, reference: Reference, *, most_bytes: int
) -> dict[str, Any]:
    """The heavy arguments; reads no more than the reference tells. Raises AttachmentLost."""
    if reference.size_bytes > most_bytes:
        raise AttachmentLost(
            f"What lies beside the message has {reference.size_bytes:,} bytes, and {most_bytes:,} are read "
            "at most: raise GAELP_MAX_PROMPT_BYTES on the workers, and call it again."
        )
    key = keys.attachment(invocation_id, reference.place)
    with redis.pipeline(transaction=False) as pipe:
        pipe.getrange(key, 0, reference.size_bytes)  # the end counts: one byte more than there may be
        pipe.persist(key)  # whoever published it may have died before that
        found, _ = pipe.execute(raise_on_error=False)
    if isinstance(found, Exception):
        raise found
    return unpack(reference, found.encode())


def key_of(keys: Keys, headers: Mapping[str, Any]) -> str | None:
    """The key of what lies beside a message with these headers; None where nothing does."""
    told = headers.get(REFERENCE)
    if not told or not is_reference(told):
        return None
    return keys.attachment(str(headers.get("id")), Reference.model_validate(told).place)


def left_of(redis: SyncRedis, keys: Keys, invocation_ids: Collection[str]) -> dict[str, list[str]]:
    """The keys of what lies beside messages of these, by id; it goes through all attachments once."""
    found: dict[str, list[str]] = {}
    beginning = keys.attachment("").removesuffix(":")
    for key in redis.scan_iter(match=keys.attachment("*", "*"), count=1000):
        name = str(key).removeprefix(beginning).rpartition(":")[0]
        if name in invocation_ids:
            found.setdefault(name, []).append(str(key))
    return found
