"""Text out of bytes, held back while it may still be half a character or the beginning of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Turn the bytes of tokens into text that is safe to show.

    Stop strings are found across token borders; what is held back is the longest end of the text that begins one of
    them. The one that is complete first cuts, so the text is the same however its bytes were portioned.
    """

    def __init__(self, stops: Sequence[str] = (), *, strips_lead: bool = False) -> None:
        """`strips_lead`: a space that the text begins with is the tokenizer's, and left out."""
        self._lead = b" " if strips_lead else b""
        self._stops = [stop for stop in stops if stop]
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = ""
        self.stopped = False
        self.stopped_by: str | None = None

    @property
    def n_held(self) -> int:
        """Characters that are held back."""
        return len(self._pending)

    def feed(self, data: bytes, *, final: bool = False) -> str:
        """The text that may be shown now; sets `stopped` when a stop string came, which is cut off.

        `final`: nothing follows, so nothing is held back but half a character, which is dropped.
        """
        if self.stopped:
            return ""
        if data:
            data, self._lead = data.removeprefix(self._lead), b""
        self._pending += self._decoder.decode(data)
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := self._pending.find(stop)) >= 0]
        if found:
            self.stopped = True
            _, at, self.stopped_by = min(found)
            shown, self._pending = self._pending[:at], ""
            return shown
        n_held = 0 if final else max((self._n_begun(stop) for stop in self._stops), default=0)
        cut = len(self._pending) - n_held
        shown, self._pending = self._pending[:cut], self._pending[cut:]
        return shown

    def _n_begun(self, stop: str) -> int:
        """How many characters at the end of the text begin `stop`."""
        for n in range(min(len(stop) - 1, len(self._pending)), 0, -1):
            if self._pending.endswith(stop[:n]):
                return n
        return 0
