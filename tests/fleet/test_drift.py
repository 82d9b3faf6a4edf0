# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever a role manages is changed by hand, and the next run notices it and heals it.

By default what can be changed together is changed together (C(drift.rounds) says what); anaconda, llm_model, cuda and the driver
then on Debian 12 alone, and cuda and the driver, which take the longest, only when C(tools/test) finds that they have changed;
the others then wait for the night, or for a change of something else.
With GPUFLEET_NIGHTLY=1 every change alone, of all roles on all distributions.
"""

from __future__ import annotations

import os

import pytest
from drift import IN_TURN, REFUSALS, Refusal, rounds
from harness import NIGHTLY, Driver, Fleet, Play, images, running, vars_of

# By hand all roles; in `make test` the long ones when they changed, and then those alone, since that takes long enough.
CHOSEN = os.environ.get("GPUFLEET_LONG")
EVERYTHING = NIGHTLY or CHOSEN is None
LONG = ["cuda", "nvidia_driver"] if EVERYTHING else (CHOSEN or "").split()
SHORT = ["git", "nginx", "anaconda", "llm_model"] if EVERYTHING or not LONG else []
ROLES = SHORT + [role for role in LONG if role == "cuda"]
IMAGES = images()
# The driver's nodes have a card (of the NVML stand-in) and no driver; packages in the shape of NVIDIA's come from the depot.
DRIVER = "nvidia_driver"
CARD = ":t4-nodriver"
# By day on Debian 12 alone: minutes each
SLOW = (*IN_TURN, "llm_model")
CASES = [(image, role) for image in IMAGES for role in ROLES if NIGHTLY or role not in SLOW or image == "debian12"]
if DRIVER in LONG:
    CASES += [(image + CARD, DRIVER) for image in (IMAGES if NIGHTLY else ["debian12"])]
REFUSED = [(image, refusal) for image in IMAGES for refusal in REFUSALS if (image, refusal.role) in CASES]


# Where Python is too new for the models' torch, conda brings another one; and once where it is not.
BY_CONDA = ("debian13", "rhel9-like")


@pytest.fixture
def fleet(request):
    with running(f"drift-{request.param.replace(':', '-')}", {"n1": request.param}) as started:
        yield started


def driver(fleet: Fleet) -> dict:
    """Wishes of the role nvidia_driver: by runfile on Debian 13, by each package manager elsewhere."""
    # The containers' kernel is the host's: no repository has headers of it.
    wishes = {"mirror_profile": "depot", "kernel_headers": ""}
    if "debian13" in fleet.name:
        wishes |= fleet.nvidia_runfile("580.105.08")
    elif "arch" in fleet.name:
        wishes["method"] = "distribution"
    else:
        wishes |= {"method": "nvidia_repo", "version": "580.105.08"}
    return Driver({"n1": wishes}).variables("n1")


def variables(role: str) -> dict:
    return vars_of(f"molecule/{role}/vars.yml")  # n1 is in none of the lists of names in there


def chosen(fleet: Fleet, role: str) -> dict:
    """The scenario's variables, as they are for this distribution."""
    if role == DRIVER:
        return driver(fleet)
    by_conda = role == "llm_model" and fleet.name.endswith(BY_CONDA)
    return {**variables(role), **({"llm_model_env_manager": "conda"} if by_conda else {})}


def converge(fleet: Fleet, role: str) -> list[dict]:
    """Converge, prove that nothing differs any more, and return the managed items."""
    if role == "llm_model":  # the node is bare: what this role needs comes first
        for needed in ["git", *(["anaconda"] if fleet.name.endswith(BY_CONDA) else [])]:
            fleet.role(needed, **variables(needed))
    fleet.role(role, **chosen(fleet, role))
    again = fleet.role(role, **chosen(fleet, role))
    assert again.changed("n1") == 0, str(again)
    assert not again.drift("n1"), str(again)
    return again.items("n1")


def why(play: Play) -> dict[str, list]:
    """Why the items that differ do, by key; in all looks of a run on the node."""
    reasons: dict[str, list] = {}
    for look in play.looks:
        for item in look["result"].get("items", []) if look["host"] == "n1" else []:
            if item["differs"]:
                reasons.setdefault(item["key"], []).append(item["reasons"])
    return reasons


