#!/usr/bin/env python3
# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write docs/reference/gpu_facts-states.md from the catalogue of states: ``PYTHONPATH=.collections tests/gpu/states_page.py``."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.gpufleet.llm.plugins.module_utils.gpu_states import CATALOGUE

PAGE = Path(__file__).resolve().parents[2] / "docs/reference/gpu_facts-states.md"
HEAD = """# States of gpu_facts

`gpufleet.llm.gpu_facts` never fails because of what it finds. Everything that is wrong is a state with a name; the worst one
is `gpufleet_gpu.state`, all of them are in `gpufleet_gpu.states`, each with `detail` (the values found) and `remedy`.

* **error**: no CUDA program can use the GPU (or, without an address, any GPU of the node).
* **warning**: it works and needs attention.
* **info**: worth knowing; it never becomes `gpufleet_gpu.state`.

A node on which nothing is wrong has state `ok`. The order below is the order of severity. The page is made from
`plugins/module_utils/gpu_states.py` by `tests/gpu/states_page.py`.

The states and the reading of NVML were tested with a stand-in for NVIDIA's library; they are *untested on a real card* until
`pytest tests/gpu` has run on one.

| State | Severity | Cause | Remedy |
|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    rows = [
        f"| `{name}` | {entry['severity']} | {entry['cause']} | {entry['remedy']} |"
        for name, entry in CATALOGUE.items()
    ]
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
