"""What the shell offers behind TAB."""

from __future__ import annotations


def model_names(incomplete: str) -> list[str]:
    """Names of the catalogue and of what is installed; the shell adds files by itself."""
    from edgellm.export.obtain import store
    from edgellm.export.obtain.catalogue import load_catalogue

    names = {entry.name for entry in load_catalogue()} | {model.name for model in store.installed()}
    return sorted(name for name in names if name.startswith(incomplete))
