"""What this machine could do at best: bytes it reads and multiply-adds it does in a second."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.runtime.kernels.load import compiled, variants

READ_BYTES = 512 * 2**20  # far beyond any cache


@dataclass(frozen=True, slots=True)
class Roofline:
    """The two bounds of a product: its weights must be read, and its multiply-adds be done."""

    variant: str
    n_threads: int
    bytes_per_s: float
    macs_per_s: float  # multiply-adds of int8

    @property
    def balance(self) -> float:
        """Multiply-adds a byte read: a batch of more tokens than this times a weight's bytes is bound by arithmetic."""
        return self.macs_per_s / self.bytes_per_s

    def floor_s(self, n_bytes: float, n_macs: float) -> float:
        """Seconds that no program on this machine can go below."""
        return max(n_bytes / self.bytes_per_s, n_macs / self.macs_per_s)


def measure(variant: str, *, n_threads: int, read_bytes: int = READ_BYTES) -> Roofline | None:
    """Measure both bounds with the instructions of `variant`, in about a second; None when it does not run here."""
    library = compiled()
    if library is None or variant not in variants():
        return None
    bandwidth = library.edgellm_bandwidth(variant.encode(), read_bytes, n_threads, 5)
    peak = library.edgellm_peak(variant.encode(), n_threads, 0.3)
    return Roofline(variant, n_threads, bandwidth, peak)
