#!/usr/bin/env python3
# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows of a newer pci.ids that the chip table lacks: ``PYTHONPATH=.collections tests/gpu/update_chip_table.py PCI_IDS``.

Prints the block to add to ``_DEVICES`` of plugins/module_utils/gpu_chips.py. Chips that the table does not know are named
on stderr: they need a row in ``CHIPS`` (with the source of their compute capability) and in ``_BLOCKS`` first.
"""

from __future__ import annotations

import re
import sys

from ansible_collections.gpufleet.llm.plugins.module_utils import gpu_chips

ROW = re.compile(r"^\t([0-9a-f]{4})  ([A-Z]{2}\d{2}[0-9A-F])([A-Z]*)\b(.*)$")
NOT_A_GPU = re.compile(r"Audio|NVSwitch|USB|Controller|PCI|Root|Reserved|Dev ?I[Dd]")
# The table has names from Maxwell on; older chips are known by their blocks.
FIRST_ID = 0x1340


def rows(text: str) -> list[tuple[str, str, str]]:
    """``(device id, chip, name)`` of NVIDIA's GPUs in a pci.ids."""
    section = re.search(r"(?ms)^10de  .*?(?=^[0-9a-f]{4}  )", text)
    found = []
    for line in (section.group(0) if section else "").splitlines():
        match = ROW.match(line)
        if not match or NOT_A_GPU.search(line) or int(match.group(1), 16) < FIRST_ID:
            continue
        name = re.search(r"\[(.+?)\s*\]", match.group(4))
        found.append((match.group(1), match.group(2), name.group(1) if name else "-"))
    return found


def main() -> int:
    with open(sys.argv[1], encoding="utf-8") as stream:
        text = stream.read()
    version = re.search(r"(?m)^#\s+Version:\s+(\S+)", text)
    new = [row for row in rows(text) if gpu_chips.lookup(row[0])["compute_capability_source"] != "table"]
    unknown = sorted({chip for _id, chip, _name in new if chip not in gpu_chips.CHIPS})
    for chip in unknown:
        print(f"chip {chip} is not in CHIPS", file=sys.stderr)
    known = [row for row in new if row[1] in gpu_chips.CHIPS]
    print(f'    "pci.ids {version.group(1) if version else "?"}": """')
    for row in known:
        print(" ".join(row))
    print('""",')
    return 1 if unknown else 0


if __name__ == "__main__":
    sys.exit(main())
