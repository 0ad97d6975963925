"""The machine that this process runs on."""

import os
import platform


def machine() -> dict[str, str]:
    """Return what the times of this machine depend on."""
    return {
        "processor": _processor(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "cores": str(visible_cores()),
    }


def visible_cores() -> int:
    """Return the number of processor cores on which this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            if name := next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), ""):
                return name
        # Boards with ARM processors have no such line.
        with open("/proc/device-tree/model", encoding="utf-8") as file:
            return file.read().strip("\0 \n") or "unknown"
    except OSError:
        return platform.processor() or "unknown"
