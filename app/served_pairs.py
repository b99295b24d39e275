"""The pairs that a server offers: those that are named, and those that are on this disk."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from edgellm.app.defaults import NO_DRAFTER, BadSetting
from edgellm.app.listener import Listener
from edgellm.app.loading import Pair, prepare
from edgellm.app.references import entry_of
from edgellm.app.served_models import ServedModels
from edgellm.app.serving import Served, open_served

if TYPE_CHECKING:
    from edgellm.export.obtain.store import ModelFile
    from edgellm.runtime.bringup.planning import EngineOptions

KEEP_ALIVE_S = 300.0  # where several are offered: what servers of this kind do, so that a pause does not cost a load
_MOST_S = 366 * 86_400.0
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_PART = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h|d)")
_TIME = re.compile(f"(?:{_PART.pattern})+")


def keep_alive_s(text: str) -> float | None:
    """How long a model that nobody uses stays: `5m`, `1h30m`, `90` seconds, 0; None for `forever` and -1.

    Raises:
        BadSetting: it is no such time.
    """
    said = text.strip().casefold()
    if said in ("forever", "-1"):
        return None
    said = f"{said}s" if said.isascii() and said.isdigit() else said
    if len(said) > 40 or _TIME.fullmatch(said) is None:
        raise BadSetting(f"{text[:40]!r} is no time: write it like 5m, 30s, 1h, 0 or forever")
    return min(sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(said)), _MOST_S)


class PairSource:
    """A `Source` of a pair. It is planned as if it were alone, so that its context does not depend on who is loaded."""

    def __init__(
        self,
        name: str,
        aliases: Sequence[str],
        options: EngineOptions,
        prepared: Callable[[], Pair],
        listener: Listener,
    ) -> None:
        """`prepared` is asked before each load, and downloads nothing."""
        self.name, self.aliases, self.n_parallel = name, tuple(aliases), options.n_parallel
        self._prepared, self._listener = prepared, listener
        self._pair: Pair | None = None

    def n_bytes(self) -> int:
        from edgellm.runtime.bringup.planning import beside_bytes, plan_here

        self._pair = pair = self._prepared()
        plan, _ = plan_here(pair.target.path, pair.draft_path, pair.options, pair.plan)
        if plan is not None:
            return beside_bytes(plan)
        return pair.target.n_bytes + (pair.draft.n_bytes if pair.draft is not None else 0)

    def open(self) -> AbstractContextManager[Served]:
        return open_served(self._pair or self._prepared(), self._listener)


@dataclass(frozen=True, slots=True)
class Offer:
    """What a server is told to offer."""

    words: Sequence[str]  # the models that are named, as they are named
    first: Pair
    options: EngineOptions  # of all; what else is of the first is in its pair
    draft: str | None  # "none": nothing drafts for any of them; else it is the first's
    aliases: Sequence[str]  # NAME is the first's, NAME=MODEL that of a model by its word
    offline: bool
    listener: Listener

    def models(self, *, all_local: bool = False, keep_alive: str | None = None) -> ServedModels:
        """None of them loaded yet, and all on this disk.

        Args:
            all_local: offer what else was pulled, too.
            keep_alive: as `keep_alive_s` reads it; None: for ever if it is one, else `KEEP_ALIVE_S` each.

        Raises:
            BadSetting: two models of one name, or an alias of a model that is not named.
            BadReference, UnknownModel, NotHere, PullError: as `load`, of one that is named.
        """
        from edgellm.runtime.bringup.planning import left_bytes

        aliases = self._aliases_by_word()
        sources = [self._source(pair, more) for pair, more in zip(self._pairs(), aliases, strict=True)]
        _refuse_doubles(sources)
        for source in sources[1:]:
            self._warn_if_unfit(source)
        sources += self._local(sources) if all_local else []
        kept_s = None if len(sources) == 1 else KEEP_ALIVE_S
        return ServedModels(
            sources,
            keep_alive_s=kept_s if keep_alive is None else keep_alive_s(keep_alive),
            left_bytes=partial(left_bytes, self.options),
            listener=self.listener,
        )

    @property
    def _further_draft(self) -> str | None:
        """None: the one that the catalogue recommends."""
        return self.draft if self.draft is not None and self.draft.casefold() == NO_DRAFTER else None

    def _pairs(self) -> list[Pair]:
        prepared = partial(prepare, offline=self.offline, listener=self.listener)
        return [self.first, *(prepared(word, self._further_draft, self.options) for word in self.words[1:])]

    def _source(self, pair: Pair, aliases: Sequence[str]) -> PairSource:
        names = [*_aliases_of(pair.target), *aliases]
        return PairSource(pair.target.name, names, pair.options, lambda: pair, self.listener)

    def _warn_if_unfit(self, source: PairSource) -> None:
        from edgellm.memory.plan import DoesNotFit

        try:
            source.n_bytes()
        except DoesNotFit as error:
            self.listener.warning(f"{source.name} cannot be loaded as it is: {error}")

    def _aliases_by_word(self) -> list[list[str]]:
        found: list[list[str]] = [[] for _ in self.words]
        for alias in self.aliases:
            name, _, word = alias.rpartition("=")
            if name and word not in self.words:
                raise BadSetting(f"--alias {alias}: {word!r} is none of the models named: {', '.join(self.words)}")
            found[self.words.index(word) if name else 0].append(name or alias)
        return found

    def _local(self, taken: Sequence[PairSource]) -> list[PairSource]:
        """All models that were pulled, but for adapters and what is offered already. Nothing of them is loaded."""
        from edgellm.export.obtain import store

        names = {name for source in taken for name in (source.name, *source.aliases)}
        found: list[PairSource] = []
        for model in store.installed():
            name = model.reference if model.name in names else model.name  # another type of a model that is there
            if name in names or not self._is_model(model):
                continue
            names.add(name)
            # Where its drafter is not here, it does without: a request never downloads.
            prepared = partial(
                prepare, model.reference, self._further_draft, self.options, offline=True, listener=self.listener
            )
            found.append(PairSource(name, _aliases_of(model), self.options, prepared, self.listener))
        return found

    def _is_model(self, file: ModelFile) -> bool:
        from edgellm.memory.adapter import is_adapter
        from edgellm.memory.gguf import GgufError, read_header

        if file.path.suffix != ".gguf":
            return True
        try:
            return not is_adapter(read_header(file.path))
        except (GgufError, OSError) as error:
            self.listener.warning(f"{file.reference} is not offered: {error}")
            return False


def _refuse_doubles(sources: Sequence[PairSource]) -> None:
    """Raises BadSetting: one of two models that have the same name could not be asked."""
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise BadSetting(f"two models are called {name}: name it once, or rename the file of one of them")


def _aliases_of(model: ModelFile) -> list[str]:
    """What else people call it."""
    entry = entry_of(model)
    names = [] if model.source == "path" else [model.reference]
    return [*names, *(entry.aliases if entry is not None else ())]
