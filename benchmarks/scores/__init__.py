"""What the scores of draft trees are worth in tokens per round, and what building the trees costs."""
