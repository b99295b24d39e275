"""The proof of an export: a second reading of the checkpoint, and the comparison with it."""
