# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The chip table, and the XML of nvidia-smi in its three shapes."""

from __future__ import annotations

import pytest
from ansible_collections.gpufleet.llm.plugins.module_utils import gpu_chips, gpu_smi


@pytest.mark.parametrize(
    ("device_id", "chip", "capability", "architecture"),
    [
        # Every card of the fact sheet that has an id there.
        ("1eb8", "TU104", "7.5", "turing"),  # T4
        ("15f7", "GP100", "6.0", "pascal"),
        ("15f8", "GP100", "6.0", "pascal"),
        ("15f9", "GP100", "6.0", "pascal"),
        ("1b38", "GP102", "6.1", "pascal"),
        ("1c03", "GP106", "6.1", "pascal"),  # GTX 1060 6 GB
        ("1c02", "GP106", "6.1", "pascal"),
        ("1001", "GK110", "3.5", "kepler"),
        ("102d", "GK210", "3.7", "kepler"),  # K80
        ("17fd", "GM200", "5.2", "maxwell"),
        ("13f2", "GM204", "5.2", "maxwell"),
        ("1db1", "GV100", "7.0", "volta"),
        ("1db8", "GV100", "7.0", "volta"),
        ("1e04", "TU102", "7.5", "turing"),
        ("20b0", "GA100", "8.0", "ampere"),
        ("20b7", "GA100", "8.0", "ampere"),
        ("2235", "GA102", "8.6", "ampere"),
        ("2237", "GA102", "8.6", "ampere"),
        ("25b6", "GA107", "8.6", "ampere"),
        ("2684", "AD102", "8.9", "ada"),  # RTX 4090
        ("2786", "AD104", "8.9", "ada"),  # RTX 4070
        ("2803", "AD106", "8.9", "ada"),
        ("2805", "AD106", "8.9", "ada"),  # RTX 4060 Ti 16 GB
        ("27b8", "AD104", "8.9", "ada"),
        ("26b9", "AD102", "8.9", "ada"),
        ("2330", "GH100", "9.0", "hopper"),
        ("2331", "GH100", "9.0", "hopper"),
        ("2335", "GH100", "9.0", "hopper"),
        ("2901", "GB100", "10.0", "blackwell"),
        ("3182", "GB110", "10.3", "blackwell"),
        ("2b85", "GB202", "12.0", "blackwell"),
        ("2bb1", "GB202", "12.0", "blackwell"),
        ("2e12", "GB20B", "12.1", "blackwell"),
    ],
)
def test_cards(device_id: str, chip: str, capability: str, architecture: str) -> None:
    row = gpu_chips.lookup(device_id)
    assert (row["chip"], row["compute_capability"], row["architecture"]) == (chip, capability, architecture)


def test_names_and_sources() -> None:
    row = gpu_chips.lookup("1EB8")
    assert (row["name"], row["compute_capability_source"], row["source"]) == ("Tesla T4", "table", "pci.ids 2023.04.11")
    assert gpu_chips.lookup("2335")["source"] == "pci.ids 2026.05.24"


def test_an_id_that_is_not_listed_is_known_by_its_block() -> None:
    row = gpu_chips.lookup("26fe")
    assert (row["chip"], row["compute_capability"], row["compute_capability_source"], row["name"]) == (
        "AD102",
        "8.9",
        "range",
        None,
    )


@pytest.mark.parametrize(
    ("device_id", "flavours", "branch"),
    [
        ("0191", ["proprietary"], 470),
        ("1234", ["proprietary"], 470),  # the book's sample, which is no NVIDIA card
        ("1df7", ["proprietary"], 580),  # in GV100's block
        ("3fff", ["open"], None),
        ("15f8", ["proprietary"], 580),
        ("1eb8", ["open", "proprietary"], None),
        ("2b85", ["open"], None),
    ],
)
def test_flavours_and_last_branches(device_id: str, flavours: list[str], branch: int | None) -> None:
    row = gpu_chips.lookup(device_id)
    assert (row["module_flavours"], row["last_driver_branch"]) == (flavours, branch)


