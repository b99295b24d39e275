"""The child that trains, in large strides: tiny models learn in a few steps. `python -m training_child`.

EDGELLM_TEST_STEP_S makes each step last.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from edgellm.memory.children import serve
from edgellm.memory.errors import EdgellmError
from edgellm.runtime.distillation import job
from edgellm.runtime.distillation.training import Step, TrainingSettings

STRIDES: dict[str, Any] = {"learning_rate": 1.0, "batch_tokens": 20, "rows_at_once": 256, "n_warm_up": 1}


def slow_train(*args: Any, on_step: Callable[[Step], bool], **more: Any) -> None:
    def seen(step: Step) -> bool:
        time.sleep(float(os.environ.get("EDGELLM_TEST_STEP_S", "0")))
        return on_step(step)

    train(*args, on_step=seen, **more)


if __name__ == "__main__":
    train = job.train
    job.train = slow_train  # type: ignore[assignment]
    job.settings_for = lambda taught, n_threads: TrainingSettings(**STRIDES)  # type: ignore[assignment]
    serve(job._run, EdgellmError, OSError)
