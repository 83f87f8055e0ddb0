"""Training jobs on a worker: places, runners, and the life of one run."""
