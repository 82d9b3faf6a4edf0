# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two ways to call NVML behind one small protocol.

A binding has ``name`` and ``call(function, *arguments)``. Function names, arguments, returned values and the attributes
of returned structures are those of the Python package ``nvidia-ml-py``; every failure is an ``NvmlError`` with NVML's
number. ``PynvmlBinding`` hands the call to that package, ``CtypesBinding`` does it itself with nothing but ctypes.
Sources: nvml.h (CUDA 13), nvidia-ml-py 13.615.71.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_char, c_int, c_uint, c_ulonglong, create_string_buffer
from typing import Any, Callable

# nvmlReturn_t
SUCCESS = 0
NOT_SUPPORTED = 3
NO_PERMISSION = 4
NOT_FOUND = 6
INSUFFICIENT_SIZE = 7
INSUFFICIENT_POWER = 8
DRIVER_NOT_LOADED = 9
TIMEOUT = 10
IRQ_ISSUE = 11
LIBRARY_NOT_FOUND = 12
FUNCTION_NOT_FOUND = 13
CORRUPTED_INFOROM = 14
GPU_IS_LOST = 15
RESET_REQUIRED = 16
OPERATING_SYSTEM = 17
LIB_RM_VERSION_MISMATCH = 18
UNKNOWN = 999

# Texts for the moment when the library cannot be asked for its own. Source: nvidia-ml-py.
TEXTS = {
    1: "Uninitialized",
    2: "Invalid Argument",
    3: "Not Supported",
    4: "Insufficient Permissions",
    6: "Not Found",
    7: "Insufficient Size",
    8: "Insufficient External Power",
    9: "Driver Not Loaded",
    10: "Timeout",
    11: "Interrupt Request Issue",
    12: "NVML Shared Library Not Found",
    13: "Function Not Found",
    14: "Corrupted infoROM",
    15: "GPU is lost",
    16: "GPU requires restart",
    17: "The operating system has blocked the request.",
    18: "RM has detected an NVML/RM version mismatch.",
    999: "Unknown Error",
}


class NvmlError(Exception):
    """NVML said no. ``code`` is nvmlReturn_t, ``text`` NVML's words."""

    def __init__(self, code: int, text: str | None = None) -> None:
        self.code = int(code)
        self.text = text or TEXTS.get(self.code, f"NVML error {self.code}")
        super().__init__(f"{self.text} (NVML {self.code})")


class PciInfo(Structure):
    """nvmlPciInfo_t."""

    _fields_ = [
        ("busIdLegacy", c_char * 16),
        ("domain", c_uint),
        ("bus", c_uint),
        ("device", c_uint),
        ("pciDeviceId", c_uint),
        ("pciSubSystemId", c_uint),
        ("busId", c_char * 32),
    ]


