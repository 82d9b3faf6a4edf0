# Two T4. The second one is hot and has memory errors.
[node]
driver_version = 535.261.03
library_version = 535.261.03
cuda_driver_api = 12020
flavour = proprietary
nvml_version = 12.535.261.03

[gpu]
pci = 0000:3b:00.0
pci_id = 10de:1eb8
pci_subsystem = 10de:12a2
pci_class = 030200
numa_node = 0
minor_number = 0
name = Tesla T4
uuid = GPU-b2a6c1f0-3d52-4d0e-9a6f-2f1f5b7c0a01
serial = 0320219000001
architecture = turing
compute_capability = 7.5
persistence_mode = on
display_active = off
compute_mode = 0
memory_total_mib = 15360
memory_reserved_mib = 388
memory_used_mib = 3
power_limit_watts = 70.0
power_limit_default_watts = 70.0
power_limit_min_watts = 60.0
power_limit_max_watts = 70.0
power_draw_watts = 29.13
temperature_celsius = 41
temperature_slowdown_celsius = 93
temperature_shutdown_celsius = 96
throttle_reasons = 0x1
utilization_gpu_percent = 0
utilization_memory_percent = 0
ecc = on
ecc_corrected_volatile = 0
ecc_uncorrected_volatile = 0
ecc_corrected_aggregate = 2
ecc_uncorrected_aggregate = 0
retired_pages_pending = off
processes = yes

[gpu]
pci = 0000:af:00.0
pci_id = 10de:1eb8
pci_subsystem = 10de:12a2
pci_class = 030200
numa_node = 1
minor_number = 1
name = Tesla T4
uuid = GPU-b2a6c1f0-3d52-4d0e-9a6f-2f1f5b7c0a06
serial = 0320219000006
architecture = turing
compute_capability = 7.5
persistence_mode = on
display_active = off
compute_mode = 0
memory_total_mib = 15360
memory_reserved_mib = 388
memory_used_mib = 3
power_limit_watts = 70.0
power_limit_default_watts = 70.0
power_limit_min_watts = 60.0
power_limit_max_watts = 70.0
power_draw_watts = 29.13
temperature_celsius = 93
temperature_slowdown_celsius = 93
temperature_shutdown_celsius = 96
throttle_reasons = 0x48
utilization_gpu_percent = 0
utilization_memory_percent = 0
ecc = on
ecc_corrected_volatile = 0
ecc_uncorrected_volatile = 3
ecc_corrected_aggregate = 2
ecc_uncorrected_aggregate = 0
retired_pages_pending = on
processes = yes

[process]
pid = 901
type = C
name = /usr/bin/python3 --token=secret
