"""GPUs by a scripted NVML: all are counted, one that is lost is not, none cost nothing."""

import sys
from types import SimpleNamespace

import pytest

from gaelp_tasks.models import MemorySnapshot
from gaelp_workers.probes.gpu import Gpus, library

GIB = 1024**3


class Nvml:
    """NVML with these GPUs: (total, free), or the error that asking one raises."""

    class NVMLError(Exception):
        pass

    class NVMLError_NotSupported(NVMLError):  # noqa: N801  NVML's name
        pass

    def __init__(self, *gpus, init=None):
        self.gpus, self.init, self.calls = list(gpus), init, []

    def nvmlInit(self):  # noqa: N802  NVML's name
        self.calls.append("init")
        if self.init:
            raise self.init

    def nvmlDeviceGetCount(self):  # noqa: N802  NVML's name
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, number):  # noqa: N802  NVML's name
        return number

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802  NVML's name
        self.calls.append(handle)
        gpu = self.gpus[handle]
        if isinstance(gpu, Exception):
            raise gpu
        return SimpleNamespace(total=gpu[0], free=gpu[1], used=gpu[0] - gpu[1])


def gpus_of(nvml, driver):
    return Gpus(lambda: nvml, driver=driver)


@pytest.fixture
def no_driver(tmp_path):
    return tmp_path / "version"


@pytest.fixture
def driver(no_driver):
    no_driver.write_text("NVRM version: made up")
    return no_driver


def absent():
    raise ImportError("No module named 'pynvml'")


def told(total, free):
    return MemorySnapshot(total_bytes=total, free_bytes=free, source="gpu")


def test_each_gpu_is_counted(driver):
    probe = gpus_of(Nvml((24 * GIB, 20 * GIB), (24 * GIB, 3 * GIB)), driver)
    assert probe() == told(48 * GIB, 23 * GIB)


def test_the_figures_follow_the_gpus_and_nvml_is_opened_once(driver):
    nvml = Nvml((10, 10))
    probe = gpus_of(nvml, driver)
    assert probe() == told(10, 10)
    nvml.gpus[0] = (10, 4)
    assert probe() == told(10, 4)
    assert nvml.calls.count("init") == 1


def test_a_gpu_that_is_lost_takes_the_others_with_it_not(driver):
    nvml = Nvml((24, 20), (48, 40))
    probe = gpus_of(nvml, driver)
    nvml.gpus[0] = nvml.NVMLError("GPU is lost")
    assert probe() == told(48, 40)
    nvml.gpus[0] = (24, 1)
    assert probe() == told(72, 41)


def test_when_all_are_lost_that_is_an_error_and_not_a_machine_without_gpus(driver):
    nvml = Nvml((24, 20))
    probe = gpus_of(nvml, driver)
    nvml.gpus[0] = nvml.NVMLError("GPU is lost")
    with pytest.raises(OSError, match="no GPU tells its memory: GPU is lost"):
        probe()


def test_a_gpu_that_does_not_answer_at_the_start_is_counted_once_it_does(driver):
    nvml = Nvml(Nvml.NVMLError("busy"))
    probe = gpus_of(nvml, driver)
    with pytest.raises(OSError, match="busy"):
        probe()
    nvml.gpus[0] = (24, 20)
    assert probe() == told(24, 20)


def test_a_gpu_that_shares_the_hosts_ram_is_none(driver):
    nvml = Nvml(Nvml.NVMLError_NotSupported("Not Supported"))
    probe = gpus_of(nvml, driver)
    assert [probe(), probe()] == [None, None]
    assert nvml.calls == ["init", 0]


def test_without_the_library_it_is_looked_for_once_and_nothing_is_said(no_driver, caplog):
    tries = []

    def load():
        tries.append(1)
        absent()

    probe = Gpus(load, driver=no_driver)
    assert [probe(), probe(), probe()] == [None] * 3
    assert (len(tries), caplog.text) == (1, "")


def test_without_a_driver_it_is_looked_for_once_and_nothing_is_said(no_driver, caplog):
    nvml = Nvml(init=Nvml.NVMLError("Driver Not Loaded"))
    probe = gpus_of(nvml, no_driver)
    assert [probe(), probe()] == [None, None]
    assert (nvml.calls, caplog.text) == (["init"], "")


def test_a_driver_without_the_library_is_told_once_with_what_to_install(driver, caplog):
    probe = Gpus(absent, driver=driver)
    assert [probe(), probe()] == [None, None]
    assert caplog.text.count("install gaelp-tasks[gpu]") == 1


def test_a_driver_that_refuses_is_told_once(driver, caplog):
    probe = gpus_of(Nvml(init=Nvml.NVMLError("Driver/library version mismatch")), driver)
    assert [probe(), probe()] == [None, None]
    assert caplog.text.count("version mismatch") == 1


def test_the_real_library_has_the_names_that_are_used():
    nvml = library()
    assert sys.modules["pynvml"] is nvml
    for name in (
        "nvmlInit",
        "nvmlDeviceGetCount",
        "nvmlDeviceGetHandleByIndex",
        "nvmlDeviceGetMemoryInfo",
    ):
        assert callable(getattr(nvml, name)), name
    assert {"total", "free"} <= {field for field, _ in nvml.c_nvmlMemory_t._fields_}


def test_the_real_library_raises_what_is_caught():
    nvml = library()
    refused = nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)
    assert isinstance(refused, nvml.NVMLError_NotSupported)
    assert issubclass(nvml.NVMLError_NotSupported, nvml.NVMLError)


def test_on_this_machine_the_real_library_tells_of_gpus_or_of_none():
    said = Gpus()()
    assert said is None or (said.source == "gpu" and 0 <= said.free_bytes <= said.total_bytes)
