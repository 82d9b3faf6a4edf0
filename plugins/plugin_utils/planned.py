# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hand the values of a plan to the roles, which know nothing of plans (docs/explanation/contracts.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def planned_models(wanted: Sequence[Any], plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """C(llm_model_wanted) with the precision and the device that the plan chose, where the inventory left them open.

    @param wanted: names, or dicts with C(name) and what differs from the catalogue.
    @param plan: C(gpufleet_plan); its C(models) are matched by name. A model that the plan does not know stays as it is.
    @returns: one dict per wanted model. What the inventory says is never changed.
    """
    chosen = {str(m["name"]): m for m in plan.get("models") or []}
    models = []
    for entry in wanted:
        model = dict(entry) if isinstance(entry, Mapping) else {"name": str(entry)}
        found = chosen.get(str(model.get("name")), {})
        for key in ("precision", "device"):
            if model.get(key, "auto") == "auto" and found.get(key):
                model[key] = str(found[key])
        models.append(model)
    return models
