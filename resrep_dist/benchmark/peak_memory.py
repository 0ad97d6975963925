"""Measures peak memory: from the allocator of a GPU, otherwise from the Linux kernel."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

_GPU = "GPU:0"
_PROCESS = Path("/proc/self")


def peak_memory_growth(function: Callable[[], Any]) -> int | None:
    """Call a function and return by how many bytes the memory of the GPU, or of this process, grew at its peak.

    Args:
        function: The function.

    Returns:
        Bytes. None if the memory cannot be measured on this system; the function may not have been called then.
    """
    if tf.config.list_physical_devices("GPU"):
        tf.config.experimental.reset_memory_stats(_GPU)
        before = tf.config.experimental.get_memory_info(_GPU)["current"]
        function()
        return tf.config.experimental.get_memory_info(_GPU)["peak"] - before
    try:
        # Memory that earlier calls have freed must not hide the memory that this one takes.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        # 5 resets the kernel's record of the peak.
        (_PROCESS / "clear_refs").write_text("5")
        before = _status_bytes("VmRSS")
        function()
        # The kernel updates its counters only from time to time, so the growth may seem negative for a small call.
        return max(0, _status_bytes("VmHWM") - before)
    except (OSError, AttributeError, KeyError):
        # Another system, or one that does not let a process ask.
        return None


def _status_bytes(key: str) -> int:
    lines = (line.split() for line in (_PROCESS / "status").read_text().splitlines())
    return 1024 * {words[0]: int(words[1]) for words in lines if words[-1] == "kB"}[f"{key}:"]
