"""Where edgellm keeps its files."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """EDGELLM_HOME, or a folder in the platform's cache."""
    if named := os.environ.get("EDGELLM_HOME"):
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("edgellm", appauthor=False))
