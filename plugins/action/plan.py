# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the plan of a node on the controller. Documentation: plugins/modules/plan.py."""

from __future__ import annotations

import os
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.gpufleet.llm.plugins.plugin_utils import catalog, solver, solver_input, tables
from ansible_collections.gpufleet.llm.plugins.plugin_utils.untag import plain

ARGUMENTS: dict[str, Any] = {
    "models": {"type": "list", "elements": "raw", "default": []},
    "catalog_dirs": {"type": "list", "elements": "path", "default": []},
    "pins": {"type": "dict", "default": {}},
    "facts": {"type": "dict"},
    "pci_ids": {"type": "list", "elements": "str"},
    "models_path": {"type": "path", "default": "/"},
    "memory_basis": {"type": "str", "default": "free", "choices": ["free", "total"]},
}


def wanted(models: list[Any], catalog_dirs: list[str]) -> list[dict[str, Any]]:
    """Models by name or entry out of the catalogue; a plain dictionary of the solver (it has C(precisions)) as it is.

    :raises AnsibleActionFail: when the catalogue has no such model, or an entry is not right.
    """
    folder = os.path.join(os.path.dirname(__file__), "..", "..", "roles", "llm_model", "catalog")
    own = [m for m in models if isinstance(m, dict) and "precisions" in m]
    named = [m for m in models if not (isinstance(m, dict) and "precisions" in m)]
    if not named:
        return own
    try:
        return own + catalog.wanted_models(named, [*catalog_dirs, os.path.normpath(folder)])
    except catalog.CatalogError as exc:
        raise AnsibleActionFail(f"The wanted models are not right: {exc}") from exc


def with_pci_ids(facts: dict[str, Any], pci_ids: list[str]) -> dict[str, Any]:
    """Facts as if the node had just these cards, of which only the PCI id is known."""
    cards = [{"pci_device_id": text.lower().removeprefix("0x").rpartition(":")[2]} for text in pci_ids]
    return {**facts, "gpufleet_gpu": {"gpus": cards}}


class ActionModule(ActionBase):
    """C(plan) runs on the controller only; no connection to the node is made."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables: dict[str, Any] = task_vars or {}
        _dummy, args = self.validate_argument_spec(argument_spec=ARGUMENTS)
        facts = plain(args["facts"] if args["facts"] is not None else variables.get("ansible_facts") or {})
        if args["pci_ids"] is not None:
            facts = with_pci_ids(facts, plain(args["pci_ids"]))
        if "gpufleet_gpu" not in facts:
            raise AnsibleActionFail(
                "There are no facts about the node's GPUs to plan with. Run gpufleet.llm.gpu_facts before, or give pci_ids."
            )
        known = tables.load()
        request = solver_input.request(
            str(variables.get("inventory_hostname") or ""),
            facts,
            plain(args["pins"]),
            wanted(plain(args["models"]), plain(args["catalog_dirs"])),
            known,
            models_path=str(args["models_path"]),
            memory_basis=str(args["memory_basis"]),
        )
        plan = solver.solve(request, known)
        result.update(
            changed=False,
            ansible_facts={"gpufleet_plan": plan},
            conflicts=plan["conflicts"],
            ok=plan["ok"],
            remote_calls=0,
        )
        return result
