"""Text and vocabularies: chat templates, tokens to text, and one vocabulary in terms of another."""
