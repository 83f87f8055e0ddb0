"""Every metric by name, and what bounds the values of its labels. Pure.

Tiers are three, nodes and agents are those that are configured, models are counted and called `other` beyond
a bound. Nothing is labelled by tenant, by id or by anything of a prompt.
"""

from typing import Literal, NamedTuple

__all__ = ["CLUSTER", "CONTROL_PLANE", "HTTP", "MOST_MODELS", "OTHER", "WORKER", "Names", "Sample", "Series"]

MOST_MODELS = 100  #: on one page
OTHER = "other"  #: in place of a name beyond those

Kind = Literal["gauge", "counter", "histogram"]


class Series(NamedTuple):
    """One metric; a name of a counter ends in `_total`."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    meaning: str


_BY_MODEL = ("tier", "model")

#: what the exporter tells
CLUSTER = (
    Series("gaelp_queue_depth", "gauge", _BY_MODEL, "Messages that wait in queues."),
    Series("gaelp_queue_oldest_seconds", "gauge", _BY_MODEL, "How long the longest waiting has waited."),
    Series("gaelp_running", "gauge", _BY_MODEL, "Invocations that run, by the model they asked for."),
    Series("gaelp_slots", "gauge", ("node", "model", "state"), "Slots of a model: busy, free, unloaded."),
    Series("gaelp_memory_bytes", "gauge", ("node", "kind"), "Memory of a node: total, free, held."),
    Series("gaelp_node_healthy", "gauge", ("node",), "1 if its server and its model answer."),
    Series("gaelp_node_open", "gauge", ("node",), "1 if a worker takes new work for it."),
    Series("gaelp_node_tokens_per_second", "gauge", ("node",), "Of all runs there, over the last seconds."),
    Series("gaelp_held", "gauge", (), "Messages that workers have claimed and not settled."),
    Series("gaelp_parked", "gauge", (), "Messages that are not due yet."),
    Series("gaelp_suspects", "gauge", (), "Messages that have seen workers die and wait to run alone."),
    Series("gaelp_dead_letters", "gauge", (), "Messages that were given up: gaelp dlq."),
    Series("gaelp_evictions_total", "counter", ("reason",), "Runs given back: memory, preemption."),
    Series("gaelp_reaped_total", "counter", (), "Messages that were taken from workers which had died."),
    Series("gaelp_fenced_total", "counter", (), "Runs that a later claim had overtaken."),
    Series("gaelp_beat_leads", "gauge", (), "1 if a beat leads, and due runs are published."),
    Series("gaelp_beat_terms_total", "counter", (), "How often a beat began to lead."),
    Series("gaelp_schedules_age_seconds", "gauge", (), "Since the leading beat read its schedules in SQL."),
    Series("gaelp_scheduled_runs_total", "counter", (), "Due runs that beat has published."),
    Series("gaelp_scheduled_late_seconds_total", "counter", (), "How late those were, all together."),
    Series("gaelp_history_waiting", "gauge", (), "Ends of invocations that are not in SQL yet."),
    Series("gaelp_redis_up", "gauge", (), "1 if Redis answered the last look."),
    Series("gaelp_look_age_seconds", "gauge", (), "How old the figures of this page are."),
    Series("cluster_resource_usage", "gauge", ("resource",), "Part in use, 0 to 1: memory, slots."),
)

_BY_ROUTE = ("method", "route")

#: what a `gaelp api` tells of itself
HTTP = (
    Series("gaelp_http_requests_total", "counter", (*_BY_ROUTE, "status"), "Requests that were answered."),
    Series("gaelp_http_request_seconds", "histogram", _BY_ROUTE, "Until the answer began."),
    Series("gaelp_http_requests_running", "gauge", (), "Requests that are being answered, streams included."),
    Series("gaelp_watchers", "gauge", (), "WebSockets that are signed in."),
    Series("gaelp_api_info", "gauge", ("version",), "1."),
)

#: what each of them tells of the tables that all of them share
CONTROL_PLANE = (
    Series("gaelp_sql_up", "gauge", (), "1 if the database answered the last look."),
    Series("gaelp_agents", "gauge", ("status",), "Agents, by state."),
    Series("agent_jobs_total", "counter", ("status",), "Training jobs, by state."),
    Series("agent_job_duration_seconds", "histogram", ("status",), "How long training jobs took."),
    Series("agent_resource_usage", "gauge", ("agent_id", "resource"), "What running training jobs hold."),
    Series("gaelp_relay_waiting", "gauge", (), "Accepted submissions that are not published yet."),
    Series("gaelp_relay_oldest_seconds", "gauge", (), "How long the first of them has waited."),
)

#: what a worker tells
WORKER = (
    Series("gaelp_invocations_total", "counter", ("tier", "agent", "outcome"), "Invocations that ended."),
    Series("gaelp_queue_wait_seconds", "histogram", ("tier",), "Published until started."),
    Series("gaelp_first_token_seconds", "histogram", ("tier",), "Started until the first token."),
    Series("gaelp_run_seconds", "histogram", ("tier",), "Started until settled."),
    Series("gaelp_tokens_total", "counter", ("model", "kind"), "Tokens, as the node counted them."),
    Series("gaelp_retries_total", "counter", (), "Runs that failed and will be tried again."),
    Series("gaelp_worker_runs", "gauge", (), "Invocations that this worker runs now."),
    Series("gaelp_worker_open", "gauge", (), "1 if it takes new work."),
    Series("gaelp_claims_wanted", "gauge", (), "1 if it should be asking for work."),
    Series("gaelp_claim_age_seconds", "gauge", (), "Since Redis answered a claim of it."),
    Series("gaelp_progress_age_seconds", "gauge", (), "Since a token, a vector or the end of a run."),
    Series("gaelp_memory_bytes", "gauge", ("node", "kind"), "Memory of a node that is kept free: reserve."),
    Series("gaelp_worker_info", "gauge", ("worker", "version"), "1."),
)


class Names:
    """Names as values of a label: the first so many that come, `other` beyond. Safe from any thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[str, None] = {}

    def of(self, name: str) -> str:
        """The name, or `other`."""
        if name not in self._known:
            if len(self._known) >= self._most:
                return OTHER
            self._known.setdefault(name)
        return name


class Sample(NamedTuple):
    """One figure."""

    name: str
    labels: tuple[str, ...]
    value: float
