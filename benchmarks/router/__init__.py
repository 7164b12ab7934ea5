"""The router alone: what its own rounds cost where drafters and targets answer at once."""
