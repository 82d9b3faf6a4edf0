#!/usr/bin/python
# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Say what NVIDIA GPUs, driver and surroundings a node has; see DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_facts
short_description: Gather facts about NVIDIA GPUs, their driver and what stands in their way
version_added: 0.1.0
description:
  - Reports every NVIDIA GPU of a node and the state of its driver as one fact, C(ansible_facts.gpufleet_gpu), whose
    keys are
    always all present.
  - Asks NVML first, through the Python package C(nvidia-ml-py) where the module's interpreter can import it, otherwise
    through the module's own binding of C(libnvidia-ml.so.1), which needs no package. Where that library is missing it
    runs
    C(nvidia-smi -q -x). Without a working driver it reads the PCI bus and a table of chips. The result says which one
    spoke.
  - What is wrong is a named state with a remedy, never a failed task. No GPU, no driver, a driver that does not match
    its
    library, a GPU that fell off the bus and others are listed in the reference of states.
  - GPUs are merged by their normalised PCI address, so a GPU is never listed twice.
  - On the NVML path the module starts no child process.
extends_documentation_fragment:
  - gpufleet.llm._attributes
  - gpufleet.llm._attributes.read_only
attributes:
  platform:
    platforms: linux
options:
  subset:
    description:
      - What to gather. V(all) is everything, V(min) only what identifies a GPU and its memory, and the driver's
        versions.
      - A name with a leading V(!) leaves that part out, for example V(!processes).
      - V(min) is always gathered. Keys of parts that are not gathered are V(null).
      - V(memory), V(power) (power, temperature, clocks' throttle reasons, utilisation), V(health) (ECC, retired
        pages, row
        remapping), V(mig), V(nvlink), V(processes) are per GPU. V(node) is module files, kernel headers, DKMS, CUDA
        toolkits,
        Secure Boot, pending reboot, NVSwitch and fabric manager.
    type: list
    elements: str
    default: [all]
  sources:
    description:
      - Which sources may be asked, each only when the ones before it in the order V(nvml), V(nvidia_smi), V(pci) had
        no answer.
      - V(pci) alone never wakes a GPU, because it reads only files of the kernel.
    type: list
    elements: str
    choices: [nvml, nvidia_smi, pci]
    default: [nvml, nvidia_smi, pci]
  nvml_binding:
    description:
      - How NVML is called. V(auto) takes the Python package C(nvidia-ml-py) where it can be imported and the own binding
        otherwise.
      - Both ask the same questions. V(ctypes) saves the import of the package, which takes longer than all the questions.
    type: str
    choices: [auto, pynvml, ctypes]
    default: auto
  timeout_seconds:
    description:
      - How long NVML or C(nvidia-smi) may take altogether. A driver that hangs makes the module return what it had
        learnt by
        then, from the kernel's files and from the GPUs that had answered, with state V(driver_timeout).
      - Without a persistence daemon the driver initialises each GPU anew at the first call, which takes 1 to 3
        seconds per GPU.
      - A driver stuck in uninterruptible sleep in the kernel can hold the process itself until it wakes. Give the
        task the
        keyword C(timeout) where that has been seen.
    type: int
    default: 60
author:
  - gpufleet.llm contributors (@gpufleet)
seealso:
  - name: States of gpu_facts
    description: Every state with its cause and its remedy.
    link: https://github.com/gpufleet/llm/blob/main/docs/reference/gpu_facts-states.md
