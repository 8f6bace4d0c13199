"""Energy is counted by the driver, or left out."""

import sys
from types import SimpleNamespace

import pytest
import torch

from tokred.bench import energy


class NVMLError(Exception):
    pass


class Driver:
    """A GPU that takes 3 J for every call of :meth:`work`."""

    NVMLError = NVMLError

    def __init__(self, *, counts: bool = True) -> None:
        self.calls, self.counts = 0, counts

    def work(self) -> None:
        self.calls += 1

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        assert uuid == "GPU-12-34"
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if not self.counts:
            raise NVMLError("Not Supported")
        return 7_000_000 + 3000 * self.calls


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="12-34"))
    monkeypatch.setattr(energy, "wait", lambda device: None)
    monkeypatch.setattr(energy, "_SECONDS", 0.01)


def test_a_call_costs_what_the_counter_says_by_the_number_of_calls(gpu: None, monkeypatch: pytest.MonkeyPatch):
    driver = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", driver)  # type: ignore[arg-type]
    assert energy.joules(driver.work, "cuda") == 3.0
    assert driver.calls > 1


@pytest.mark.parametrize("module", [None, Driver(counts=False)])
def test_where_nobody_counts_nothing_is_claimed(gpu: None, monkeypatch: pytest.MonkeyPatch, module: object):
    monkeypatch.setitem(sys.modules, "pynvml", module)  # type: ignore[arg-type]
    assert energy.joules(lambda: pytest.fail("was run for nothing"), "cuda") is None


def test_a_cpu_has_no_counter():
    assert energy.joules(lambda: pytest.fail("was run for nothing"), "cpu") is None
