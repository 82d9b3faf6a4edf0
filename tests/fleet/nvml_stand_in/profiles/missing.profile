# A T4 on the bus that the loaded driver does not list (nvidia-smi: No devices were found).
[node]
driver_version = 535.261.03
library_version = 535.261.03
cuda_driver_api = 12020
flavour = proprietary
nvml_version = 12.535.261.03

[only_on_bus]
pci = 0000:3b:00.0
pci_id = 10de:1eb8
pci_subsystem = 10de:12a2
pci_class = 030200
numa_node = 0
