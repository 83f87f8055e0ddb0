"""A page of metrics by name and labels, read as Prometheus reads it."""

from prometheus_client.parser import text_string_to_metric_families

from gaelp_tasks.metrics.page import text

#: all that anything is labelled by; none of them grows with tenants, invocations or prompts
LABELS = (
    *("worker", "version", "node", "tier", "model", "state", "kind", "agent", "outcome", "reason", "status"),
    *("agent_id", "resource", "method", "route"),
)
#: of labels on a page, where they are sorted by name; those of a histogram and of Python come last
ORDER = (*LABELS, "le", "implementation", "major", "minor", "patchlevel")


def parsed(told_there):
    """A page by name and labels, read as Prometheus reads it."""
    return {
        (one.name, *(one.labels[name] for name in sorted(one.labels, key=ORDER.index))): one.value
        for family in text_string_to_metric_families(
            told_there if isinstance(told_there, str) else text(told_there)
        )
        for one in family.samples
    }
