"""What Prometheus is told.

There are two pages. The exporter (`gaelp metrics`) tells what is true of the cluster: one program looks, so
that ten workers do not report one queue ten times. A worker tells what happened in it. docs/metrics.md lists
both.
"""
