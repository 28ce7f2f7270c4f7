"""Devices: those of this machine, and those that a launch declares for workers elsewhere."""

from __future__ import annotations

import pytest
import torch

from irl_exp.machinery import runtime
from irl_exp.machinery.runtime import Device, DeviceError


@pytest.mark.parametrize(
    ("said", "found"),
    [("", []), ("-1", []), ("0,1", ["0", "1"]), ("3", ["3"]), ("GPU-a, GPU-b", ["GPU-a", "GPU-b"])],
)
def test_gpus_are_those_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, said: str, found: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
    assert runtime.gpus.__wrapped__() == found


def test_without_the_variable_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert runtime.gpus.__wrapped__() == ["0", "1", "2"]


def test_each_worker_has_a_gpu_of_its_own_while_there_are_enough() -> None:
    assert [runtime.pinned(["4", "6"], rank) for rank in range(4)] == ["4", "6", "4", "6"]
    assert runtime.pinned([], 1) == ""


def test_what_is_declared_is_not_looked_for_here() -> None:
    device = runtime.declared_device("cuda", "bf16")
    assert (device.name, device.precision) == ("cuda:0", "bf16")
    assert str(device) == "cuda (of workers elsewhere), bf16"
    assert runtime.declared_device("cpu", "auto").precision == "fp32"


def test_a_worker_without_what_was_planned_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="this machine has no usable GPU"):
        runtime.check_declared(runtime.declared_device("cuda", "bf16"), 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    with pytest.raises(DeviceError, match="has no bf16"):
        runtime.check_declared(runtime.declared_device("cuda", "bf16"), 1)


def test_a_worker_of_the_cpu_computes_as_planned() -> None:
    assert runtime.check_declared(runtime.declared_device("cpu", "auto"), 3) == Device("cpu", "fp32", 3)
