"""Processes that a test began, apart from those of tests before it that are on their way out."""

from __future__ import annotations

import psutil


def children() -> set[psutil.Process]:
    """Children of this process that run, of whatever test."""
    return {one for one in psutil.Process().children() if runs(one)}


def runs(process: psutil.Process) -> bool:
    """Whether it has not ended, reaped or not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
