"""Adapters: a PEFT folder as a GGUF adapter, or merged into its base."""
