"""`celery worker --include support.next_release` makes a worker that knows one envelope version more."""

from gaelp_workers import versions

versions.ENVELOPE_VERSION += 1
