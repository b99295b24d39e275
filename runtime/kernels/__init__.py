"""Matrix products for batches of a few tokens, as a plug-in to an unmodified llama.cpp."""

from __future__ import annotations

from edgellm.runtime.kernels.load import KernelReport, install

__all__ = ["KernelReport", "install"]
