"""Tensor parallel targets: one model over several processes, its ranks. Rank 0 holds the sequences and leads; the
others follow, step by step."""
