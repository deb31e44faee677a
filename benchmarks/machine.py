"""The machine on which the numbers were measured."""

import os
import platform
from importlib.metadata import version
from typing import Any


def cores() -> int:
    """The number of cores this process may use: both frameworks get this many threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """The versions and the processor."""
    return {
        "Python": platform.python_version(),
        "JAX": version("jax"),
        "jaxlib": version("jaxlib"),
        "processor": _processor(),
        "cores": cores(),
    }


def _processor():
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