def full_looks(play: Play, items: list[dict]) -> list[dict]:
    """The looks at everything that a role manages; roles also look at single things on their way."""
    keys = {item["key"] for item in items}
    results = [look["result"] for look in play.looks if look["host"] == "n1"]
    return [result for result in results if keys <= {item["key"] for item in result.get("items", [])}]


@pytest.mark.parametrize(("fleet", "role"), CASES, indirect=["fleet"])
def test_every_item_is_noticed_and_healed(fleet: Fleet, role: str) -> None:
    items = converge(fleet, role)
    assert items
    missed, unhealed = [], []
    for number, one_round in enumerate(rounds(role, items, alone=NIGHTLY)):
        changes = [change for step in one_round for change in step]
        label = "; ".join(f"{item['key']}: {mutation.what}" for item, mutation in changes)
        print(f"round {number}: {label}", flush=True)
        extra = {f"{role}_deep": True} if any(mutation.deep for _item, mutation in changes) else {}
        before: dict[str, list] = {}
        done: set[str] = set()
        for step in one_round:
            for _item, mutation in step:
                fleet.sh("n1", mutation.script, check=False)  # one that fails is not noticed
            seen = why(fleet.role(role, "--check", **chosen(fleet, role), **extra))
            missed += [
                f"{item['key']}: {mutation.what} ({before.get(item['key'], 'as wanted')} before)"
                for item, mutation in step
                if item["key"] not in seen or (item["key"] in done and seen[item["key"]] == before.get(item["key"]))
            ]
            before = seen
            done |= {item["key"] for item, _mutation in step}
        if role == "llm_model" and fleet.name.endswith(BY_CONDA):
            fleet.role("anaconda", **variables("anaconda"))  # conda lies in the folder that was removed
        healing = fleet.role(role, ok=None, **chosen(fleet, role), **extra)
        if healing.rc:
            unhealed.append(f"{label}: {healing.output[-2000:]}")
            break  # what comes after it would say nothing
        looks = full_looks(healing, items)
        # A look before and one after: the second is the same that another run would begin with. Deep ones are looked at anew.
        if len(looks) < 2 or extra:
            looks = full_looks(fleet.role(role, "--check", **chosen(fleet, role), **extra), items)
        if looks[-1]["differs"]:
            unhealed.append(f"{label}: still {sorted(looks[-1]['drift'])}")
    assert not missed, "not noticed: " + "; ".join(missed)
    assert not unhealed, "not healed: " + "; ".join(unhealed)
    again = fleet.role(role, **chosen(fleet, role))
    assert again.changed("n1") == 0 and not again.drift("n1"), str(again)


@pytest.mark.parametrize(("fleet", "refusal"), REFUSED, ids=str, indirect=["fleet"])
def test_what_may_be_somebody_elses_is_not_touched_without_consent(fleet: Fleet, refusal: Refusal) -> None:
    role = refusal.role
    items = converge(fleet, role)
    fleet.sh("n1", refusal.script)
    before = fleet.sh("n1", refusal.state)
    refused = fleet.role(role, ok=False, **chosen(fleet, role))
    assert refusal.message in " ".join(refused.output.split()), str(refused)
    assert fleet.sh("n1", refusal.state) == before
    fleet.sh("n1", refusal.way_out)
    assert not full_looks(fleet.role(role, **chosen(fleet, role), **refusal.consent), items)[-1]["differs"]
    again = fleet.role(role, **chosen(fleet, role))
    assert again.changed("n1") == 0 and not again.drift("n1"), str(again)


@pytest.mark.parametrize("fleet", [image for image, role in CASES if role == "anaconda"], indirect=True)
def test_a_record_changed_by_hand_takes_no_installer(fleet: Fleet) -> None:
    role, record = "anaconda", "/opt/gpufleet/conda/.gpufleet-installer.json"

    def fetched() -> int:
        return sum("/installers/" in str(line.get("path")) for line in fleet.depot_log())

    converge(fleet, role)
    before = fetched()
    for script in (f"chmod 0606 {record}", f"echo >> {record}"):
        fleet.sh("n1", script)
        healed = fleet.role(role, **chosen(fleet, role))
        assert healed.changed("n1") == 1 and fetched() == before, str(healed)
    # Another installer's, and a file where the role keeps its downloads
    fleet.sh("n1", f"sed -i 's/miniforge/miniconda/' {record}; touch /opt/gpufleet/conda.gpufleet-download")
    fleet.role(role, **chosen(fleet, role))
    assert fetched() > before
