"""A child that seems to train beside a chat: what it does is told by files. `python -m idle_child`.

EDGELLM_TEST_CHILD names a folder. The child writes `pid` and appends to `ticks` as long as it runs; a file `end` ends
it as the file says: "adopt", "adopt and take back", "take back", "no", "full" (disk), "fail".
"""

from __future__ import annotations

import errno
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from draft_adapters import adapter_for

from edgellm.memory.children import Send, in_background, serve
from edgellm.memory.errors import EdgellmError
from edgellm.runtime.distillation.adopted import Adopted
from edgellm.runtime.distillation.orders import Result, TrainingOrder


def run(request: dict[str, Any], send: Send) -> None:
    order, folder = TrainingOrder(**request), Path(os.environ["EDGELLM_TEST_CHILD"])
    in_background(order.niceness)
    (folder / "pid").write_text(str(os.getpid()))
    send({"phase": "learning", "n_lessons": 14})
    while not (folder / "end").exists():
        with (folder / "ticks").open("a") as file:
            file.write(".")
        time.sleep(0.01)
    end = (folder / "end").read_text()
    (folder / "end").unlink()
    if end == "full":
        send({"errno": errno.ENOSPC, "strerror": "No space left on device", "filename": str(folder)})
    elif end == "fail":
        raise EdgellmError("it was not to be")
    else:
        send({"result": asdict(finished(order, end))})


def finished(order: TrainingOrder, end: str) -> Result:
    adopted, base, taken_back = Adopted(Path(order.adopted)), Path(order.draft), None
    if "take back" in end:
        taken_back = "it made things worse"
        found = adopted.find(order.target_key, adapter_for(base).base)
        if found is not None:
            adopted.take_back(order.target_key, found.draft_sha256, taken_back)
    if "adopt" in end:
        adopted.adopt(order.target_key, adapter_for(base, 0.3), base)
    sides = {"old": {"tokens_per_pass": 2.714}, "new": {"tokens_per_pass": 2.951}}
    return Result("adopt" in end, "why", "learnt", comparison=sides, n_taught=14, taken_back=taken_back)


if __name__ == "__main__":
    serve(run, EdgellmError)
