# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes harness.py importable for the tests beside it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
