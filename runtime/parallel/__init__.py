"""Several conversations in one engine: their passes are joined, and the output of each is what it would be alone."""
