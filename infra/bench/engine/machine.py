"""What the measurement needs to know of the machine: whether it is quiet, what it is, and who else used its processors."""

import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path

import psutil

LOAD_MAX = 0.5
QUIET_WAIT_SECONDS = 180


def wait_until_quiet():
    """Waits for the last minute's load to fall, which the caller's own preparations may have caused. Returns the load."""
    deadline = time.monotonic() + QUIET_WAIT_SECONDS
    while os.getloadavg()[0] > LOAD_MAX and time.monotonic() < deadline:
        time.sleep(5)
    return os.getloadavg()[0]


def busy_seconds():
    """CPU seconds that all processes have used since the machine started."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait - getattr(times, "guest", 0) - getattr(times, "guest_nice", 0)


def processor():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        lines = [line.split(":", 1) for line in file if ":" in line]
    named = {key.strip(): value.strip() for key, value in lines}
    wanted = ("avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
    flags = [flag for flag in wanted if flag in named.get("flags", "").split()]
    return f"{named.get('model name', platform.machine())}, {os.cpu_count()} cores, {', '.join(flags) or 'no AVX-512'}"


def versions(peers):
    llama = subprocess.run([peers / "llama.cpp/bin/llama-server", "--version"], capture_output=True, text=True)
    lines = (llama.stdout + llama.stderr).splitlines()
    found = {"llama.cpp": next((line.removeprefix("version: ") for line in lines if line.startswith("version")), "?")}
    for name in ("transformers", "sentence-transformers", "torch", "onnxruntime"):
        found[name] = importlib.metadata.version(name)
    return found


def commit():
    answer = subprocess.run(
        ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    return answer.stdout.strip() or "unknown"
