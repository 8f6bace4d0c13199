"""On what was measured: the device, the threads, the versions."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from tokred.errors import ConfigError


def versions() -> dict[str, str]:
    """Versions of what decides about the numbers."""
    import timm

    from tokred import __version__

    return {
        "tokred": __version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }


@cache
def revision() -> str | None:
    """The git revision of this package, where it runs from a checkout; changed files add "-dirty"."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def device_name(device: torch.device | str) -> str:
    """What the device calls itself."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return _cpu_name()
    return str(device)


def require_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ConfigError: there is no such device here.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"Device {name!r} cannot be used here ({reason}). Use 'cpu', or check the driver.") from error
    return device


@contextmanager
def threads(number: int | None) -> Iterator[int]:
    """Let torch use that many CPU threads inside the block; ``None`` leaves the number as it is."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
