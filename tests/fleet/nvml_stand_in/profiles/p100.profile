# One Tesla P100 PCIe 16 GB. Compute capability 6.0: proprietary modules only, up to branch 580.
[node]
driver_version = 535.261.03
library_version = 535.261.03
cuda_driver_api = 12020
flavour = proprietary
nvml_version = 12.535.261.03

[gpu]
pci = 0000:82:00.0
pci_id = 10de:15f8
pci_subsystem = 10de:118f
pci_class = 030200
numa_node = 1
minor_number = 0
name = Tesla P100-PCIE-16GB
uuid = GPU-5e3bd0a9-71e4-4f0c-8f38-6c1d93ab0b02
serial = 0322917000002
architecture = pascal
compute_capability = 6.0
persistence_mode = on
display_active = off
compute_mode = 0
memory_total_mib = 16384
memory_reserved_mib = 104
memory_used_mib = 0
power_limit_watts = 250.0
power_limit_default_watts = 250.0
power_limit_min_watts = 125.0
power_limit_max_watts = 250.0
power_draw_watts = 26.47
temperature_celsius = 34
temperature_slowdown_celsius = 82
temperature_shutdown_celsius = 85
throttle_reasons = 0x1
utilization_gpu_percent = 0
utilization_memory_percent = 0
ecc = on
ecc_corrected_volatile = 0
ecc_uncorrected_volatile = 0
ecc_corrected_aggregate = 0
ecc_uncorrected_aggregate = 0
retired_pages_pending = off
processes = yes
