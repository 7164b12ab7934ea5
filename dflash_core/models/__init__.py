"""Targets and drafters, their configs and checkpoints."""
