"""A full round of a target, and one of its drafter, at the sizes of published models with random weights.

Against what memory and matrix units allow, and against the published reference implementation's round: transformers,
eager, with a dense tree mask.
"""
