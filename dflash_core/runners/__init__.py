"""Runners: a model with its caches behind a small synchronous surface, one for targets and one for drafters."""
