# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian's own CUDA toolkit, the real one: 1.6 GB to fetch, so only with GPUFLEET_NIGHTLY=1."""

from __future__ import annotations

import pytest
from harness import NIGHTLY, Fleet, running

pytestmark = pytest.mark.skipif(not NIGHTLY, reason="fetches 1.6 GB; GPUFLEET_NIGHTLY=1")
RELEASES = {"debian12": "11.8", "debian13": "12.4"}
# `fleet_image` of Debian has main only; the user's own sources are what enables non-free
NON_FREE = (
    "sed -i 's/^Components: main$/Components: main contrib non-free non-free-firmware/' /etc/apt/sources.list.d/*;"
    " apt-get update -q; apt-get install -y g++"
)


def packages(fleet: Fleet) -> set[str]:
    """All that dpkg knows, also what was removed and not purged."""
    return set(fleet.sh("n1", "dpkg-query -W -f '${Package}\\n'").split())


@pytest.mark.parametrize("image", sorted(RELEASES))
def test_debians_toolkit_compiles_and_goes(image: str) -> None:
    toolkits = [{"version": RELEASES[image], "method": "distribution"}]
    with running(f"cuda-real-{image}", {"n1": image}, depot=False) as fleet:
        fleet.sh("n1", NON_FREE)
        before = packages(fleet)
        refused = fleet.role("cuda", ok=False, cuda_toolkits=toolkits)
        said = " ".join(refused.output.split())
        assert "libcuda1" in said and "cuda_allow_driver_libraries" in said
        assert packages(fleet) == before
        other = [{"version": "10.2", "method": "distribution"}]
        refused = fleet.role("cuda", ok=False, cuda_toolkits=other, cuda_allow_driver_libraries=True)
        assert f"has CUDA {RELEASES[image]}" in " ".join(refused.output.split()), str(refused)
        assert packages(fleet) == before
        done = fleet.role("cuda", "-v", cuda_toolkits=toolkits, cuda_allow_driver_libraries=True)
        assert "a compiled program runs with runtime" in " ".join(done.output.split()), str(done)
        assert fleet.role("cuda", cuda_toolkits=toolkits).changed("n1") == 0
        assert f"release {RELEASES[image]}," in fleet.sh("n1", "nvcc --version")
        assert fleet.rc("n1", "ls /usr/src/nvidia* /etc/profile.d/gpufleet-cuda.sh") != 0
        fleet.role("cuda", cuda_toolkits=toolkits, cuda_state="absent")
        # also what something else on the node merely suggests, as python3 packages do with a compiler
        assert packages(fleet) == before
