"""How much memory something takes at its peak: on a GPU its allocator says, on Linux the kernel."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

_GPU = "GPU:0"
_PROCESS = Path("/proc/self")


def peak_memory_growth(function: Callable[[], Any]) -> int | None:
    """Bytes that this process, or its GPU, holds at most during a call above what it held before; none if not known."""
    if tf.config.list_physical_devices("GPU"):
        tf.config.experimental.reset_memory_stats(_GPU)
        before = tf.config.experimental.get_memory_info(_GPU)["current"]
        function()
        return tf.config.experimental.get_memory_info(_GPU)["peak"] - before
    try:
        # What earlier calls have freed must not hide what this one takes.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        # 5: the kernel forgets the peak so far.
        (_PROCESS / "clear_refs").write_text("5")
        before = _status_bytes("VmRSS")
        function()
        # The kernel sums its counters up now and then only: a small call can seem to have taken less than nothing.
        return max(0, _status_bytes("VmHWM") - before)
    except (OSError, AttributeError, KeyError):
        # Another system, or one that does not let a process ask.
        return None


def _status_bytes(key: str) -> int:
    lines = (line.split() for line in (_PROCESS / "status").read_text().splitlines())
    return 1024 * {words[0]: int(words[1]) for words in lines if words[-1] == "kB"}[f"{key}:"]
