"""Decoding with a pair that is trained here in minutes: what trees are worth, where no checkpoint can be downloaded."""
