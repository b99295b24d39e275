"""What a child may do instead of answering, for tests of those who ask it: `python -m child_jobs`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgellm.memory.children import Send, in_background, serve, stop_asked


class Refused(RuntimeError):
    """A failure that the job knows of."""


def job(request: Mapping[str, Any], send: Send) -> None:
    send({"began": True, **request})
    match request["act"]:
        case "talk":
            print('{"forged": 1}')
            os.write(1, b'{"forged": 2}\n')
            subprocess.run([sys.executable, "-c", "print('{\"forged\": 3}')"], check=True)
        case "signal":
            os.kill(os.getpid(), signal.Signals[request["name"]])
        case "assert":
            sys.stderr.write(
                "llama-context.cpp:1785: GGML_ASSERT(n_tokens_all <= cparams.n_batch) failed\n[New LWP 7]\n"
            )
            sys.stderr.flush()
            os.abort()
        case "refuse":
            raise Refused("this file\nis refused")
        case "bug":
            raise ZeroDivisionError("a bug")
        case "count":  # to a file, so that it is seen whether it goes on
            in_background()
            for n in range(100_000):
                Path(request["path"]).write_text(str(n))
                time.sleep(0.01)
        case "heed":
            send({"stopped": stop_asked.wait(60)})
        case "environment":
            send({"value": os.environ.get(request["name"])})
        case "hang":
            time.sleep(600)
        case "exit":
            os._exit(7)
    send({"done": True})


if __name__ == "__main__":
    serve(job, Refused)
