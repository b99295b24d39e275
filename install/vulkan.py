"""Whether llama.cpp can be compiled for Vulkan here; one sentence that says what is missing.

    python install/vulkan.py [FOLDER_WITH_HEADERS]

Standard library alone, for it runs before anything is installed.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

HEADERS = (Path("/usr/include"), Path("/usr/local/include"), Path("/opt/homebrew/include"))
PACKAGES = "Debian and Ubuntu have it all: apt install glslc libvulkan-dev spirv-headers mesa-vulkan-drivers"
NEEDS = "VK_EXT_layer_settings"  # of the headers: llama.cpp's Vulkan part is written with it


def headers_version(folder: Path) -> str | None:
    """1.3.239; None where there are none."""
    try:
        text = (folder / "vulkan/vulkan_core.h").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    complete = re.search(r"VK_HEADER_VERSION_COMPLETE VK_MAKE_API_VERSION\(0, (\d+), (\d+),", text)
    last = re.search(r"#define VK_HEADER_VERSION (\d+)", text)
    return f"{complete[1]}.{complete[2]}.{last[1]}" if complete and last else None


def missing(folder: Path | None) -> str | None:
    """The first thing that compiling would fail for; None: nothing."""
    if shutil.which("glslc") is None:
        return f"glslc, which compiles the device's programs, is missing. {PACKAGES}"
    folders = [folder] if folder else [*HEADERS]
    where = next((each for each in folders if headers_version(each)), None)
    if where is None:
        return f"Vulkan's headers are not in {' or '.join(map(str, folders))}. {PACKAGES}"
    text = (where / "vulkan/vulkan_core.h").read_text(encoding="utf-8", errors="replace")
    if NEEDS not in text:
        return (
            f"Vulkan's headers in {where} are of version {headers_version(where)}, too old: llama.cpp needs {NEEDS}. "
            "Unpack newer ones (Debian 13's libvulkan-dev) elsewhere and say `make chat-vulkan VULKAN_HEADERS=FOLDER`, "
            "FOLDER being the one that holds vulkan/"
        )
    if not any((each / "spirv/unified1/spirv.hpp").is_file() for each in {where, *HEADERS}):
        return f"spirv-headers are missing. {PACKAGES}"
    return None


def main() -> int:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    if why := missing(folder):
        print(f"llama.cpp cannot be compiled for Vulkan: {why}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
