"""The drafter learns its target (OmniDraft, arXiv:2507.02659): lessons, training, the packed result."""
