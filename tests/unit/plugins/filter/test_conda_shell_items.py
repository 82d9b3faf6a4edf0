# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Items about a block in users' shell files."""

from __future__ import annotations

import subprocess

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.gpufleet.llm.plugins.filter.conda_shell_items import FilterModule

items = FilterModule().filters()["conda_shell_items"]


def test_one_item_per_user():
    made = items(["anna", "bert-2"], "# BEGIN x (y)", "# END x (y)", "a\nb")
    assert [one["key"] for one in made] == ["shell:anna", "shell:bert-2"]
    assert made[0]["stdout"] == "# BEGIN x (y)\na\nb\n# END x (y)"
    assert items(["anna"], "# B", "# E", None)[0]["stdout"] == ""


@pytest.mark.parametrize("user", ["", "a b", "$(reboot)", "../x", "-n"])
def test_what_is_no_name_is_refused(user):
    with pytest.raises(AnsibleFilterError, match="cannot be the name of a user"):
        items([user], "# B", "# E", None)


def test_the_probe_finds_exactly_the_block(tmp_path):
    script = items(["anna"], "# BEGIN x (y)", "# END x (y)", "a")[0]["argv"][2]
    (tmp_path / ".bashrc").write_text("before\n# BEGIN x (y)\na\n# END x (y)\nafter\n")
    script = script.replace("~anna", str(tmp_path))
    assert (
        subprocess.run(["sh", "-c", script], capture_output=True, text=True).stdout == "# BEGIN x (y)\na\n# END x (y)\n"
    )
    (tmp_path / ".bashrc").unlink()
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
