# The same H100 with MIG on and two devices.
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
memory_used_mib = 0
power_limit_watts = 700.0
power_limit_default_watts = 700.0
power_limit_min_watts = 200.0
power_limit_max_watts = 700.0
power_draw_watts = 69.51
temperature_celsius = 29
throttle_reasons = 0x1
utilization_gpu_percent = error 3
utilization_memory_percent = error 3
ecc = on
ecc_corrected_volatile = 0
ecc_uncorrected_volatile = 0
ecc_corrected_aggregate = 0
ecc_uncorrected_aggregate = 0
remapped_rows_corrected = 0
remapped_rows_uncorrected = 0
remapped_rows_pending = off
remapped_rows_failed = off
mig = on
fabric_state = 3
processes = yes

[mig]
name = NVIDIA H100 80GB HBM3 MIG 3g.40gb
profile = 3g.40gb
uuid = MIG-0c4de2a1-54ab-5d4c-9d1b-3b1a6f2e1101
gpu_instance_id = 2
compute_instance_id = 0
multiprocessor_count = 60
gpu_slices = 3
compute_slices = 3
memory_total_mib = 40448
memory_used_mib = 44

[mig]
name = NVIDIA H100 80GB HBM3 MIG 1g.10gb
profile = 1g.10gb
uuid = MIG-7f2f9a3c-0d2e-5b6c-8a1f-9e4d2c3b1102
gpu_instance_id = 9
compute_instance_id = 0
multiprocessor_count = 16
gpu_slices = 1
compute_slices = 1
memory_total_mib = 9984
memory_used_mib = 15
