"""Reading a checkpoint's folder: what its files say, key by key, or a refusal by name."""