def test_every_row_is_of_a_chip_and_inside_its_blocks() -> None:
    seen = set()
    for text in gpu_chips._DEVICES.values():
        for line in text.strip().split("\n"):
            device_id, chip, name = line.split(" ", 2)
            assert chip in gpu_chips.CHIPS and name
            assert device_id not in seen, f"{device_id} is listed twice"
            seen.add(device_id)
            blocks = [block for block in gpu_chips._BLOCKS.split() if "-" in block and len(block) == 9]
            assert any(int(block[:4], 16) <= int(device_id, 16) <= int(block[5:], 16) for block in blocks), line
    assert len(seen) > 500
    assert {chip for chip in gpu_chips._BLOCKS.split() if "-" not in chip} <= set(gpu_chips.CHIPS)


@pytest.mark.parametrize("text", ["", "zz", None])
def test_no_id_is_nothing(text: str) -> None:
    assert gpu_chips.lookup(text)["chip"] is None


# Shortened to what is read, in the shape of each version of the DTD.
V11 = """<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v11.dtd">
<nvidia_smi_log>
  <driver_version>515.105.01</driver_version><cuda_version>11.7</cuda_version><attached_gpus>1</attached_gpus>
  <gpu id="00000000:00:1E.0">
    <product_name>Tesla T4</product_name><product_architecture>Turing</product_architecture>
    <mig_mode><current_mig>N/A</current_mig><pending_mig>N/A</pending_mig></mig_mode><mig_devices>
      None
    </mig_devices>
    <clocks_throttle_reasons>
      <clocks_throttle_reason_gpu_idle>Not Active</clocks_throttle_reason_gpu_idle>
      <clocks_throttle_reason_sw_power_cap>Active</clocks_throttle_reason_sw_power_cap>
    </clocks_throttle_reasons>
    <fb_memory_usage><total>15360 MiB</total><reserved>388 MiB</reserved><used>1032 MiB</used>
      <free>13939 MiB</free></fb_memory_usage>
    <ecc_errors><volatile><sram_correctable>1</sram_correctable><sram_uncorrectable>0</sram_uncorrectable>
      <dram_correctable>2</dram_correctable><dram_uncorrectable>4</dram_uncorrectable></volatile></ecc_errors>
    <remapped_rows>N/A</remapped_rows>
    <power_readings><power_draw>26.78 W</power_draw><power_limit>75.00 W</power_limit>
      <default_power_limit>70.00 W</default_power_limit><enforced_power_limit>70.00 W</enforced_power_limit></power_readings>
    <processes>
    </processes>
  </gpu>
</nvidia_smi_log>
"""
V13 = """<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v13.dtd">
<nvidia_smi_log>
  <driver_version>590.44.01</driver_version><cuda_version>13.1</cuda_version><attached_gpus>1</attached_gpus>
  <gpu id="00000000:61:00.0">
    <product_name>NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition</product_name>
    <product_architecture>Blackwell</product_architecture>
    <display_mode>Requested functionality has been deprecated</display_mode>
    <clocks_event_reasons><clocks_event_reason_gpu_idle>Active</clocks_event_reason_gpu_idle></clocks_event_reasons>
    <ecc_mode><current_ecc>Disabled</current_ecc><pending_ecc>Enabled</pending_ecc></ecc_mode>
    <ecc_errors><volatile><sram_correctable>N/A</sram_correctable><sram_uncorrectable_parity>N/A</sram_uncorrectable_parity>
      <sram_uncorrectable_secded>N/A</sram_uncorrectable_secded></volatile>
      <aggregate><sram_uncorrectable_parity>1</sram_uncorrectable_parity><sram_uncorrectable_secded>2</sram_uncorrectable_secded>
      <dram_uncorrectable>3</dram_uncorrectable><sram_threshold_exceeded>No</sram_threshold_exceeded></aggregate></ecc_errors>
    <remapped_rows><remapped_row_corr>0</remapped_row_corr><remapped_row_unc>1</remapped_row_unc>
      <remapped_row_pending>Yes</remapped_row_pending><remapped_row_failure>No</remapped_row_failure></remapped_rows>
    <temperature><gpu_temp>24 C</gpu_temp><gpu_temp_max_tlimit_threshold>-5 C</gpu_temp_max_tlimit_threshold></temperature>
    <gpu_power_readings><power_state>Requested functionality has been deprecated</power_state>
      <average_power_draw>3.97 W</average_power_draw><instant_power_draw>3.99 W</instant_power_draw>
      <current_power_limit>300.00 W</current_power_limit><max_power_limit>325.00 W</max_power_limit></gpu_power_readings>
    <processes><process_info><pid>812</pid><type>C</type><process_name>/usr/bin/python3 --token=x</process_name>
      <used_memory>65718 MiB</used_memory></process_info></processes>
  </gpu>
</nvidia_smi_log>
"""


