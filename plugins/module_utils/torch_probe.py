# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs inside the environment that is checked: one JSON line per step, so that a crash tells how far it came.

The source of this file is given on standard input to the environment's Python (3.7 or later), which is not the Python
that runs the module: it imports nothing of the collection. Importing it does nothing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import re
import sys
import time
import warnings
from typing import Any

# Anything that a library prints stays apart from the probe's own lines.
MARK = "gpufleet-torch-probe "
STEPS = ("add", "matmul", "conv2d", "sparse")


def say(stage: str, **values: Any) -> None:
    """One line of the protocol on standard output."""
    sys.stdout.write(MARK + json.dumps(dict(values, stage=stage)) + "\n")
    sys.stdout.flush()


def site_folders() -> list[str]:
    """The directories of sys.path in which packages lie."""
    return [os.path.abspath(one) for one in sys.path if one and os.path.isdir(one)]


def cuda_libraries() -> list[str]:
    """Paths of the CUDA libraries that this process has mapped."""
    found: list[Any] = []
    try:
        with open("/proc/self/maps") as stream:
            for line in stream:
                path = line.rstrip("\n").split(None, 5)[-1]
                name = os.path.basename(path)
                if name.startswith(("libcu", "libnvJitLink", "libnvrtc", "libnccl")) and path not in found:
                    found.append(path)
    except OSError:
        pass
    return found


def compute(torch: Any, device: str, step: str) -> str:
    """One computation whose result is known exactly (small integers in float32); returns what differs, or an empty text."""
    if step == "add":
        got: Any = (torch.zeros(1, device=device) + 1).cpu().tolist()
        wanted: Any = [1.0]
    elif step == "matmul":
        got = (torch.ones(64, 64, device=device) @ torch.ones(64, 64, device=device)).sum().cpu().item()
        wanted = 64.0 * 64 * 64
    elif step == "conv2d":
        image = torch.ones(1, 3, 32, 32, device=device)
        kernel = torch.ones(4, 3, 3, 3, device=device)
        got = torch.nn.functional.conv2d(image, kernel).sum().cpu().item()
        wanted = 4.0 * 30 * 30 * 27
    else:
        indices = torch.tensor([[0, 1, 2], [2, 0, 1]])
        left = torch.sparse_coo_tensor(indices, torch.tensor([1.0, 2.0, 3.0]), (3, 3)).to(device)
        right = torch.arange(9, dtype=torch.float32).reshape(3, 3).to(device)
        # A product with a dense matrix goes through cuSPARSE, which brings nvJitLink.
        got = torch.sparse.mm(left, right).cpu().tolist()
        wanted = [[6.0, 7.0, 8.0], [0.0, 2.0, 4.0], [9.0, 12.0, 15.0]]
    return "" if got == wanted else f"{step} gave {got!r}, wanted {wanted!r}"


def device_of(torch: Any, wanted: str) -> str:
    """cpu or cuda, by what was asked for and what is there."""
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def describe(torch: Any) -> dict[str, Any]:
    """Version, build and what the build was made for; nothing here starts the driver."""
    cuda = torch.version.cuda
    hip = getattr(torch.version, "hip", None)
    arch_list: list[str] = []
    with contextlib.suppress(Exception):
        # get_arch_list() is empty without a usable card; the build's own flags are not.
        arch_list = list(torch.cuda.get_arch_list()) or torch._C._cuda_getArchFlags().split()
    cudnn = None
    with contextlib.suppress(Exception):
        cudnn = torch.backends.cudnn.version() if cuda else None
    return {
        "version": str(torch.__version__),
        "cuda": cuda,
        "cudnn": cudnn,
        "arch_list": arch_list,
        "build": "cuda" if cuda else ("rocm" if hip else "cpu"),
        "debug": bool(torch.version.debug),
    }


def written_version(folder: str) -> dict[str, Any]:
    """Version and CUDA version as torch/version.py has them, without importing anything; None where it does not tell."""
    found: dict[str, Any] = {"version": None, "cuda": None}
    with contextlib.suppress(OSError), open(os.path.join(folder, "version.py")) as stream:
        for line in stream:
            match = re.match(r"(__version__|cuda)\b[^=]*=\s*['\"]([^'\"]+)['\"]", line)
            if match:
                found["cuda" if match.group(1) == "cuda" else "version"] = match.group(2)
    return found


def cards(torch: Any) -> list[dict[str, str]]:
    """Name and compute capability of the cards that torch sees."""
    found: list[Any] = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        found.append({"name": torch.cuda.get_device_name(index), "compute_capability": f"{major}.{minor}"})
    return found


def main(wanted: str, limit: float) -> int:
    """All steps; a failing one ends the probe with its error in the last line."""
    import faulthandler
    import traceback

    faulthandler.enable()
    # A watchdog in C: it ends the process also while native code hangs.
    faulthandler.dump_traceback_later(limit, exit=True)
    say("python", version=platform.python_version(), executable=sys.executable, prefix=sys.prefix, sites=site_folders(),
        machine=platform.machine())  # fmt: skip
    spec = importlib.util.find_spec("torch")
    if spec is None:
        say("error", step="find", error="ModuleNotFoundError: No module named 'torch'")
        return 3
    folder = os.path.dirname(spec.origin) if spec.origin else ""
    say("found", torch_path=folder, **written_version(folder))
    step = "import"
    started = time.time()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.filterwarnings("ignore", message="Sparse invariant checks")
            import torch

            say("torch", import_seconds=round(time.time() - started, 2), **describe(torch))
            step = "init"
            available = bool(torch.cuda.is_available())
            device = device_of(torch, wanted)
            say("device", device=device, available=available, cards=cards(torch) if available else [],
                warnings=[str(one.message) for one in caught][:10])  # fmt: skip
            for step in STEPS:
                began = time.time()
                differs = compute(torch, device, step)
                say("step", step=step, seconds=round(time.time() - began, 3), differs=differs)
            if device == "cuda":
                torch.cuda.synchronize()
        say("done", libraries=cuda_libraries(), warnings=[str(one.message) for one in caught][:10])
    except BaseException as exc:
        say("error", step=step, error="".join(traceback.format_exception_only(type(exc), exc)).strip(),
            trace=traceback.format_exc()[-4000:], libraries=cuda_libraries(),
            warnings=[str(one.message) for one in caught][:10])  # fmt: skip
        return 3
    return 0


def parse(output: str) -> list[dict[str, Any]]:
    """The lines of the protocol in a probe's standard output, as a list of dicts; other lines are passed over."""
    found: list[Any] = []
    for line in output.splitlines():
        start = line.find(MARK)
        if start >= 0:
            try:
                row = json.loads(line[start + len(MARK) :])
            except ValueError:
                continue
            if isinstance(row, dict):
                found.append(row)
    return found


if __name__ == "__main__" and len(sys.argv) == 3:
    code = main(sys.argv[1], float(sys.argv[2]))
    sys.stdout.flush()
    sys.stderr.flush()
    # No destructors: a broken driver may hang in them.
    os._exit(code)
