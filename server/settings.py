"""What a server is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.runtime.sampling import GREEDY, Sampling

MAX_BODY_BYTES = 16 * 2**20
MAX_HEADER_BYTES = 64 * 2**10  # of a request's line and headers together
MAX_CONNECTIONS = 512


@dataclass(frozen=True, slots=True)
class Settings:
    """How a server behaves; times in seconds."""

    sampling: Sampling = GREEDY  # where a request leaves it open
    n_queue: int = 64  # requests that may wait; more are turned away
    api_keys: tuple[str, ...] = ()  # any of these is needed; none: nobody is asked for one
    origins: tuple[str, ...] = ()  # pages of other hosts that may ask, beside those of this machine
    is_loopback: bool = True  # bound where only this machine reaches it
    logs_requests: bool = False  # a line for each, once it is over
    max_body_bytes: int = MAX_BODY_BYTES
    head_s: float = 20.0  # in which a request's headers have to come
    body_s: float = 60.0  # in which its body has to come
    ping_s: float = 15.0  # a stream that has nothing to say shows so often that it is alive
