# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many bytes a model needs at a precision: stated by the model's own table, or estimated."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes needed, between a low and a high end; C(basis) is C(stated) (by the model's own table) or C(estimated)."""

    low_bytes: int
    high_bytes: int
    basis: str


def weights_bytes(model: Mapping[str, Any], bits: int) -> int | None:
    """C(params * bits / 8); embeddings stay 16 bit when the rest is quantised (that is what the quantisers do)."""
    parameters = model.get("parameters")
    if not parameters:
        return None
    embedding = min(int(model.get("embedding_parameters") or 0), int(parameters)) if bits < 16 else 0
    return (int(parameters) - embedding) * bits // 8 + embedding * 2


def kv_bytes(model: Mapping[str, Any], bytes_per_value: int) -> int:
    """C(2 * layers * kv_heads * head_dim * context * bytes): the keys and values of one full context; 0 when unknown."""
    factors = [int(model.get(key) or 0) for key in ("layers", "kv_heads", "head_dim", "context_tokens")]
    product = 2 * bytes_per_value
    for factor in factors:
        product *= factor
    return product


def need(
    model: Mapping[str, Any], precision: str, bits: int, constants: Mapping[str, Any], device: str = "cuda"
) -> Need | None:
    """What a model needs on a device, or nothing when neither a measurement nor a size is known.

    A figure of the model's own table wins (C(memory_bytes) on a card, C(host_bytes) on the processor). It is of its own
    context length: nothing is added to it.
    """
    entry = (model.get("precisions") or {}).get(precision) or {}
    measured = entry.get("memory_bytes" if device == "cuda" else "host_bytes")
    if measured:
        return Need(int(measured), int(measured), "stated")
    weights = weights_bytes(model, bits)
    if weights is None:
        return None
    value_bytes = max(int(constants["kv_bytes_per_value"]), bits // 8)
    base = weights + kv_bytes(model, value_bytes)
    if device == "cpu":
        overhead = int(constants["cpu_overhead_bytes"])
        return Need(base + overhead, base + overhead, "estimated")
    low, high = int(constants["overhead_low_bytes"]), int(constants["overhead_high_bytes"])
    return Need(base + low, base + high, "estimated")
