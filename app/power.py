"""Whether electricity may be spent on what nobody waits for."""

from __future__ import annotations

import contextlib
from typing import Any

MIN_CHARGE = 30.0  # percent, below which a battery is left in peace, on the mains too


def may_spend(*, on_battery: bool) -> bool:
    """On the mains, and with `on_battery` on a battery too, while that is charged; a machine without one always may."""
    battery = _battery()
    if battery is None:
        return True
    # Where a system does not say whether it is plugged in, it is taken not to be.
    return (bool(battery.power_plugged) or on_battery) and battery.percent >= MIN_CHARGE


def _battery() -> Any:
    """What psutil says of it; None without one, and on systems of which psutil does not know."""
    import psutil

    with contextlib.suppress(OSError, RuntimeError, AttributeError, NotImplementedError):
        return psutil.sensors_battery()
    return None
