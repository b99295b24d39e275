"""A hook of mkdocs: pages of the site that lie at the repository's root, where people look for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT_PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_files(files: Any, config: Any) -> Any:
    """Add the root's pages, with links as they are from docs/."""
    from mkdocs.structure.files import File

    root = Path(config.config_file_path).parent
    for name, source in ROOT_PAGES.items():
        text = (root / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name, content=text))
    return files
