# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PCI device id -> chip -> compute capability and architecture, for NVIDIA GPUs that no driver can be asked about.

AnsiballZ ships Python files only, so the table is Python. Sources, one per block of rows:

* device ids and names: the PCI ID database (github.com/pciutils/pciids, file ``pci.ids``) at the version that is the
  block's key. ``tools/update_tables.py all`` adds what a newer ``pci.ids`` has besides.
* compute capability by chip: NVIDIA "CUDA GPU Compute Capability" list, and the architecture table of the CUDA
  installation guide (read 2026-11).
* the three coarse ranges: supported-chip boundaries in NVIDIA's installer (``nvidia-installer``), read 2026-11.
"""

from __future__ import annotations

from typing import Any

# chip -> (architecture, compute capability). Source: NVIDIA's list of CUDA GPUs, read 2026-11.
CHIPS: dict[str, tuple[str, str]] = {
    "GF100": ("fermi", "2.0"),
    "GF104": ("fermi", "2.1"),
    "GF106": ("fermi", "2.1"),
    "GF108": ("fermi", "2.1"),
    "GF110": ("fermi", "2.0"),
    "GF114": ("fermi", "2.1"),
    "GF116": ("fermi", "2.1"),
    "GF117": ("fermi", "2.1"),
    "GF119": ("fermi", "2.1"),
    "GK104": ("kepler", "3.0"),
    "GK106": ("kepler", "3.0"),
    "GK107": ("kepler", "3.0"),
    "GK110": ("kepler", "3.5"),
    "GK180": ("kepler", "3.5"),
    "GK208": ("kepler", "3.5"),
    "GK210": ("kepler", "3.7"),
    "GM107": ("maxwell", "5.0"),
    "GM108": ("maxwell", "5.0"),
    "GM200": ("maxwell", "5.2"),
    "GM204": ("maxwell", "5.2"),
    "GM206": ("maxwell", "5.2"),
    "GP100": ("pascal", "6.0"),
    "GP102": ("pascal", "6.1"),
    "GP104": ("pascal", "6.1"),
    "GP106": ("pascal", "6.1"),
    "GP107": ("pascal", "6.1"),
    "GP108": ("pascal", "6.1"),
    "GV100": ("volta", "7.0"),
    "TU102": ("turing", "7.5"),
    "TU104": ("turing", "7.5"),
    "TU106": ("turing", "7.5"),
    "TU116": ("turing", "7.5"),
    "TU117": ("turing", "7.5"),
    "GA100": ("ampere", "8.0"),
    "GA102": ("ampere", "8.6"),
    "GA103": ("ampere", "8.6"),
    "GA104": ("ampere", "8.6"),
    "GA106": ("ampere", "8.6"),
    "GA107": ("ampere", "8.6"),
    "GA10B": ("ampere", "8.7"),
    "AD102": ("ada", "8.9"),
    "AD103": ("ada", "8.9"),
    "AD104": ("ada", "8.9"),
    "AD106": ("ada", "8.9"),
    "AD107": ("ada", "8.9"),
    "GH100": ("hopper", "9.0"),
    "GB100": ("blackwell", "10.0"),
    "GB102": ("blackwell", "10.0"),
    "GB110": ("blackwell", "10.3"),
    "GB112": ("blackwell", "10.3"),
    "GB10B": ("blackwell", "11.0"),
    "GB202": ("blackwell", "12.0"),
    "GB203": ("blackwell", "12.0"),
    "GB205": ("blackwell", "12.0"),
    "GB206": ("blackwell", "12.0"),
    "GB207": ("blackwell", "12.0"),
    "GB20B": ("blackwell", "12.1"),
}

# architecture -> (flavours of kernel module that can drive it, last driver branch or None).
# Source: NVIDIA driver README "Open Linux Kernel Modules", CUDA installation guide, read 2026-11.
ARCHITECTURES: dict[str, tuple[tuple[str, ...], int | None]] = {
    "fermi": (("proprietary",), 390),
    "kepler": (("proprietary",), 470),
    "maxwell": (("proprietary",), 580),
    "pascal": (("proprietary",), 580),
    "volta": (("proprietary",), 580),
    "turing": (("open", "proprietary"), None),
    "ampere": (("open", "proprietary"), None),
    "ada": (("open", "proprietary"), None),
    "hopper": (("open", "proprietary"), None),
    "blackwell": (("open",), None),
}

# nvmlDeviceArchitecture_t -> architecture. Source: nvml.h of CUDA 13 (nvidia-ml-py 13.615.71).
NVML_ARCHITECTURES: dict[int, str] = {
    2: "kepler",
    3: "maxwell",
    4: "pascal",
    5: "volta",
    6: "turing",
    7: "ampere",
    8: "ada",
    9: "hopper",
    10: "blackwell",
    13: "rubin",
}

# First and last id of the block from which NVIDIA takes the ids of a chip: for ids that the table below does not list.
# Source: the spans of the same pci.ids, those from Maxwell on widened to the aligned block that they fill.
_BLOCKS = """
06c0-06df GF100
0dc0-0dda GF106
0de0-0dfc GF108
0e22-0e3b GF104
0f00-0f06 GF108
0fc0-0fff GK107
1001-1023 GK110
1024-1024 GK180
1026-102a GK110
102d-102d GK210
102e-103f GK110
1040-107d GF119
1080-1096 GF110
109a-109b GF100
1140-1140 GF117
1180-11bf GK104
11c0-11fc GK106
1200-1213 GF114
1241-1251 GF116
1280-12ba GK208
1340-137f GM108
1380-13bf GM107
13c0-13ff GM204
1400-143f GM206
15f0-15ff GP100
1610-167f GM204
1720-172f GP100
1740-177f GM108
1780-17bf GM107
17c0-17ff GM200
1b00-1b7f GP102
1b80-1bff GP104
1c00-1c7f GP106
1c80-1cff GP107
1d00-1d7f GP108
1d80-1dff GV100
1e00-1e7f TU102
1e80-1eff TU104
1f00-1f7f TU106
1f80-1fff TU117
2080-20ff GA100
2180-21ff TU116
2200-227f GA102
2300-23ff GH100
2400-247f GA103
2480-24ff GA104
2500-257f GA106
2580-25ff GA107
2680-26ff AD102
2700-277f AD103
2780-27ff AD104
2800-287f AD106
2880-28ff AD107
2900-297f GB100
2980-29ff GB102
2b00-2b00 GB10B
2b80-2bff GB202
2c00-2c7f GB203
2d00-2d7f GB206
2d80-2dff GB207
2e00-2e3f GB20B
2f00-2f7f GB205
3180-31ff GB110
3200-323f GB112
"""

# "<device id> <chip> <name or ->", grouped by source.
_DEVICES = {
    "pci.ids 2023.04.11": """
