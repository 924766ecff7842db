"""Side by side with peers: one script a claim, each run as ``python -m benchmarks.NAME``."""
