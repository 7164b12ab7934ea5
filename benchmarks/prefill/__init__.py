"""A long prompt that arrives while others decode: when its first token comes, and how long others wait."""