1340 GM108 GeForce 830M
1341 GM108 GeForce 840M
1344 GM108 GeForce 845M
1346 GM108 GeForce 930M
1347 GM108 GeForce 940M
1348 GM108 GeForce 945M / 945A
1349 GM108 GeForce 930M
134b GM108 GeForce 940MX
134d GM108 GeForce 940MX
134e GM108 GeForce 930MX
134f GM108 GeForce 920MX
137a GM108 Quadro K620M / Quadro M500M
137b GM108 Quadro M520 Mobile
137d GM108 GeForce 940A
1380 GM107 GeForce GTX 750 Ti
1381 GM107 GeForce GTX 750
1382 GM107 GeForce GTX 745
1389 GM107 GRID M30
1390 GM107 GeForce 845M
1391 GM107 GeForce GTX 850M
1392 GM107 GeForce GTX 860M
1393 GM107 GeForce 840M
1398 GM107 GeForce 845M
1399 GM107 GeForce 945M
139a GM107 GeForce GTX 950M
139b GM107 GeForce GTX 960M
139c GM107 GeForce 940M
139d GM107 GeForce GTX 750 Ti
13b0 GM107 Quadro M2000M
13b1 GM107 Quadro M1000M
13b2 GM107 Quadro M600M
13b3 GM107 Quadro K2200M
13b4 GM107 Quadro M620 Mobile
13b6 GM107 Quadro M1200 Mobile
13b9 GM107 NVS 810
13ba GM107 Quadro K2200
13bb GM107 Quadro K620
13bc GM107 Quadro K1200
13bd GM107 Tesla M10
13c0 GM204 GeForce GTX 980
13c1 GM204 -
13c2 GM204 GeForce GTX 970
13c3 GM204 -
13d7 GM204 GeForce GTX 980M
13d8 GM204 GeForce GTX 960 OEM / 970M
13d9 GM204 GeForce GTX 965M
13da GM204 GeForce GTX 980 Mobile
13e7 GM204 GeForce GTX 980 Engineering Sample
13f0 GM204 Quadro M5000
13f1 GM204 Quadro M4000
13f2 GM204 Tesla M60
13f3 GM204 Tesla M6
13f8 GM204 Quadro M5000M / M5000 SE
13f9 GM204 Quadro M4000M
13fa GM204 Quadro M3000M
13fb GM204 Quadro M5500
1401 GM206 GeForce GTX 960
1402 GM206 GeForce GTX 950
1404 GM206 GeForce GTX 960 FAKE
1406 GM206 GeForce GTX 960 OEM
1407 GM206 GeForce GTX 750 v2
1427 GM206 GeForce GTX 965M
1430 GM206 Quadro M2000
1431 GM206 Tesla M4
1436 GM206 Quadro M2200 Mobile
15f0 GP100 Quadro GP100
15f1 GP100 -
15f7 GP100 Tesla P100 PCIe 12GB
15f8 GP100 Tesla P100 PCIe 16GB
15f9 GP100 Tesla P100 SXM2 16GB
1617 GM204 GeForce GTX 980M
1618 GM204 GeForce GTX 970M
1619 GM204 GeForce GTX 965M
161a GM204 GeForce GTX 980 Mobile
1667 GM204 GeForce GTX 965M
1725 GP100 -
172e GP100 -
172f GP100 -
174d GM108 GeForce MX130
174e GM108 GeForce MX110
1789 GM107 GRID M3-3020
179c GM107 GeForce 940MX
17c2 GM200 GeForce GTX TITAN X
17c8 GM200 GeForce GTX 980 Ti
17f0 GM200 Quadro M6000
17f1 GM200 Quadro M6000 24GB
17fd GM200 Tesla M40
1b00 GP102 TITAN X
1b01 GP102 GeForce GTX 1080 Ti 10GB
1b02 GP102 TITAN Xp
1b04 GP102 -
1b06 GP102 GeForce GTX 1080 Ti
1b07 GP102 P102-100
1b30 GP102 Quadro P6000
1b38 GP102 Tesla P40
1b39 GP102 Tesla P10
1b70 GP102 -
1b78 GP102 -
1b80 GP104 GeForce GTX 1080
1b81 GP104 GeForce GTX 1070
1b82 GP104 GeForce GTX 1070 Ti
1b83 GP104 GeForce GTX 1060 6GB
1b84 GP104 GeForce GTX 1060 3GB
1b87 GP104 P104-100
1ba0 GP104 GeForce GTX 1080 Mobile
1ba1 GP104 GeForce GTX 1070 Mobile
1ba2 GP104 GeForce GTX 1070 Mobile
1ba9 GP104 -
1baa GP104 -
1bad GP104 GeForce GTX 1070 Engineering Sample
1bb0 GP104 Quadro P5000
1bb1 GP104 Quadro P4000
1bb3 GP104 Tesla P4
1bb4 GP104 Tesla P6
1bb5 GP104 Quadro P5200 Mobile
1bb6 GP104 Quadro P5000 Mobile
1bb7 GP104 Quadro P4000 Mobile
1bb8 GP104 Quadro P3000 Mobile
1bb9 GP104 Quadro P4200 Mobile
1bbb GP104 Quadro P3200 Mobile
1bc7 GP104 P104-101
1be0 GP104 GeForce GTX 1080 Mobile
1be1 GP104 GeForce GTX 1070 Mobile
1c00 GP106 -
1c01 GP106 -
1c02 GP106 GeForce GTX 1060 3GB
1c03 GP106 GeForce GTX 1060 6GB
1c04 GP106 GeForce GTX 1060 5GB
1c06 GP106 GeForce GTX 1060 6GB Rev. 2
1c07 GP106 P106-100
1c09 GP106 P106-090
1c20 GP106 GeForce GTX 1060 Mobile
1c21 GP106 GeForce GTX 1050 Ti Mobile
1c22 GP106 GeForce GTX 1050 Mobile
1c23 GP106 GeForce GTX 1060 Mobile Rev. 2
1c2d GP106 -
1c30 GP106 Quadro P2000
1c31 GP106 Quadro P2200
1c35 GP106 Quadro P2000 Mobile
1c36 GP106 P106M
1c60 GP106 GeForce GTX 1060 Mobile 6GB
1c61 GP106 GeForce GTX 1050 Ti Mobile
1c62 GP106 GeForce GTX 1050 Mobile
1c70 GP106 -
1c81 GP107 GeForce GTX 1050
1c82 GP107 GeForce GTX 1050 Ti
1c83 GP107 GeForce GTX 1050 3GB
1c8c GP107 GeForce GTX 1050 Ti Mobile
1c8d GP107 GeForce GTX 1050 Mobile
1c8e GP107 -
1c8f GP107 GeForce GTX 1050 Ti Max-Q
1c90 GP107 GeForce MX150
1c91 GP107 GeForce GTX 1050 3 GB Max-Q
1c92 GP107 GeForce GTX 1050 Mobile
1c94 GP107 GeForce MX350
1c96 GP107 GeForce MX350
1ca7 GP107 -
1ca8 GP107 -
1caa GP107 -
1cb1 GP107 Quadro P1000
1cb2 GP107 Quadro P600
1cb3 GP107 Quadro P400
1cb6 GP107 Quadro P620
1cba GP107 Quadro P2000 Mobile
1cbb GP107 Quadro P1000 Mobile
1cbc GP107 Quadro P600 Mobile
1cbd GP107 Quadro P620
1ccc GP107 GeForce GTX 1050 Ti Mobile
1ccd GP107 GeForce GTX 1050 Mobile
1cfa GP107 Quadro P2000
1cfb GP107 Quadro P1000
1d01 GP108 GeForce GT 1030
1d02 GP108 GeForce GT 1010
1d10 GP108 GeForce MX150
1d11 GP108 GeForce MX230
1d12 GP108 GeForce MX150
1d13 GP108 GeForce MX250
1d16 GP108 GeForce MX330
1d33 GP108 Quadro P500 Mobile
1d34 GP108 Quadro P520
1d52 GP108 GeForce MX250
1d56 GP108 GeForce MX330
1d81 GV100 TITAN V
1db1 GV100 Tesla V100 SXM2 16GB
1db2 GV100 Tesla V100 DGXS 16GB
1db3 GV100 Tesla V100 FHHL 16GB
1db4 GV100 Tesla V100 PCIe 16GB
1db5 GV100 Tesla V100 SXM2 32GB
1db6 GV100 Tesla V100 PCIe 32GB
1db7 GV100 Tesla V100 DGXS 32GB
1db8 GV100 Tesla V100 SXM3 32GB
1dba GV100 Quadro GV100
1dbe GV100 -
1df0 GV100 Tesla PG500-216
1df2 GV100 Tesla PG503-216
1df5 GV100 Tesla V100 SXM2 16GB
1df6 GV100 Tesla V100S PCIe 32GB
1e02 TU102 TITAN RTX
1e03 TU102 GeForce RTX 2080 Ti 12GB
1e04 TU102 GeForce RTX 2080 Ti
1e07 TU102 GeForce RTX 2080 Ti Rev. A
1e09 TU102 CMP 50HX
1e2d TU102 GeForce RTX 2080 Ti Engineering Sample
1e2e TU102 GeForce RTX 2080 Ti 12GB Engineering Sample
1e30 TU102 Quadro RTX 6000/8000
1e36 TU102 Quadro RTX 6000
1e37 TU102 Tesla T10 16GB / GRID RTX T10-2/T10-4/T10-8
1e38 TU102 Tesla T40 24GB
1e3c TU102 -
1e3d TU102 -
1e3e TU102 -
1e78 TU102 Quadro RTX 6000/8000
1e81 TU104 GeForce RTX 2080 SUPER
1e82 TU104 GeForce RTX 2080
1e84 TU104 GeForce RTX 2070 SUPER
1e87 TU104 GeForce RTX 2080 Rev. A
1e89 TU104 GeForce RTX 2060
1e90 TU104 GeForce RTX 2080 Mobile
1e91 TU104 GeForce RTX 2070 SUPER Mobile / Max-Q
1e93 TU104 GeForce RTX 2080 SUPER Mobile / Max-Q
1eab TU104 -
1eae TU104 GeForce GTX 2080 Engineering Sample
1eb0 TU104 Quadro RTX 5000
1eb1 TU104 Quadro RTX 4000
1eb4 TU104 T4G
1eb5 TU104 Quadro RTX 5000 Mobile / Max-Q
1eb6 TU104 Quadro RTX 4000 Mobile / Max-Q
1eb8 TU104 Tesla T4
1eb9 TU104 -
1eba TU104 PG189 SKU600
1ebe TU104 -
1ec2 TU104 GeForce RTX 2070 SUPER
1ec7 TU104 GeForce RTX 2070 SUPER
1ed0 TU104 GeForce RTX 2080 Mobile
1ed1 TU104 GeForce RTX 2070 SUPER Mobile / Max-Q
1ed3 TU104 GeForce RTX 2080 SUPER Mobile / Max-Q
1ef5 TU104 Quadro RTX 5000 Mobile Refresh
1f02 TU106 GeForce RTX 2070
1f03 TU106 GeForce RTX 2060 12GB
1f04 TU106 -
1f06 TU106 GeForce RTX 2060 SUPER
1f07 TU106 GeForce RTX 2070 Rev. A
1f08 TU106 GeForce RTX 2060 Rev. A
1f09 TU106 GeForce GTX 1660 SUPER
1f0a TU106 GeForce GTX 1650
1f0b TU106 CMP 40HX
1f10 TU106 GeForce RTX 2070 Mobile
1f11 TU106 GeForce RTX 2060 Mobile
1f12 TU106 GeForce RTX 2060 Max-Q
1f14 TU106 GeForce RTX 2070 Mobile / Max-Q Refresh
1f15 TU106 GeForce RTX 2060 Mobile
1f2e TU106 -
1f36 TU106 Quadro RTX 3000 Mobile / Max-Q
1f42 TU106 GeForce RTX 2060 SUPER
1f47 TU106 GeForce RTX 2060 SUPER
1f50 TU106 GeForce RTX 2070 Mobile / Max-Q
1f51 TU106 GeForce RTX 2060 Mobile
1f54 TU106 GeForce RTX 2070 Mobile
1f55 TU106 GeForce RTX 2060 Mobile
1f76 TU106 Quadro RTX 3000 Mobile Refresh
1f81 TU117 -
1f82 TU117 GeForce GTX 1650
1f83 TU117 GeForce GTX 1630
1f91 TU117 GeForce GTX 1650 Mobile / Max-Q
1f92 TU117 GeForce GTX 1650 Mobile
1f94 TU117 GeForce GTX 1650 Mobile
1f95 TU117 GeForce GTX 1650 Ti Mobile
1f96 TU117 GeForce GTX 1650 Mobile / Max-Q
1f97 TU117 GeForce MX450
1f98 TU117 GeForce MX450
1f99 TU117 -
1f9c TU117 GeForce MX450
1f9d TU117 GeForce GTX 1650 Mobile / Max-Q
1f9f TU117 GeForce MX550
1fa0 TU117 GeForce MX550
1fa1 TU117 -
1fae TU117 -
1fb0 TU117 Quadro T1000 Mobile
1fb1 TU117 T600
1fb2 TU117 Quadro T400 Mobile
1fb6 TU117 T600 Laptop GPU
1fb7 TU117 T550 Laptop GPU
1fb8 TU117 Quadro T2000 Mobile / Max-Q
1fb9 TU117 Quadro T1000 Mobile
1fba TU117 T600 Mobile
1fbb TU117 Quadro T500 Mobile
1fbc TU117 T1200 Laptop GPU
1fbf TU117 -
1fd9 TU117 GeForce GTX 1650 Mobile Refresh
1fdd TU117 GeForce GTX 1650 Mobile Refresh
1ff0 TU117 T1000 8GB
1ff2 TU117 T400 4GB
1ff9 TU117 Quadro T1000 Mobile
2082 GA100 CMP 170HX
20b0 GA100 A100 SXM4 40GB
20b6 GA100 PG506-232
20be GA100 GRID A100A
20bf GA100 GRID A100B
20c2 GA100 CMP 170HX
20f0 GA100 A100-PG506-207
20f2 GA100 A100-PG506-217
2182 TU116 GeForce GTX 1660 Ti
2183 TU116 -
2184 TU116 GeForce GTX 1660
2187 TU116 GeForce GTX 1650 SUPER
2188 TU116 GeForce GTX 1650
2189 TU116 CMP 30HX
2191 TU116 GeForce GTX 1660 Ti Mobile
2192 TU116 GeForce GTX 1650 Ti Mobile
21ae TU116 -
21bf TU116 -
21c2 TU116 -
21c4 TU116 GeForce GTX 1660 SUPER
21d1 TU116 GeForce GTX 1660 Ti Mobile
2200 GA102 -
2203 GA102 GeForce RTX 3090 Ti
2204 GA102 GeForce RTX 3090
2205 GA102 GeForce RTX 3080 Ti 20GB
2206 GA102 GeForce RTX 3080
2207 GA102 GeForce RTX 3070 Ti
2208 GA102 GeForce RTX 3080 Ti
220a GA102 GeForce RTX 3080 12GB
220d GA102 CMP 90HX
2216 GA102 GeForce RTX 3080 Lite Hash Rate
222b GA102 GeForce RTX 3090 Engineering Sample
222f GA102 GeForce RTX 3080 11GB / 12GB Engineering Sample
2230 GA102 RTX A6000
2231 GA102 RTX A5000
2232 GA102 RTX A4500
2233 GA102 RTX A5500
2235 GA102 A40
2236 GA102 A10
2237 GA102 A10G
2238 GA102 A10M
223f GA102 -
2302 GH100 -
2414 GA103 GeForce RTX 3060 Ti
2420 GA103 GeForce RTX 3080 Ti Mobile
2438 GA103 RTX A5500 Laptop GPU
2460 GA103 GeForce RTX 3080 Ti Laptop GPU
2482 GA104 GeForce RTX 3070 Ti
2483 GA104 -
2484 GA104 GeForce RTX 3070
2486 GA104 GeForce RTX 3060 Ti
2487 GA104 GeForce RTX 3060
2488 GA104 GeForce RTX 3070 Lite Hash Rate
2489 GA104 GeForce RTX 3060 Ti Lite Hash Rate
248a GA104 CMP 70HX
249c GA104 GeForce RTX 3080 Mobile / Max-Q 8GB/16GB
249d GA104 GeForce RTX 3070 Mobile / Max-Q
249f GA104 -
24a0 GA104 Geforce RTX 3070 Ti Laptop GPU
24a4 GA104 -
24ac GA104 GeForce RTX 30x0 Engineering Sample
24ad GA104 GeForce RTX 3060 Engineering Sample
24af GA104 GeForce RTX 3070 Engineering Sample
24b0 GA104 RTX A4000
24b1 GA104 RTX A4000H
24b6 GA104 RTX A5000 Mobile
24b7 GA104 RTX A4000 Mobile
24b8 GA104 RTX A3000 Mobile
24b9 GA104 RTX A3000 12GB Laptop GPU
24ba GA104 RTX A4500 Laptop GPU
24bb GA104 RTX A3000 Laptop GPU
24bf GA104 GeForce RTX 3070 Engineering Sample
24c8 GA104 GeForce RTX 3070 GDDR6X
24c9 GA104 GeForce RTX 3060 Ti GDDR6X
24dc GA104 GeForce RTX 3080 Mobile / Max-Q 8GB/16GB
24dd GA104 GeForce RTX 3070 Mobile / Max-Q
24df GA104 -
24e0 GA104 Geforce RTX 3070 Ti Laptop GPU
24fa GA104 RTX A4500 Embedded GPU
2501 GA106 GeForce RTX 3060
2503 GA106 GeForce RTX 3060
2504 GA106 GeForce RTX 3060 Lite Hash Rate
2505 GA106 -
2507 GA106 Geforce RTX 3050
2508 GA106 GeForce RTX 3050 OEM
2509 GA106 GeForce RTX 3060 12GB Rev. 2
2520 GA106 GeForce RTX 3060 Mobile / Max-Q
2521 GA106 GeForce RTX 3060 Laptop GPU
2523 GA106 GeForce RTX 3050 Ti Mobile / Max-Q
252f GA106 GeForce RTX 3060 Engineering Sample
2531 GA106 RTX A2000
2544 GA106 GeForce RTX 3060
2560 GA106 GeForce RTX 3060 Mobile / Max-Q
2561 GA106 GeForce RTX 3060 Laptop GPU
2563 GA106 GeForce RTX 3050 Ti Mobile / Max-Q
2571 GA106 RTX A2000 12GB
2582 GA107 GeForce RTX 3050 8GB
2583 GA107 GeForce RTX 3050 4GB
25a0 GA107 GeForce RTX 3050 Ti Mobile
25a2 GA107 GeForce RTX 3050 Mobile
25a3 GA107 -
25a4 GA107 -
25a5 GA107 GeForce RTX 3050 Mobile
25a6 GA107 GeForce MX570
25a7 GA107 GeForce MX570
25a9 GA107 GeForce RTX 2050
25aa GA107 GeForce MX570 A
25ab GA107 GeForce RTX 3050 4GB Laptop GPU
25ad GA107 GeForce RTX 2050
25af GA107 GeForce RTX 3050 Engineering Sample
25b5 GA107 RTX A4 Mobile
25b6 GA107 A2 / A16
25b8 GA107 RTX A2000 Mobile
25b9 GA107 RTX A1000 Laptop GPU
25ba GA107 RTX A2000 8GB Laptop GPU
25bb GA107 RTX A500 Laptop GPU
25bc GA107 RTX A1000 6GB Laptop GPU
25bd GA107 RTX A500 Laptop GPU
25e0 GA107 GeForce RTX 3050 Ti Mobile
25e2 GA107 GeForce RTX 3050 Mobile
25e5 GA107 GeForce RTX 3050 Mobile
25ed GA107 GeForce RTX 2050
25f9 GA107 RTX A1000 Embedded GPU
25fa GA107 RTX A2000 Embedded GPU
25fb GA107 RTX A500 Embedded GPU
2681 AD102 RTX TITAN Ada
2684 AD102 GeForce RTX 4090
26f5 AD102 L40 CNX
2704 AD103 GeForce RTX 4080
2730 AD103 RTX 5000 Ada Generation Laptop GPU
2782 AD104 GeForce RTX 4070 Ti
2785 AD104 -
2786 AD104 GeForce RTX 4070
27a0 AD104 GeForce RTX 4080 Max-Q / Mobile
27b0 AD104 RTX 4000 SFF Ada Generation
27b7 AD104 L16
27b8 AD104 L4
27ba AD104 RTX 4000 Ada Generation Laptop GPU
27bb AD104 RTX 3500 Ada Generation Laptop GPU
27e0 AD104 GeForce RTX 4080 Max-Q / Mobile
2803 AD106 GeForce RTX 4060 Ti
2820 AD106 GeForce RTX 4070 Max-Q / Mobile
2838 AD106 RTX 3000 Ada Generation Laptop GPU
2860 AD106 GeForce RTX 4070 Max-Q / Mobile
28a0 AD107 GeForce RTX 4060 Max-Q / Mobile
28a1 AD107 GeForce RTX 4050 Max-Q / Mobile
28b8 AD107 RTX 2000 Ada Generation Laptop GPU
28e0 AD107 GeForce RTX 4060 Max-Q / Mobile
28e1 AD107 GeForce RTX 4050 Max-Q / Mobile
""",
    "pci.ids 2026.05.24": """
