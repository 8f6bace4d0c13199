"""Memory of the process is what the system says, and the peak of a call is forgotten by the next."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tokred.bench import memory
from tokred.bench.memory import is_out_of_memory, resident_peak

MB = 2**20


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a peak")
def test_the_peak_of_one_call_is_not_that_of_another():
    # in a process of its own: an old one holds free memory that another call may take without growing
    code = """
import torch
from tokred.bench.memory import resident_peak
print(*(resident_peak(lambda: torch.ones(n * 2**18).sum()) for n in (1, 100, 1)))
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    small, large, again = map(int, found.split())
    assert large > small + 90 * MB
    assert again < large - 50 * MB


def test_a_system_that_does_not_say_it_is_believed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "Path", lambda name: Path("/nowhere") / name.lstrip("/"))
    assert resident_peak(lambda: pytest.fail("was run for nothing")) is None


def test_memory_that_ends_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as refusal:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(refusal.value)
    assert is_out_of_memory(torch.cuda.OutOfMemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
