# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever a role manages is changed by hand, and the next run notices it and heals it.

By default on Debian 12: each item is changed and noticed in turn, then all are healed in one run. With GPUFLEET_NIGHTLY=1 on all
distributions, and every item is healed in turn, too.
"""

from __future__ import annotations

import os
import shlex

import pytest
from drift import mutations
from harness import NIGHTLY, Fleet, running, vars_of

# anaconda and cuda refuse, until they are told otherwise, what all changes together leave behind (a file where the prefix was, a
# toolkit taken apart): they need every item healed in turn, which is nightly.
ROLES = ["git", "nginx", "llm_model", *(["anaconda", "cuda"] if NIGHTLY else [])]
CHOSEN = os.environ.get("GPUFLEET_PLATFORMS", "").split(",")
IMAGES = [
    platform["image"]
    for platform in vars_of(".config/molecule/platforms.yml")["platforms"]
    if (platform["name"] in CHOSEN if CHOSEN != [""] else NIGHTLY or platform["name"] == "debian12")
]


@pytest.fixture(scope="module", params=IMAGES)
def fleet(request):
    with running(f"drift-{request.param}", {"n1": request.param}) as started:
        yield started


def variables(role: str) -> dict:
    return vars_of(f"molecule/{role}/vars.yml")


def converge(fleet: Fleet, role: str) -> list[dict]:
    """Converge, prove that nothing differs any more, and return the managed items."""
    fleet.role(role, **variables(role))
    again = fleet.role(role, **variables(role))
    assert again.changed("n1") == 0, str(again)
    assert not again.drift("n1"), str(again)
    return again.items("n1")


@pytest.mark.parametrize("role", ROLES)
def test_every_item_is_noticed_and_healed(fleet: Fleet, role: str) -> None:
    items = converge(fleet, role)
    assert items
    one_by_one = NIGHTLY
    missed, unhealed = [], []
    for item in items:
        for mutation in mutations(item):
            label = f"{item['key']}: {mutation.what}"
            small = item["kind"] in ("file", "key", "link") and not one_by_one
            path = shlex.quote(str(item["name"]))
            fleet.sh(
                "n1", mutation.undoable(path) if small else mutation.script, check=False
            )  # one that fails is not noticed
            extra = {f"{role}_deep": True} if mutation.deep else {}
            seen = fleet.role(role, "--check", **variables(role), **extra)
            if item["key"] not in seen.drift("n1"):
                missed.append(label)
            if small:
                fleet.sh("n1", mutation.undo(path))
            if one_by_one:
                fleet.role(role, **variables(role), **extra)
                after = fleet.role(role, "--check", **variables(role), **extra)
                if after.drift("n1"):
                    unhealed.append(f"{label}: still {sorted(after.drift('n1'))}")
    if not one_by_one:
        for item in items:  # whatever was put back is changed once more, so that one run has all of it to heal
            for mutation in mutations(item)[:1]:
                fleet.sh("n1", mutation.script, check=False)
        fleet.role(role, **variables(role), **({"llm_model_deep": True} if role == "llm_model" else {}))
        after = fleet.role(role, "--check", **variables(role))
        unhealed += sorted(after.drift("n1"))
    assert not missed, "not noticed: " + "; ".join(missed)
    assert not unhealed, "not healed: " + "; ".join(unhealed)
