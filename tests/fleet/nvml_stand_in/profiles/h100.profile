# One H100 SXM with open modules and 18 NVLinks; as in a virtual machine, the NVSwitch is not on its bus.
[node]
driver_version = 550.163.01
library_version = 550.163.01
cuda_driver_api = 12040
flavour = open
nvml_version = 12.550.163.01

[gpu]
pci = 0000:19:00.0
pci_id = 10de:2330
pci_subsystem = 10de:16c1
pci_class = 030200
numa_node = 0
minor_number = 0
name = NVIDIA H100 80GB HBM3
uuid = GPU-8a1c4e7d-6b0f-4c35-a7f2-1d2e9c4b0d04
serial = 1652923000004
architecture = hopper
compute_capability = 9.0
persistence_mode = on
display_active = off
compute_mode = 0
memory_total_mib = 81559
memory_reserved_mib = 551
memory_used_mib = 14120
power_limit_watts = 700.0
power_limit_default_watts = 700.0
power_limit_min_watts = 200.0
power_limit_max_watts = 700.0
power_draw_watts = 118.4
temperature_celsius = 29
throttle_reasons = 0x1
utilization_gpu_percent = 0
utilization_memory_percent = 0
ecc = on
ecc_corrected_volatile = 0
ecc_uncorrected_volatile = 0
ecc_corrected_aggregate = 0
ecc_uncorrected_aggregate = 0
remapped_rows_corrected = 0
remapped_rows_uncorrected = 0
remapped_rows_pending = off
remapped_rows_failed = off
mig = off
fabric_state = 3
processes = yes

[process]
pid = 4711
type = C
name = /opt/gpufleet/envs/qwen/bin/python
memory_used_mib = 14108

[nvlink]
active = on
version = 4
remote = 0000:1d:00.0

[nvlink]
active = on
version = 4
remote = 0000:1d:00.0

[nvlink]
active = on
version = 4
remote = 0000:1d:00.0

[nvlink]
active = on
version = 4
remote = 0000:1d:00.0

[nvlink]
active = on
version = 4
remote = 0000:1d:00.0

[nvlink]
active = on
version = 4
remote = 0000:1d:00.0

[nvlink]
active = on
version = 4
remote = 0000:1d:00.0

[nvlink]
active = on
version = 4
remote = 0000:1d:00.0

[nvlink]
active = on
version = 4
remote = 0000:1d:00.0

[nvlink]
active = on
version = 4
remote = 0000:1d:00.0

[nvlink]
active = on
version = 4
remote = 0000:1d:00.0

[nvlink]
active = on
version = 4
remote = 0000:1d:00.0

[nvlink]
active = on
version = 4
remote = 0000:1d:00.0

[nvlink]
active = on
version = 4
remote = 0000:1d:00.0

[nvlink]
active = on
version = 4
remote = 0000:1d:00.0

[nvlink]
active = on
version = 4
remote = 0000:1d:00.0

[nvlink]
active = on
version = 4
remote = 0000:1d:00.0

[nvlink]
active = on
version = 4
remote = 0000:1d:00.0
