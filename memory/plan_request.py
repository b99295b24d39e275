"""What a plan is asked to keep to."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.memory.context import KvType
from edgellm.memory.plan import Loading


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What a plan must keep to. None leaves a choice to the solver."""

    n_ctx: int | None = None
    kv: KvType | None = None
    n_draft: int | None = None
    n_ubatch: int | None = None
    copy: bool = True
    loading: Loading = "mapped"
    repack: bool = False
    n_threads: int = 2
    n_sequences: int = 1  # conversations at once, of `n_ctx` tokens each
    keep_drafter: bool = False  # the drafter was asked for: drop it only to fit
    main_device: str = ""  # the accelerator that the target's layers go to; "": none
    n_gpu_layers: int = -1  # of them; -1: all that it takes
    draft_device: str = ""  # likewise, of the drafter; "auto": by what its pass would take on the processor
    n_draft_gpu_layers: int = -1
    workers: tuple[
        str, ...
    ] = ()  # machines that take `n_gpu_layers` of the target's layers; -1: what does not fit here


ANYTHING = PlanRequest()