20b1 GA100 A100 PCIe 40GB
20b2 GA100 A100 SXM4 80GB
20b3 GA100 A100-SXM-64GB
20b5 GA100 A100 PCIe 80GB
20b7 GA100 A30 PCIe
20b8 GA100 A100X
20b9 GA100 A30X
20bb GA100 DRIVE A100 PROD
20bd GA100 A800 SXM4 40GB
20f1 GA100 A100 PCIe 40GB
20f3 GA100 A800-SXM4-80GB
20f5 GA100 A800 80GB PCIe
20f6 GA100 A800 40GB PCIe
20fd GA100 AX800 Converged Accelerator
230c GH100 H20 NVL16
230e GH100 H20 NVL16
2313 GH100 H100 CNX
2321 GH100 H100L 94GB
2322 GH100 H800 PCIe
2324 GH100 H800
2328 GH100 H20B
2329 GH100 H20
232c GH100 H20 HBM3e
2330 GH100 H100 SXM5 80GB
2331 GH100 H100 PCIe
2335 GH100 H200 SXM 141GB
2336 GH100 H100
2337 GH100 H100 SXM5 64GB
2338 GH100 H100 SXM5 96GB
2339 GH100 H100 SXM5 94GB
233a GH100 H800L 94GB
233b GH100 H200 NVL
233d GH100 H100 96GB
2342 GH100 GH200 120GB / 480GB
2348 GH100 GH200 144G HBM3e
248c GA104 GeForce RTX 3070 Ti
248d GA104 GeForce RTX 3070
248e GA104 GeForce RTX 3060 Ti
24c7 GA104 GeForce RTX 3060 8GB
2584 GA107 GeForce RTX 3050 6GB
25ac GA107 GeForce RTX 3050 6GB Laptop GPU
25b0 GA107 RTX A1000
25b2 GA107 RTX A400
25ec GA107 GeForce RTX 3050 6GB Laptop GPU
2685 AD102 GeForce RTX 4090 D
2689 AD102 GeForce RTX 4070 Ti SUPER
26b1 AD102 RTX 6000 Ada Generation
26b2 AD102 RTX 5000 Ada Generation
26b3 AD102 RTX 5880 Ada Generation
26b5 AD102 L40
26b7 AD102 L20
26b8 AD102 L40G
26b9 AD102 L40S
26ba AD102 L20
26bb AD102 L30
2702 AD103 GeForce RTX 4080 SUPER
2703 AD103 GeForce RTX 4080 SUPER
2705 AD103 GeForce RTX 4070 Ti SUPER
2709 AD103 GeForce RTX 4070
2717 AD103 GeForce RTX 4090 Laptop GPU
2757 AD103 GeForce RTX 4090 Laptop GPU
2770 AD103 RTX 5000 Ada Generation Embedded GPU
2783 AD104 GeForce RTX 4070 SUPER
2788 AD104 GeForce RTX 4060 Ti
27b1 AD104 RTX 4500 Ada Generation
27b2 AD104 RTX 4000 Ada Generation
27b6 AD104 L2
27fa AD104 RTX 4000 Ada Generation Embedded GPU
27fb AD104 RTX 3500 Ada Generation Embedded GPU
2805 AD106 GeForce RTX 4060 Ti 16GB
2808 AD106 GeForce RTX 4060
2822 AD106 GeForce RTX 3050 A Laptop GPU
2878 AD106 RTX 3000 Ada Generation Embedded GPU
2882 AD107 GeForce RTX 4060
28a3 AD107 GeForce RTX 3050 A Laptop GPU
28b0 AD107 RTX 2000 / 2000E Ada Generation
28b9 AD107 RTX 1000 Ada Generation Laptop GPU
28ba AD107 RTX 500 Ada Generation Laptop GPU
28bb AD107 RTX 500 Ada Generation Laptop GPU
28e3 AD107 GeForce RTX 3050 A Laptop GPU
28f8 AD107 RTX 2000 Ada Generation Embedded GPU
2901 GB100 B200
2909 GB100 HGX B200 168GB
2920 GB100 TS4 / B100
2941 GB100 HGX GB200
29bb GB102 DRIVE P2021
29bc GB102 B100
2b00 GB10B Jetson AGX Thor
2b85 GB202 GeForce RTX 5090
2b87 GB202 GeForce RTX 5090 D
2b8c GB202 GeForce RTX 5090 D V2
2bb1 GB202 RTX PRO 6000 Blackwell Workstation Edition
2bb2 GB202 RTX PRO 6000D Blackwell Workstation Edition
2bb3 GB202 RTX PRO 5000 Blackwell / RTX PRO 5000 72GB Blackwell
2bb4 GB202 RTX PRO 6000 Blackwell Max-Q Workstation Edition
2bb5 GB202 RTX PRO 6000 Blackwell Server Edition
2bb9 GB202 RTX 6000D
2bbc GB202 RTX PRO 6000D Blackwell Max-Q Workstation Edition
2c02 GB203 GeForce RTX 5080
2c05 GB203 GeForce RTX 5070 Ti
2c18 GB203 GeForce RTX 5090 Max-Q / Mobile
2c19 GB203 GeForce RTX 5080 Max-Q / Mobile
2c31 GB203 RTX PRO 4500 Blackwell
2c33 GB203 RTX PRO 4000 Blackwell SFF Edition
2c34 GB203 RTX PRO 4000 Blackwell
2c38 GB203 RTX PRO 5000 Blackwell Generation Laptop GPU
2c39 GB203 RTX PRO 4000 Blackwell Generation Laptop GPU
2c3a GB203 RTX PRO 4500 Blackwell Server Edition
2c58 GB203 GeForce RTX 5090 Max-Q / Mobile
2c59 GB203 GeForce RTX 5080 Max-Q / Mobile
2c77 GB203 RTX PRO 5000 Blackwell Embedded GPU
2c79 GB203 RTX PRO 4000 Blackwell Embedded GPU
2d04 GB206 GeForce RTX 5060 Ti
2d05 GB206 GeForce RTX 5060
2d18 GB206 GeForce RTX 5070 Max-Q / Mobile
2d19 GB206 GeForce RTX 5060 Max-Q / Mobile
2d30 GB206 RTX PRO 2000 Blackwell
2d39 GB206 RTX PRO 2000 Blackwell Generation Laptop GPU
2d58 GB206 GeForce RTX 5070 Max-Q / Mobile
2d59 GB206 GeForce RTX 5060 Max-Q / Mobile
2d79 GB206 RTX PRO 2000 Blackwell Embedded GPU
2d83 GB207 GeForce RTX 5050
2d98 GB207 GeForce RTX 5050 Max-Q / Mobile
2db8 GB207 RTX PRO 1000 Blackwell Generation Laptop GPU
2db9 GB207 RTX PRO 500 Blackwell Generation Laptop GPU
2dd8 GB207 GeForce RTX 5050 Max-Q / Mobile
2df9 GB207 RTX PRO 500 Blackwell Embedded GPU
2e12 GB20B GB10
2e2a GB20B JMJWOA-Generic-GPU
2f04 GB205 GeForce RTX 5070
2f06 GB205 GeForce RTX 5060
2f18 GB205 GeForce RTX 5070 Ti Mobile
2f38 GB205 RTX PRO 3000 Blackwell Generation Laptop GPU
2f58 GB205 GeForce RTX 5070 Ti Mobile
3182 GB110 B300 SXM6 AC
31a1 GB110 GB300 MaxQ
31c2 GB110 GB300
31c3 GB110 GB300
""",
}


def lookup(device_id: str) -> dict[str, Any]:
    """What is known of a GPU by its PCI device id alone.

    ``device_id``: four hexadecimal digits. Returns ``chip``, ``name`` (None when the table has none), ``architecture``,
    ``compute_capability``, ``compute_capability_source`` (``table``, ``range`` or None), ``module_flavours`` (list),
    ``last_driver_branch`` (int or None) and ``source`` (where the row comes from). Never raises: an id that nothing
    covers leaves the values None and ``module_flavours`` as the coarse range says.
    """
    try:
        number = int(device_id, 16)
    except (TypeError, ValueError):
        return _result(None, None, None, None)
    wanted = f"{number:04x}"
    for source, text in _DEVICES.items():
        # One scan of the text is faster than making 650 dictionary entries for the one that is needed.
        start = text.find("\n" + wanted + " ")
        if start >= 0:
            _id, chip, name = text[start + 1 : text.find("\n", start + 1)].split(" ", 2)
            return _result(chip, None if name == "-" else name, "table", source)
    for line in _BLOCKS.split("\n"):
        if line and int(line[:4], 16) <= number <= int(line[5:9], 16):
            return _result(line[10:], None, "range", "block of device ids")
    found = _result(None, None, None, "coarse range")
    # Below 0x1340 is Kepler or older, up to 0x1df6 Maxwell to Volta, from 0x1e02 Turing or newer. An id from 0x2900 on
    # that this table does not know is newer than Ada, and only open modules drive those.
    if number < 0x1340:
        found.update(module_flavours=["proprietary"], last_driver_branch=470)
    elif number <= 0x1DF6:
        found.update(module_flavours=["proprietary"], last_driver_branch=580)
    elif number < 0x2900:
        found.update(module_flavours=["open", "proprietary"])
    else:
        found.update(module_flavours=["open"])
    return found


def by_architecture(architecture: str | None) -> tuple[list[str], int | None]:
    """``(module flavours, last driver branch)`` of an architecture; ``([], None)`` when it is not known."""
    flavours, branch = ARCHITECTURES.get(architecture or "", ((), None))
    return list(flavours), branch


def _result(chip: str | None, name: str | None, how: str | None, source: str | None) -> dict[str, Any]:
    architecture, capability = CHIPS.get(chip or "", (None, None))
    flavours, branch = by_architecture(architecture)
    return {
        "chip": chip,
        "name": name,
        "architecture": architecture,
        "compute_capability": capability,
        "compute_capability_source": how if capability else None,
        "module_flavours": flavours,
        "last_driver_branch": branch,
        "source": source,
    }
