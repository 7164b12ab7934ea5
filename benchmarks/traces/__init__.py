"""Recorded decoding: a target's tokens, and what its drafter proposed at every one of them."""
