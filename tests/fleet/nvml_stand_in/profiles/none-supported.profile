# A GPU that answers nothing but who it is: every other value is NOT_SUPPORTED.
[node]
driver_version = 535.261.03
library_version = 535.261.03
cuda_driver_api = 12020
flavour = proprietary
nvml_version = 12.535.261.03

[gpu]
pci = 0000:3b:00.0
pci_id = 10de:1eb8
pci_class = 030200
name = Tesla T4
uuid = GPU-b2a6c1f0-3d52-4d0e-9a6f-2f1f5b7c0a01