def test_xml_of_515() -> None:
    log = gpu_smi.parse(V11)
    (gpu,) = log["gpus"]
    assert (log["driver_version"], log["cuda_driver_api"]) == ("515.105.01", 11070)
    assert (gpu["pci_address"], gpu["throttle_reasons"], gpu["mig_devices"]) == ("0000:00:1e.0", ["sw_power_cap"], None)
    assert (gpu["power_draw_watts"], gpu["power_limit_watts"]) == (26.78, 70.0)
    assert (gpu["ecc_corrected_volatile_count"], gpu["ecc_uncorrected_volatile_count"]) == (3, 4)
    assert (gpu["remapped_rows_count"], gpu["processes"], gpu["memory_used_bytes"]) == (None, [], 1032 << 20)


def test_xml_of_590() -> None:
    (gpu,) = gpu_smi.parse(V13)["gpus"]
    assert (gpu["architecture"], gpu["display_active"], gpu["throttle_reasons"]) == ("blackwell", None, ["gpu_idle"])
    assert (gpu["power_draw_watts"], gpu["power_limit_watts"], gpu["power_limit_max_watts"]) == (3.99, 300.0, 325.0)
    assert (gpu["ecc_enabled"], gpu["ecc_pending"], gpu["ecc_uncorrected_aggregate_count"]) == (False, True, 6)
    assert gpu["ecc_uncorrected_volatile_count"] is None
    assert (gpu["remapped_rows_count"], gpu["remapped_rows_pending"], gpu["remapped_rows_failed"]) == (1, True, False)
    # Thresholds relative to T.Limit are no temperatures.
    assert (gpu["temperature_celsius"], gpu["temperature_shutdown_celsius"]) == (24, None)
    # Arguments of a process can carry secrets.
    assert gpu["processes"] == [
        {"pid": 812, "type": "compute", "name": "/usr/bin/python3", "memory_used_bytes": 65718 << 20}
    ]


@pytest.mark.parametrize("text", ["", "No devices were found", "<html></html>"])
def test_no_xml(text: str) -> None:
    with pytest.raises(ValueError, match="nvidia-smi -q -x printed"):
        gpu_smi.parse(text)


@pytest.mark.parametrize(
    ("rc", "text", "code"),
    [
        (18, "Failed to initialize NVML: Driver/library version mismatch NVML library version: 550.144", 18),
        # Older versions returned 1 or 255 here.
        (255, "Failed to initialize NVML: Driver/library version mismatch", 18),
        (9, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 9),
        (4, "Failed to initialize NVML: Insufficient Permissions", 4),
        (255, "Unable to determine the device handle for GPU0000:07:00.0: Unknown Error", 15),
        (15, "whatever", 15),
        (6, "No devices were found", 0),
        (1, "Segmentation fault", 999),
    ],
)
def test_failures_of_nvidia_smi(rc: int, text: str, code: int) -> None:
    assert gpu_smi.failure_code(rc, text) == code
