"""What work may cost at most, and what it has cost: bills from the tariff and what was told. Pure.

A bound counts a token for every byte that is sent along, which no tokenizer exceeds, and what each message
and the agent's own words add. A node's figures are taken only up to these.
"""

from collections.abc import Mapping
from typing import NamedTuple

from gaelp_tasks.models.invocation import Embedding, EmbeddingResult, Invocation, InvocationResult
from gaelp_tasks.models.money import Charge, CostKind
from gaelp_tasks.models.tariff import Tariff, priced, share_of
from gaelp_tasks.models.usage import Usage

__all__ = [
    "Bound",
    "bill",
    "bound_of",
    "clamped",
    "embedding_bound",
    "most_micro",
    "predicted",
    "tokens_within",
]

OWN_WORDS = 2048  #: tokens of an agent's own words, and of the template round one message and another
PER_MESSAGE = 16  #: the same for each message
BYTES_PER_TOKEN = 4  #: of prompts whose tokens no node has told: it was cut before it could
COLD_S = 0.5  #: a model that was waited for so long was not in memory


class Bound(NamedTuple):
    """The most that an invocation can cost."""

    prompt_tokens: int
    completion_tokens: int  #: the run tells no more (most_tokens)
    amount_micro: int


def bound_of(tariff: Tariff, asked: Invocation, most_tokens: int) -> Bound:
    """What it costs with an answer of just so many tokens, or of `num_predict` where that is less."""
    most_tokens = min(most_tokens, predicted(asked.options or {}) or most_tokens)
    prompt_tokens = asked.size_bytes + OWN_WORDS + PER_MESSAGE * len(asked.input)
    return Bound(
        prompt_tokens, most_tokens, most_micro(tariff, asked.model or "", prompt_tokens, most_tokens)
    )


def predicted(options: Mapping[str, object]) -> int | None:
    """How many tokens are asked for at most; None where that is not said, or without end."""
    predict = options.get("num_predict")
    return predict if isinstance(predict, int) and not isinstance(predict, bool) and predict > 0 else None


def most_micro(tariff: Tariff, model: str, prompt_tokens: int, completion_tokens: int) -> int:
    """What so many tokens cost at most: the model has to be loaded for them."""
    price = tariff.of(model)
    return (
        priced(prompt_tokens, price.prompt_micro_per_million)
        + priced(completion_tokens, price.completion_micro_per_million)
        + tariff.cold_load_micro
    )


def tokens_within(tariff: Tariff, asked: Invocation, amount_micro: int, most_tokens: int) -> int:
    """How many tokens may be told for this amount, at most `most_tokens`; 0: not even the prompt fits."""
    fixed = bound_of(tariff, asked, 0).amount_micro
    each = tariff.of(asked.model or "").completion_micro_per_million
    left = amount_micro - fixed
    if left < 0:
        return 0
    return min(most_tokens, left * 1_000_000 // each) if each else most_tokens


def embedding_bound(tariff: Tariff, asked: Embedding) -> Bound:
    """The same for texts to embed."""
    prompt_tokens = sum(len(text.encode()) + PER_MESSAGE for text in asked.input)
    price = tariff.of(asked.model or "")
    amount = priced(prompt_tokens, price.prompt_micro_per_million) + tariff.cold_load_micro
    return Bound(prompt_tokens, 0, amount)


def clamped(told: Usage, bound: Bound) -> Usage:
    """What a node has told, up to what can have been.

    A run that was cut told no prompt: its bytes count, four for a token.
    """
    prompt_tokens = told.prompt_tokens
    if told.completion_tokens and not prompt_tokens:
        prompt_tokens = bound.prompt_tokens // BYTES_PER_TOKEN
    return Usage(
        prompt_tokens=min(prompt_tokens, bound.prompt_tokens),
        completion_tokens=min(told.completion_tokens, bound.completion_tokens),
    )


def bill(
    tariff: Tariff,
    bound: Bound,
    result: InvocationResult | EmbeddingResult,
    *,
    asked_model: str | None,
    wasted_tokens: int = 0,
) -> tuple[Charge, ...]:
    """The lines of what has ended, whole or cut. `wasted_tokens` were told by runs that had to start over.

    Prices are those of the model that was asked for: which one a node then takes is not the caller's choice.
    An answer from the cache costs nothing; nor does one that failed, which has no result.
    """
    price = tariff.of(asked_model or "")
    lines: list[Charge] = []
    if result.cached is not True:
        used = clamped(result.usage, bound)
        told = priced(used.completion_tokens, price.completion_micro_per_million)
        kind = CostKind.COMPLETION_TOKENS
        if result.stop_reason == "cancelled":
            kind, told = CostKind.CANCELLED, share_of(told, tariff.cancelled_percent)
        read = priced(used.prompt_tokens, price.prompt_micro_per_million)
        lines = [
            Charge(CostKind.PROMPT_TOKENS, used.prompt_tokens, read),
            Charge(kind, used.completion_tokens, told),
        ]
        if (result.timings.load_s or 0.0) >= COLD_S:
            lines.append(Charge(CostKind.COLD_LOADS, 1, tariff.cold_load_micro))
    wasted = share_of(priced(wasted_tokens, price.completion_micro_per_million), tariff.wasted_percent)
    lines.append(Charge(CostKind.WASTED, max(wasted_tokens, 0), wasted))
    return tuple(line for line in lines if line.quantity)
