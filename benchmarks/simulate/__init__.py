"""The real router on a virtual clock, between simulated targets and drafters: what it does at scales nobody has here.

`clock.py` is the time, `target.py` and `drafter.py` stand in for the pools, `playback.py` says what they would write.
"""
