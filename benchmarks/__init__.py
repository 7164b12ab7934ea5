"""Benchmarks of parts, each one command: `python -m benchmarks.NAME`. What they find goes to benchmarks/results."""
