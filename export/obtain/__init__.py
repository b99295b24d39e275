"""Getting models: names, the Hub, packages, and where they lie on this machine."""