class Memory(Structure):
    """nvmlMemory_t, bytes."""

    _fields_ = [("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong)]


class MemoryV2(Structure):
    """nvmlMemory_v2_t, bytes; the reservation of driver and firmware is told apart."""

    _fields_ = [
        ("version", c_uint),
        ("total", c_ulonglong),
        ("reserved", c_ulonglong),
        ("free", c_ulonglong),
        ("used", c_ulonglong),
    ]


class Utilization(Structure):
    """nvmlUtilization_t, percent."""

    _fields_ = [("gpu", c_uint), ("memory", c_uint)]


class ProcessInfo(Structure):
    """nvmlProcessInfo_v2_t, the same layout as v3."""

    _fields_ = [
        ("pid", c_uint),
        ("usedGpuMemory", c_ulonglong),
        ("gpuInstanceId", c_uint),
        ("computeInstanceId", c_uint),
    ]


class DeviceAttributes(Structure):
    """nvmlDeviceAttributes_t of a MIG device."""

    _fields_ = [
        ("multiprocessorCount", c_uint),
        ("sharedCopyEngineCount", c_uint),
        ("sharedDecoderCount", c_uint),
        ("sharedEncoderCount", c_uint),
        ("sharedJpegCount", c_uint),
        ("sharedOfaCount", c_uint),
        ("gpuInstanceSliceCount", c_uint),
        ("computeInstanceSliceCount", c_uint),
        ("memorySizeMB", c_ulonglong),
    ]


class FabricInfoV2(Structure):
    """nvmlGpuFabricInfo_v2_t."""

    _fields_ = [
        ("version", c_uint),
        ("clusterUuid", ctypes.c_uint8 * 16),
        ("status", c_uint),
        ("cliqueId", ctypes.c_uint32),
        ("state", c_uint),
        ("healthMask", ctypes.c_uint32),
    ]


class FabricInfo(Structure):
    """nvmlGpuFabricInfo_t."""

    _fields_ = [
        ("clusterUuid", ctypes.c_uint8 * 16),
        ("status", c_uint),
        ("cliqueId", ctypes.c_uint32),
        ("state", c_uint),
    ]


def struct_version(structure: Any, version: int) -> int:
    """NVML_STRUCT_VERSION: the size of the structure with its version in the top byte."""
    return ctypes.sizeof(structure) | (version << 24)


MEMORY_V2 = struct_version(MemoryV2, 2)
FABRIC_V2 = struct_version(FabricInfoV2, 2)


class _Device(Structure):
    """Opaque."""


Handle = POINTER(_Device)

# Functions that fill a text buffer: name -> bytes. With a handle as first argument unless the name starts with nvmlSystem.
_TEXT = {
    "nvmlSystemGetDriverVersion": 80,
    "nvmlSystemGetNVMLVersion": 80,
    "nvmlDeviceGetName": 96,
    "nvmlDeviceGetUUID": 96,
    "nvmlDeviceGetSerial": 30,
}

# Functions (handle, out...) or (handle, in..., out...): name -> (symbol, number of inputs, types of the outputs).
# One output comes back as a number, several as a list.
_NUMBERS: dict[str, tuple[str, int, tuple[Any, ...]]] = {
    "nvmlDeviceGetMinorNumber": ("nvmlDeviceGetMinorNumber", 0, (c_uint,)),
    "nvmlDeviceGetPersistenceMode": ("nvmlDeviceGetPersistenceMode", 0, (c_uint,)),
    "nvmlDeviceGetDisplayActive": ("nvmlDeviceGetDisplayActive", 0, (c_uint,)),
    "nvmlDeviceGetComputeMode": ("nvmlDeviceGetComputeMode", 0, (c_uint,)),
    "nvmlDeviceGetArchitecture": ("nvmlDeviceGetArchitecture", 0, (c_uint,)),
    "nvmlDeviceGetCudaComputeCapability": ("nvmlDeviceGetCudaComputeCapability", 0, (c_int, c_int)),
    "nvmlDeviceGetEnforcedPowerLimit": ("nvmlDeviceGetEnforcedPowerLimit", 0, (c_uint,)),
    "nvmlDeviceGetPowerManagementDefaultLimit": ("nvmlDeviceGetPowerManagementDefaultLimit", 0, (c_uint,)),
    "nvmlDeviceGetPowerManagementLimitConstraints": (
        "nvmlDeviceGetPowerManagementLimitConstraints",
        0,
        (c_uint, c_uint),
    ),
    "nvmlDeviceGetPowerUsage": ("nvmlDeviceGetPowerUsage", 0, (c_uint,)),
    "nvmlDeviceGetTemperature": ("nvmlDeviceGetTemperature", 1, (c_uint,)),
    "nvmlDeviceGetTemperatureThreshold": ("nvmlDeviceGetTemperatureThreshold", 1, (c_uint,)),
    "nvmlDeviceGetCurrentClocksEventReasons": ("nvmlDeviceGetCurrentClocksEventReasons", 0, (c_ulonglong,)),
    "nvmlDeviceGetCurrentClocksThrottleReasons": ("nvmlDeviceGetCurrentClocksThrottleReasons", 0, (c_ulonglong,)),
    "nvmlDeviceGetEccMode": ("nvmlDeviceGetEccMode", 0, (c_uint, c_uint)),
    "nvmlDeviceGetTotalEccErrors": ("nvmlDeviceGetTotalEccErrors", 2, (c_ulonglong,)),
    "nvmlDeviceGetRetiredPagesPendingStatus": ("nvmlDeviceGetRetiredPagesPendingStatus", 0, (c_uint,)),
    "nvmlDeviceGetRemappedRows": ("nvmlDeviceGetRemappedRows", 0, (c_uint, c_uint, c_uint, c_uint)),
    "nvmlDeviceGetMigMode": ("nvmlDeviceGetMigMode", 0, (c_uint, c_uint)),
    "nvmlDeviceGetMaxMigDeviceCount": ("nvmlDeviceGetMaxMigDeviceCount", 0, (c_uint,)),
    "nvmlDeviceGetGpuInstanceId": ("nvmlDeviceGetGpuInstanceId", 0, (c_uint,)),
    "nvmlDeviceGetComputeInstanceId": ("nvmlDeviceGetComputeInstanceId", 0, (c_uint,)),
    "nvmlDeviceGetNvLinkState": ("nvmlDeviceGetNvLinkState", 1, (c_uint,)),
    "nvmlDeviceGetNvLinkVersion": ("nvmlDeviceGetNvLinkVersion", 1, (c_uint,)),
}

# Functions (handle, in..., structure): name -> (symbol, number of inputs, structure).
_STRUCTURES: dict[str, tuple[str, int, Any]] = {
    "nvmlDeviceGetPciInfo": ("nvmlDeviceGetPciInfo_v3", 0, PciInfo),
    "nvmlDeviceGetUtilizationRates": ("nvmlDeviceGetUtilizationRates", 0, Utilization),
    "nvmlDeviceGetAttributes_v2": ("nvmlDeviceGetAttributes_v2", 0, DeviceAttributes),
    "nvmlDeviceGetNvLinkRemotePciInfo": ("nvmlDeviceGetNvLinkRemotePciInfo_v2", 1, PciInfo),
}


class PynvmlBinding:
    """NVML through the package ``nvidia-ml-py``."""

    name = "pynvml"

    def __init__(self, package: Any) -> None:
        self._package = package

    def call(self, function: str, *arguments: Any) -> Any:
        """Call ``function`` of the package. A function that this version of it lacks is FUNCTION_NOT_FOUND."""
        target = getattr(self._package, function, None)
        if target is None:
            raise NvmlError(FUNCTION_NOT_FOUND)
        try:
            return target(*arguments)
        except self._package.NVMLError as exc:
            raise NvmlError(exc.value, str(exc)) from exc
        except (TypeError, ValueError, AttributeError) as exc:
            # An older package with another signature, or a name that is no UTF-8: this one value is not to be had.
            raise NvmlError(FUNCTION_NOT_FOUND, f"{function}: {exc}") from exc
        except Exception as exc:
            # NVMLLibraryMismatchError and the like are not NVMLErrors.
            raise NvmlError(FUNCTION_NOT_FOUND, f"{function}: {exc}") from exc


class CtypesBinding:
    """NVML through ctypes alone: the functions that this collection reads, nothing that changes a GPU."""

    name = "ctypes"

    def __init__(self, library: str = "libnvidia-ml.so.1") -> None:
        """``library``: a name for the loader, or a path. NvmlError 12 with the loader's words when it cannot be loaded."""
        try:
            self._library = ctypes.CDLL(library)
        except OSError as exc:
            raise NvmlError(LIBRARY_NOT_FOUND, str(exc)) from exc

    def call(self, function: str, *arguments: Any) -> Any:
        """Call ``function`` with the arguments that ``nvidia-ml-py`` would take."""
        if function in _TEXT:
            buffer = create_string_buffer(_TEXT[function])
            self._do(function, *arguments, buffer, c_uint(_TEXT[function]))
            return buffer.value.decode("utf-8", "replace")
        if function in _NUMBERS:
            symbol, inputs, types = _NUMBERS[function]
            outputs = [kind() for kind in types]
            self._do(symbol, *self._inputs(arguments, inputs), *[byref(output) for output in outputs])
            values = [output.value for output in outputs]
            return values if len(values) > 1 else values[0]
        if function in _STRUCTURES:
            symbol, inputs, structure = _STRUCTURES[function]
            result = structure()
            self._do(symbol, *self._inputs(arguments, inputs), byref(result))
            return result
        special: Callable[..., Any] | None = getattr(self, "_" + function, None)
        if special is None:
            raise NvmlError(FUNCTION_NOT_FOUND)
        return special(*arguments)

    def _do(self, symbol: str, *arguments: Any) -> None:
        try:
            function = getattr(self._library, symbol)
        except AttributeError as exc:
            raise NvmlError(FUNCTION_NOT_FOUND) from exc
        code = function(*arguments)
        if code != SUCCESS:
            raise NvmlError(code, self._text(code))

    def _text(self, code: int) -> str | None:
        try:
            function = self._library.nvmlErrorString
        except AttributeError:
            return None
        function.restype = ctypes.c_char_p
        text = function(c_int(code))
        return text.decode("utf-8", "replace") if text else None

    @staticmethod
    def _inputs(arguments: tuple[Any, ...], count: int) -> list[Any]:
        return [arguments[0], *[c_uint(value) for value in arguments[1 : 1 + count]]]

    # What follows is called by name from call().

    def _nvmlInit(self) -> None:  # noqa: N802
        self._do("nvmlInit_v2")

    def _nvmlShutdown(self) -> None:  # noqa: N802
        self._do("nvmlShutdown")

    def _nvmlDeviceGetCount(self) -> int:  # noqa: N802
        count = c_uint()
        self._do("nvmlDeviceGetCount_v2", byref(count))
        return count.value

    def _nvmlSystemGetCudaDriverVersion(self) -> int:  # noqa: N802
        version = c_int()
        self._do("nvmlSystemGetCudaDriverVersion", byref(version))
        return version.value

    def _nvmlSystemGetProcessName(self, pid: int) -> str:  # noqa: N802
        buffer = create_string_buffer(1024)
        self._do("nvmlSystemGetProcessName", c_uint(pid), buffer, c_uint(1024))
        return buffer.value.decode("utf-8", "replace")

    def _nvmlDeviceGetHandleByIndex(self, index: int) -> Any:  # noqa: N802
        handle = Handle()
        self._do("nvmlDeviceGetHandleByIndex_v2", c_uint(index), byref(handle))
        return handle

    def _nvmlDeviceGetMigDeviceHandleByIndex(self, device: Any, index: int) -> Any:  # noqa: N802
        handle = Handle()
        self._do("nvmlDeviceGetMigDeviceHandleByIndex", device, c_uint(index), byref(handle))
        return handle

    def _nvmlDeviceGetMemoryInfo(self, handle: Any, version: int | None = None) -> Any:  # noqa: N802
        if not version:
            plain = Memory()
            self._do("nvmlDeviceGetMemoryInfo", handle, byref(plain))
            return plain
        memory = MemoryV2(version=version)
        self._do("nvmlDeviceGetMemoryInfo_v2", handle, byref(memory))
        return memory

    def _nvmlDeviceGetGpuFabricInfoV(self, handle: Any, info: Any) -> None:  # noqa: N802
        self._do("nvmlDeviceGetGpuFabricInfoV", handle, info)

    def _nvmlDeviceGetGpuFabricInfo(self, handle: Any, info: Any) -> None:  # noqa: N802
        self._do("nvmlDeviceGetGpuFabricInfo", handle, info)

    def _nvmlDeviceGetComputeRunningProcesses_v3(self, handle: Any) -> list[Any]:  # noqa: N802
        return self._processes("nvmlDeviceGetComputeRunningProcesses_v3", handle)

    def _nvmlDeviceGetComputeRunningProcesses_v2(self, handle: Any) -> list[Any]:  # noqa: N802
        return self._processes("nvmlDeviceGetComputeRunningProcesses_v2", handle)

    def _nvmlDeviceGetGraphicsRunningProcesses_v3(self, handle: Any) -> list[Any]:  # noqa: N802
        return self._processes("nvmlDeviceGetGraphicsRunningProcesses_v3", handle)

    def _nvmlDeviceGetGraphicsRunningProcesses_v2(self, handle: Any) -> list[Any]:  # noqa: N802
        return self._processes("nvmlDeviceGetGraphicsRunningProcesses_v2", handle)

    def _processes(self, symbol: str, handle: Any) -> list[Any]:
        count = c_uint(0)
        for _attempt in range(3):
            # Processes come and go between the two calls, so leave room and ask again when it was not enough.
            count.value = count.value * 2 + 16
            buffer = (ProcessInfo * count.value)()
            try:
                self._do(symbol, handle, byref(count), buffer)
            except NvmlError as exc:
                if exc.code == INSUFFICIENT_SIZE:
                    continue
                raise
            return list(buffer[: count.value])
        raise NvmlError(INSUFFICIENT_SIZE)


def open_binding(choice: str = "auto", library: str = "libnvidia-ml.so.1") -> Any:
    """A binding: ``pynvml`` (the package must be importable), ``ctypes``, or ``auto`` (the package, else ctypes).

    Raises NvmlError 12 when the wanted package or library is not there. The package loads its library at nvmlInit, so
    that a missing library shows only there, with the same number.
    """
    if choice in ("auto", "pynvml"):
        try:
            import pynvml
        except Exception as exc:
            # A package that is broken in this interpreter is as good as none.
            if choice == "pynvml":
                raise NvmlError(
                    LIBRARY_NOT_FOUND, f"the Python package nvidia-ml-py cannot be imported: {exc}"
                ) from exc
        else:
            if hasattr(pynvml, "nvmlInit") and hasattr(pynvml, "NVMLError"):
                return PynvmlBinding(pynvml)
            if choice == "pynvml":
                raise NvmlError(LIBRARY_NOT_FOUND, "the Python package pynvml that is installed is not nvidia-ml-py")
    return CtypesBinding(library)