notes:
  - Reading does not need root. As an ordinary user some facts of the node (the module's file, the Secure Boot state)
    can be V(null).
requirements:
  - Python 3.9 or later on the node, nothing else
"""

EXAMPLES = r"""
---
- name: Learn all about the GPUs of a node
  gpufleet.llm.gpu_facts:

- name: Say what is wrong and what to do about it
  ansible.builtin.debug:
    msg: "{{ ansible_facts['gpufleet_gpu']['state'] }}: {{ ansible_facts['gpufleet_gpu']['remedy'] }}"
  when: not ansible_facts['gpufleet_gpu']['usable']

- name: Ask only for what is needed to place a model, and wait for a slow driver
  gpufleet.llm.gpu_facts:
    subset: [min]
    timeout_seconds: 120

- name: List the cards of a node without a driver, from the PCI bus alone
  gpufleet.llm.gpu_facts:
    sources: [pci]

- name: Keep the cards that can run bfloat16
  ansible.builtin.set_fact:
    bf16_gpus: >-
      {{ ansible_facts['gpufleet_gpu']['gpus'] | selectattr('compute_capability', 'ne', none)
         | selectattr('compute_capability', 'version', '8.0', '>=') | map(attribute='pci_address') | list }}
"""

RETURN = r"""
ansible_facts:
  description: Facts to add to C(ansible_facts).
  returned: always
  type: complex
  contains:
    gpufleet_gpu:
      description:
        - All that is known of the node's NVIDIA GPUs. Every key below is always there, V(null) where a value is not
          known.
      returned: always
      type: dict
      contains:
        schema:
          description:
            - Version of this shape. It grows when a key is removed or changes its meaning, not when one is added.
          returned: always
          type: int
          sample: 1
        source:
          description:
            - Who described the GPUs, V(nvml), V(nvidia_smi), V(pci), or V(none) when nothing found a GPU.
          returned: always
          type: str
          sample: nvml
        nvml_binding:
          description: V(pynvml) or V(ctypes) when NVML was loaded, else V(null).
          returned: always
          type: str
          sample: ctypes
        state:
          description: Name of the worst state found, V(ok) when there is none.
          returned: always
          type: str
          sample: driver_library_mismatch
        detail:
          description: The state in a sentence, with the values found.
          returned: always
          type: str
          sample: the loaded kernel module is 535.161.08, libnvidia-ml is 535.183.01
        remedy:
          description: What to do about it, empty when the state is V(ok).
          returned: always
          type: str
          sample: Reboot, or stop every user of the GPU and reload the kernel modules.
        usable:
          description:
            - At least one GPU answers and nothing found keeps CUDA from working on it.
            - V(null) when O(sources) kept the driver from being asked and the files show nothing wrong.
          returned: always
          type: bool
          sample: false
        states:
          description: All states found, the worst first, empty when all is well.
          returned: always
          type: list
          elements: dict
          contains:
            name:
              description: Name of the state.
              returned: always
              type: str
            severity:
              description: V(error) (no GPU work is possible with it), V(warning) (works, needs attention) or V(info).
              returned: always
              type: str
            detail:
              description: What was found.
              returned: always
              type: str
            remedy:
              description: What to do.
              returned: always
              type: str
            pci_address:
              description: The GPU concerned, V(null) for the whole node.
              returned: always
              type: str
        subset:
          description: The parts that were gathered.
          returned: always
          type: list
          elements: str
          sample: [memory, node, processes]
        gather_seconds:
          description: Time spent gathering.
          returned: always
          type: float
          sample: 0.012
        gpu_count:
          description: Number of entries of RV(ansible_facts.gpufleet_gpu.gpus).
          returned: always
          type: int
          sample: 1
        gpus:
          description: The GPUs in the order of their PCI addresses, one entry each.
          returned: always
          type: list
          elements: dict
          contains:
            pci_address:
              description:
                - PCI address as the kernel writes it, lower case, domain of four digits (more only where the domain
                  needs them).
              returned: always
              type: str
              sample: "0000:3b:00.0"
            state:
              description:
                - V(ok) when the driver answers for the GPU; the name of a state such as V(gpu_lost), V(gpu_off_bus),
                  V(gpu_needs_reset), V(gpu_missing) or V(gpu_error); V(no_driver) without a loaded driver,
                  V(no_answer) when the
                  driver as a whole did not answer, V(not_asked) when O(sources) kept it from being asked.
              returned: always
              type: str
              sample: ok
            source:
              description: Who described this GPU, V(nvml), V(nvidia_smi) or V(pci).
              returned: always
              type: str
            index:
              description:
                - Index in NVML's order (that of C(nvidia-smi), by PCI address), V(null) when the driver does not list
                  the GPU.
              returned: always
              type: int
              sample: 0
            minor_number:
              description: N of C(/dev/nvidiaN).
              returned: always
              type: int
            uuid:
              description: UUID as in C(CUDA_VISIBLE_DEVICES).
              returned: always
              type: str
              sample: GPU-5d3f1c2a-8f0e-4b7d-9a61-0c2f3e4d5a6b
            serial:
              description: Board serial number.
              returned: always
              type: str
            name:
              description: Product name; from the chip table, when the driver cannot be asked.
              returned: always
              type: str
              sample: Tesla T4
            pci_vendor_id:
              description: Always V(10de).
              returned: always
              type: str
              sample: 10de
            pci_device_id:
              description: PCI device id, four lower-case hexadecimal digits.
              returned: always
              type: str
              sample: 1eb8
            pci_subsystem_vendor_id:
              description: PCI subsystem vendor id.
              returned: always
              type: str
              sample: 10de
            pci_subsystem_device_id:
              description: PCI subsystem device id.
              returned: always
              type: str
              sample: 12a2
            pci_class:
              description: PCI class, six digits.
              returned: always
              type: str
              sample: "030200"
            pci_driver:
              description: Kernel driver bound to the card (V(nvidia), V(nouveau), V(vfio-pci)), V(null) for none.
              returned: always
              type: str
            numa_node:
              description: NUMA node of the card, V(null) where the kernel says none.
              returned: always
              type: int
            chip:
              description: Chip.
              returned: always
              type: str
              sample: TU104
            architecture:
              description:
                - V(fermi), V(kepler), V(maxwell), V(pascal), V(volta), V(turing), V(ampere), V(ada), V(hopper),
                  V(blackwell), V(rubin).
              returned: always
              type: str
              sample: turing
            compute_capability:
              description: Compute capability as text. Compare it with the C(version) test.
              returned: always
              type: str
              sample: "7.5"
            compute_capability_source:
              description:
                - V(driver), V(table) (from the PCI device id) or V(range) (the id is not in the table, but in the
                  block of ids of a chip).
              returned: always
              type: str
            module_flavours:
              description:
                - The flavours of kernel module that can drive this GPU, V(open), V(proprietary) or both, by its
                  architecture.
              returned: always
              type: list
              elements: str
              sample: [open, proprietary]
            last_driver_branch:
              description: Newest driver branch that still drives this GPU, V(null) while there is no end.
              returned: always
              type: int
              sample: 580
            memory_total_bytes:
              description: Memory of the GPU, the driver's reservation included.
              returned: always
              type: int
              sample: 16106127360
            memory_free_bytes:
              description: Free memory.
              returned: always
              type: int
            memory_used_bytes:
              description: Used memory, without the reservation where the driver tells them apart.
              returned: always
              type: int
            memory_reserved_bytes:
              description: Reserved by the driver and firmware, V(null) where the driver does not tell.
              returned: always
              type: int
            power_limit_watts:
              description: Power limit in force.
              returned: always
              type: float
              sample: 70.0
            power_limit_default_watts:
              description: Power limit by default.
              returned: always
              type: float
            power_limit_max_watts:
              description: Highest power limit that can be set.
              returned: always
              type: float
            power_draw_watts:
              description: Power drawn now.
              returned: always
              type: float
              sample: 29.3
            temperature_celsius:
              description: Temperature of the GPU.
              returned: always
              type: int
              sample: 41
            temperature_slowdown_celsius:
              description: Temperature at which the hardware slows down.
              returned: always
              type: int
            temperature_shutdown_celsius:
              description: Temperature at which the card switches off.
              returned: always
              type: int
            throttle_reasons:
              description:
                - Why clocks are held back now, any of V(gpu_idle), V(applications_clocks_setting), V(sw_power_cap),
                  V(hw_slowdown),
                  V(sync_boost), V(sw_thermal_slowdown), V(hw_thermal_slowdown), V(hw_power_brake_slowdown),
                  V(display_clock_setting).
              returned: always
              type: list
              elements: str
              sample: [gpu_idle]
            utilization_gpu_percent:
              description: Share of the last sample period in which a kernel ran.
              returned: always
              type: int
            utilization_memory_percent:
              description: Share of the last sample period in which memory was read or written.
              returned: always
              type: int
            ecc_enabled:
              description: ECC is in force.
              returned: always
              type: bool
            ecc_pending:
              description: ECC will be in force after the next reset.
              returned: always
              type: bool
            ecc_corrected_volatile_count:
              description: Corrected memory errors since the driver was loaded.
              returned: always
              type: int
            ecc_uncorrected_volatile_count:
              description: Uncorrected memory errors since the driver was loaded.
              returned: always
              type: int
            ecc_corrected_aggregate_count:
              description: Corrected memory errors in the life of the board.
              returned: always
              type: int
            ecc_uncorrected_aggregate_count:
              description: Uncorrected memory errors in the life of the board.
              returned: always
              type: int
            retired_pages_pending:
              description: A page waits for a reset to be retired (up to Volta and Turing).
              returned: always
              type: bool
            remapped_rows_count:
              description: Rows remapped for correctable and uncorrectable errors together (from Ampere).
              returned: always
              type: int
            remapped_rows_pending:
              description: A row waits for a reset to be remapped.
              returned: always
              type: bool
            remapped_rows_failed:
              description: A row could not be remapped, so the board is to be replaced.
              returned: always
              type: bool
            persistence_mode:
              description: The driver keeps the GPU initialised.
              returned: always
              type: bool
            compute_mode:
              description: V(default), V(exclusive_thread), V(prohibited) or V(exclusive_process).
              returned: always
              type: str
              sample: default
            display_active:
              description: A display is on.
              returned: always
              type: bool
            mig_enabled:
              description: MIG is on, V(null) on cards without MIG.
              returned: always
              type: bool
            mig_pending:
              description: MIG will be on after the next reset.
              returned: always
              type: bool
            mig_devices:
              description: The MIG devices, V(null) on cards without MIG.
              returned: always
              type: list
              elements: dict
              contains:
                uuid:
                  description: UUID as in C(CUDA_VISIBLE_DEVICES).
                  returned: always
                  type: str
                index:
                  description: Index within the GPU.
                  returned: always
                  type: int
                name:
                  description: Profile, from slices and memory, V(null) where the source does not tell.
                  returned: always
                  type: str
                  sample: 1g.10gb
                gpu_instance_id:
                  description: GPU instance.
                  returned: always
                  type: int
                compute_instance_id:
                  description: Compute instance.
                  returned: always
                  type: int
                memory_total_bytes:
                  description: Memory of the MIG device.
                  returned: always
                  type: int
                memory_free_bytes:
                  description: Free memory of the MIG device.
                  returned: always
                  type: int
                multiprocessor_count:
                  description: Streaming multiprocessors of the MIG device.
                  returned: always
                  type: int
            nvlinks:
              description: The NVLinks, V(null) on cards without NVLink or when the source does not tell.
              returned: always
              type: list
              elements: dict
              contains:
                link:
                  description: Number of the link.
                  returned: always
                  type: int
                active:
                  description: The link is up.
                  returned: always
                  type: bool
                version:
                  description: NVLink version as the driver numbers it.
                  returned: always
                  type: int
                remote_pci_address:
                  description: The GPU or switch at the other end.
                  returned: always
                  type: str
            nvlink_active_count:
              description: Number of links that are up.
              returned: always
              type: int
            fabric_state:
              description:
                - Registration with the NVSwitch fabric, V(not_supported), V(not_started), V(in_progress) or
                  V(completed).
              returned: always
              type: str
            processes:
              description:
                - Processes on the GPU. Inside a container the driver shows only those that the container may see.
              returned: always
              type: list
              elements: dict
              contains:
                pid:
                  description: Process id on the node.
                  returned: always
                  type: int
                type:
                  description: V(compute), V(graphics), or V(compute_graphics).
                  returned: always
                  type: str
                name:
                  description: Name of the process's executable, V(null) where it cannot be read.
                  returned: always
                  type: str
                memory_used_bytes:
                  description: Memory used on the GPU, V(null) where the driver cannot tell.
                  returned: always
                  type: int
        driver:
          description: The driver, loaded and installed.
          returned: always
          type: dict
          contains:
            loaded:
              description: The kernel module C(nvidia) is loaded.
              returned: always
              type: bool
            loaded_version:
              description:
                - Version of the loaded kernel module, from C(/sys/module/nvidia/version) or
                  C(/proc/driver/nvidia/version).
              returned: always
              type: str
              sample: 535.161.08
            library_version:
              description:
                - Version of the installed C(libnvidia-ml.so), by the name of the file that C(libnvidia-ml.so.1) leads
                  to.
              returned: always
              type: str
              sample: 535.161.08
            library_path:
              description: Path of that file.
              returned: always
              type: str
            versions_match:
              description: Loaded module and library are the same version, V(null) while one of them is not there.
              returned: always
              type: bool
            branch:
              description: Major number of the driver's version (loaded, else installed).
              returned: always
              type: int
              sample: 535
            flavour:
              description: V(open) or V(proprietary), by the loaded module, else by the licence of the module's file.
              returned: always
              type: str
              sample: open
            licence:
              description: Licence string of the module's file.
              returned: always
              type: str
              sample: Dual MIT/GPL
            module_path:
              description: File of the module for the running kernel, V(null) when there is none.
              returned: always
              type: str
            module_version:
              description: Version in that file.
              returned: always
              type: str
            module_signed:
              description: That file carries a signature.
              returned: always
              type: bool
            module_signer:
              description: Who signed, as far as the signature names them.
              returned: always
              type: str
            modules_loaded:
              description: Loaded kernel modules of the driver.
              returned: always
              type: list
              elements: str
              sample: [nvidia, nvidia_modeset, nvidia_uvm]
            other_kernels:
              description: Kernels other than the running one for which a module is installed.
              returned: always
              type: list
              elements: str
            use_count:
              description: Reference count of the loaded module. Zero means that it can be unloaded.
              returned: always
              type: int
            device_nodes:
              description: C(/dev/nvidia*) devices.
              returned: always
              type: list
              elements: str
            nvidia_smi_path:
              description: Path of C(nvidia-smi).
              returned: always
              type: str
            cuda_driver_api:
              description: CUDA driver API version as the driver counts it (1000 * major + 10 * minor).
              returned: always
              type: int
              sample: 12020
            cuda_version:
              description: The same as text, the newest CUDA that the driver runs without compatibility packages.
              returned: always
              type: str
              sample: "12.2"
            persistence_daemon:
              description: C(nvidia-persistenced) runs.
              returned: always
              type: bool
        kernel:
          description: The running kernel and what it lets in.
          returned: always
          type: dict
          contains:
            release:
              description: The running kernel.
              returned: always
              type: str
              sample: 6.1.0-28-amd64
            newest_installed:
              description: The newest kernel installed under C(/lib/modules).
              returned: always
              type: str
            headers_present:
              description: The running kernel's build directory is there, so that modules can be built.
              returned: always
              type: bool
            headers_path:
              description: That directory.
              returned: always
              type: str
            nouveau_loaded:
              description: The module C(nouveau) is loaded.
              returned: always
              type: bool
            nouveau_blacklisted:
              description: C(modprobe.d) or the kernel's command line keeps C(nouveau) from loading.
              returned: always
              type: bool
            secure_boot:
              description: Secure Boot is on, V(null) when the firmware does not tell (no EFI).
              returned: always
              type: bool
            lockdown:
              description: Kernel lockdown, V(none), V(integrity), V(confidentiality), V(null) when not known.
              returned: always
              type: str
            reboot_pending:
              description: The node wants a reboot.
              returned: always
              type: bool
            reboot_reasons:
              description: Why.
              returned: always
              type: list
              elements: str
        dkms:
          description: NVIDIA modules that DKMS knows, V(null) when not gathered.
          returned: always
          type: list
          elements: dict
          contains:
            module:
              description: Name in DKMS.
              returned: always
              type: str
              sample: nvidia-current-open
            version:
              description: Version.
              returned: always
              type: str
            kernel:
              description: Kernel, V(null) when only added.
              returned: always
              type: str
            state:
              description: V(added), V(built), V(installed) or V(failed).
              returned: always
              type: str
        toolkits:
          description: Installed CUDA toolkits, V(null) when not gathered.
          returned: always
          type: list
          elements: dict
          contains:
            version:
              description: Version.
              returned: always
              type: str
              sample: 12.0.1
            path:
              description: Its directory.
              returned: always
              type: str
              sample: /usr/local/cuda-12.0
            nvcc_path:
              description: Its compiler, V(null) for a toolkit without one.
              returned: always
              type: str
            default:
              description: C(/usr/local/cuda) leads to it, or it is the distribution's.
              returned: always
              type: bool
        nvswitch:
          description: NVSwitch and its fabric manager.
          returned: always
          type: dict
          contains:
            count:
              description: NVSwitch chips on the PCI bus.
              returned: always
              type: int
            fabric_manager_installed:
              description: The fabric manager's unit or program is there.
              returned: always
              type: bool
            fabric_manager_running:
              description: It runs.
              returned: always
              type: bool
            fabric_manager_version:
              description: Its version, by its package's files, V(null) where it cannot be told without running it.
              returned: always
              type: str
        errors:
          description: What could not be read and why, one sentence each; raw text for the catalogue of errors.
          returned: always
          type: list
          elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpufleet.llm.plugins.module_utils import gpu_gather


def main() -> None:
    """Read the arguments, gather, leave."""
    module = AnsibleModule(
        argument_spec={
            "subset": {"type": "list", "elements": "str", "default": ["all"]},
            "sources": {
                "type": "list",
                "elements": "str",
                "choices": list(gpu_gather.SOURCES),
                "default": list(gpu_gather.SOURCES),
            },
            "nvml_binding": {"type": "str", "choices": ["auto", "pynvml", "ctypes"], "default": "auto"},
            "timeout_seconds": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    try:
        subset = gpu_gather.resolve_subset(module.params["subset"])
    except ValueError as exc:
        module.fail_json(msg=str(exc))
        return
    if module.params["timeout_seconds"] < 1:
        module.fail_json(msg=f"timeout_seconds is {module.params['timeout_seconds']}, it must be 1 or more")
        return

    gathered = gpu_gather.gather(
        subset=subset,
        sources=module.params["sources"],
        nvml_binding=module.params["nvml_binding"],
        timeout_seconds=module.params["timeout_seconds"],
        run_command=module.run_command,
    )
    if gathered.hung:
        # A thread still sits inside the driver's library: leave without running the library's destructors.
        gpu_gather.leave_without_destructors()
    module.exit_json(changed=False, ansible_facts={"gpufleet_gpu": gathered.facts})


if __name__ == "__main__":
    main()
