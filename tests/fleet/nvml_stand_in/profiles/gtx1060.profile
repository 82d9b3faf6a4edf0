# A GeForce GTX 1060 with a display and driver 525. Has no ECC, no serial number, no MIG.
[node]
driver_version = 525.85.05
library_version = 525.85.05
cuda_driver_api = 12000
flavour = proprietary
nvml_version = 12.525.85.05

[gpu]
pci = 0000:01:00.0
pci_id = 10de:1c03
pci_subsystem = 1458:3739
pci_class = 030000
minor_number = 0
name = NVIDIA GeForce GTX 1060 6GB
uuid = GPU-0f9d7c52-92a1-4b1f-b0f5-9b6f0d3e0c03
architecture = pascal
compute_capability = 6.1
persistence_mode = off
display_active = on
compute_mode = 0
memory_total_mib = 6144
memory_reserved_mib = 75
memory_used_mib = 212
power_limit_watts = 130.0
power_limit_default_watts = 120.0
power_limit_min_watts = 60.0
power_limit_max_watts = 140.0
power_draw_watts = 12.02
temperature_celsius = 38
temperature_slowdown_celsius = 99
temperature_shutdown_celsius = 102
throttle_reasons = 0x1
utilization_gpu_percent = 0
utilization_memory_percent = 3
processes = yes

[process]
pid = 1422
type = G
name = /usr/lib/xorg/Xorg
memory_used_mib = 209
