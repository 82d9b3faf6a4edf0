# Copyright: Contributors to the gpufleet.llm project
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in the packages: fixtures with the names, places and versions of NVIDIA's files, and none of their function."""

from __future__ import annotations

from deb import File, link, script

# What a fixture does that the real package leaves to dkms. Arguments: module, version, kernel module's file name, folder.
# A file /etc/gpufleet-fixture/dkms-fails lets the build fail as a missing header does.
DKMS_ADD = r"""
kernel=${GPUFLEET_KERNEL:-$(cat /etc/gpufleet-fixture/kernel 2>/dev/null || uname -r)}
state=/var/lib/dkms/nvidia/@VERSION@
if [ -e "/lib/modules/$kernel/build/scripts/basic/fixdep" ] && grep -q autoinstall "$(command -v dkms)" && ! grep -q FIXTURE "$(command -v dkms)"; then
    # A machine with a real kernel's headers: the module in /usr/src is really built.
    dkms status -m nvidia -v @VERSION@ | grep -q . || dkms add -m nvidia -v @VERSION@
    dkms build -m nvidia -v @VERSION@ -k "$kernel"
    dkms install --force -m nvidia -v @VERSION@ -k "$kernel"
else
mkdir -p "$state"
ln -sfn /usr/src/nvidia-@VERSION@ "$state/source"
if [ -e /etc/gpufleet-fixture/dkms-fails ]; then
    mkdir -p "$state/build"
    echo "fatal error: linux/vmalloc.h: No such file or directory" > "$state/build/make.log"
    echo "Error! Bad return status for module build on kernel: $kernel (x86_64)" >&2
    echo "Consult /var/lib/dkms/nvidia/@VERSION@/build/make.log for more information." >&2
    exit 10
fi
rm -rf "$state/build"
mkdir -p "$state/$kernel/x86_64/module" "/lib/modules/$kernel/@FOLDER@"
for module in nvidia nvidia-uvm; do
    cp "/usr/src/nvidia-@VERSION@/$module.ko" "$state/$kernel/x86_64/module/$module.ko"
    cp "/usr/src/nvidia-@VERSION@/$module.ko" "/lib/modules/$kernel/@FOLDER@/$module.ko"
done
ln -sfn "@VERSION@/$kernel/x86_64" "/var/lib/dkms/nvidia/kernel-$kernel-x86_64"
if [ -x /sbin/depmod ]; then /sbin/depmod -a "$kernel" 2>/dev/null || :; fi
fi
"""
DKMS_REMOVE = r"""
if [ -e /var/lib/dkms/nvidia/@VERSION@ ] && grep -q autoinstall "$(command -v dkms)" 2>/dev/null && ! grep -q FIXTURE "$(command -v dkms)"; then
    dkms remove -m nvidia -v @VERSION@ --all >/dev/null 2>&1 || :
fi
for built in /var/lib/dkms/nvidia/@VERSION@/*/x86_64; do
    [ -d "$built" ] || continue
    kernel=$(basename "$(dirname "$built")")
    if [ "$(readlink "/var/lib/dkms/nvidia/kernel-$kernel-x86_64")" = "@VERSION@/$kernel/x86_64" ]; then
        rm -f "/var/lib/dkms/nvidia/kernel-$kernel-x86_64"
        rm -f "/lib/modules/$kernel/@FOLDER@/nvidia.ko" "/lib/modules/$kernel/@FOLDER@/nvidia-uvm.ko"
        for folder in "/lib/modules/$kernel/@FOLDER@" "/lib/modules/$kernel/updates" "/lib/modules/$kernel"; do
            rmdir "$folder" 2>/dev/null || :
        done
    fi
done
rm -rf /var/lib/dkms/nvidia/@VERSION@
rmdir --ignore-fail-on-non-empty /var/lib/dkms/nvidia 2>/dev/null || :
"""

SMI = r"""#!/bin/sh
# FIXTURE: nvidia-smi of the fixture packages. It knows its version, and where a fixture's module is loaded, whether that is
# of the same one.
if [ "$1" = --version ]; then
    printf 'NVIDIA-SMI version  : %s\nNVML version        : %s\nDRIVER version      : N/A\n' @VERSION@ @BRANCH@
    exit 0
fi
loaded=$(cat /sys/module/nvidia/version 2>/dev/null)
if [ -n "$loaded" ] && [ "$loaded" != @VERSION@ ]; then echo "Failed to initialize NVML: Driver/library version mismatch"; exit 18; fi
if [ -n "$loaded" ] && [ "$1" = --query-gpu=driver_version ]; then echo @VERSION@; exit 0; fi
echo "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA driver is installed and running."
exit 9
"""
PERSISTENCED = r"""#!/bin/sh
# FIXTURE: fails as the real daemon does where the kernel module is not loaded.
if [ "$1" = --version ]; then echo "nvidia-persistenced:  version @VERSION@"; exit 0; fi
if [ ! -e /proc/driver/nvidia/version ]; then
    echo "nvidia-persistenced failed to initialize. Check syslog for more details." >&2
    exit 1
fi
mkdir -p /run/nvidia-persistenced
sleep infinity &
echo $! > /run/nvidia-persistenced/nvidia-persistenced.pid
"""
PERSISTENCED_UNIT = """[Unit]
Description=NVIDIA Persistence Daemon
Wants=syslog.target

[Service]
Type=forking
PIDFile=/run/nvidia-persistenced/nvidia-persistenced.pid
ExecStart=/usr/bin/nvidia-persistenced --verbose
ExecStopPost=/bin/rm -rf /run/nvidia-persistenced

[Install]
WantedBy=multi-user.target
"""
FABRICMANAGER = r"""#!/bin/sh
# FIXTURE: starts only where the driver is loaded and of exactly this version, as the real one does.
if [ "$1" = --version ]; then echo "Fabric Manager version is : @VERSION@"; exit 0; fi
if ! grep -q " @VERSION@ " /proc/driver/nvidia/version 2>/dev/null; then
    echo "fabric manager NVIDIA GPU driver interface version @VERSION@ don't match with driver version" >&2
    exit 1
fi
sleep infinity &
echo $! > /run/nv-fabricmanager.pid
"""
FABRICMANAGER_UNIT = """[Unit]
Description=NVIDIA fabric manager service
After=network-online.target

[Service]
Type=forking
PIDFile=/run/nv-fabricmanager.pid
ExecStart=/usr/bin/nv-fabricmanager -c /usr/share/nvidia/nvswitch/fabricmanager.cfg

[Install]
WantedBy=multi-user.target
"""


def filled(text: str, version: str, folder: str = "updates/dkms") -> str:
    """A text with its version and branch in place."""
    branch = version.partition(".")[0]
    return text.replace("@VERSION@", version).replace("@BRANCH@", branch).replace("@FOLDER@", folder)


def libraries(version: str, libdir: str, nvml: bytes) -> dict[str, File]:
    """libnvidia-ml and libcuda: both the NVML stand-in, which without a profile says that no driver is loaded."""
    tree = {}
    for name in ("libnvidia-ml.so", "libcuda.so"):
        tree[f"{libdir}/{name}.{version}"] = File(nvml)
        tree[f"{libdir}/{name}.1"] = link(f"{name}.{version}")
    return tree


MODULE_C = r"""/* FIXTURE: a module that is called nvidia, has NVIDIA's version, and drives nothing. */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
static struct proc_dir_entry *folder;
static int show(struct seq_file *file, void *unused)
{
	seq_puts(file, "NVRM version: NVIDIA UNIX @KIND@  @VERSION@  Release Build  (gpufleet fixture)\nGCC version:  fixture\n");
	return 0;
}
static int __init start(void)
{
	folder = proc_mkdir("driver/nvidia", NULL);
	if (!folder)
		return -ENOMEM;
	proc_create_single("version", 0444, folder, show);
	return 0;
}
static void __exit stop(void)
{
	proc_remove(folder);
}
module_init(start);
module_exit(stop);
MODULE_VERSION("@VERSION@");
MODULE_LICENSE("@LICENCE@");
"""
UVM_C = r"""/* FIXTURE */
#include <linux/module.h>
MODULE_VERSION("@VERSION@");
MODULE_LICENSE("@LICENCE@");
"""


def module_source(version: str, module: bytes) -> dict[str, File]:
    """/usr/src/nvidia-VERSION: source that a machine with headers builds, and, for a container, an object file."""
    is_open = b"Dual MIT/GPL" in module
    conf = f'PACKAGE_NAME="nvidia"\nPACKAGE_VERSION="{version}"\nAUTOINSTALL="yes"\n'
    conf += 'MAKE[0]="make -C $kernel_source_dir M=$dkms_tree/$module/$module_version/build modules"\n'
    for number, name in enumerate(("nvidia", "nvidia-uvm")):
        conf += f'BUILT_MODULE_NAME[{number}]="{name}"\nDEST_MODULE_LOCATION[{number}]="/updates/dkms"\n'
    source = f"usr/src/nvidia-{version}"
    kind = "Open Kernel Module for x86_64" if is_open else "x86_64 Kernel Module"

    def code(text: str) -> File:
        text = text.replace("@LICENCE@", "Dual MIT/GPL" if is_open else "NVIDIA").replace("@KIND@", kind)
        return File(filled(text, version))

    return {
        f"{source}/dkms.conf": File(conf),
        f"{source}/Makefile": File("obj-m := nvidia.o nvidia-uvm.o\n"),
        f"{source}/nvidia.c": code(MODULE_C),
        f"{source}/nvidia-uvm.c": code(UVM_C),
        f"{source}/nvidia.ko": File(module),
        f"{source}/nvidia-uvm.ko": File(module),
    }


def firmware(version: str, root: str = "lib/firmware") -> dict[str, File]:
    """The firmware's place."""
    return {f"{root}/nvidia/{version}/gsp_tu10x.bin": File("fixture\n")}


def smi(version: str) -> dict[str, File]:
    """nvidia-smi and the modprobe helper."""
    return {
        "usr/bin/nvidia-smi": script(filled(SMI, version)),
        "usr/bin/nvidia-modprobe": script("#!/bin/sh\n# FIXTURE\nexit 1\n"),
    }


def persistenced(version: str) -> dict[str, File]:
    """The persistence daemon and its unit."""
    return {
        "usr/bin/nvidia-persistenced": script(filled(PERSISTENCED, version)),
        "usr/lib/systemd/system/nvidia-persistenced.service": File(PERSISTENCED_UNIT),
    }


def fabricmanager(version: str) -> dict[str, File]:
    """The fabric manager and its unit."""
    return {
        "usr/bin/nv-fabricmanager": script(filled(FABRICMANAGER, version)),
        "usr/share/nvidia/nvswitch/fabricmanager.cfg": File("# FIXTURE\nDAEMONIZE=1\n"),
        "usr/lib/systemd/system/nvidia-fabricmanager.service": File(FABRICMANAGER_UNIT),
    }


# --- CUDA ------------------------------------------------------------------------------------------------------------

# The version that nvcc and version.json of a release tell, and the build that nvcc prints.
TOOLKITS = {
    "12.0.0": ("12.0.76", "cuda_12.0.r12.0/compiler.31968024_0"),
    "12.0.1": ("12.0.140", "cuda_12.0.r12.0/compiler.32267302_0"),
    "12.4.0": ("12.4.99", "cuda_12.4.r12.4/compiler.33961263_0"),
    "12.4.1": ("12.4.131", "cuda_12.4.r12.4/compiler.34097967_0"),
    "13.0.2": ("13.0.88", "cuda_13.0.r13.0/compiler.36424714_0"),
}
NVCC = r"""#!/bin/sh
# FIXTURE: nvcc. Says its version as the real one does and compiles a .cu file that needs no card with the host's C++
# compiler: what is inside <<< >>> runs once, on the host.
set -e
case " $* " in
    *" --version "*|*" -V "*)
        printf 'nvcc: NVIDIA (R) Cuda compiler driver\nCopyright (c) 2005-2023 NVIDIA Corporation\n'
        printf 'Built on Fri_Jan__6_16:45:21_PST_2023\nCuda compilation tools, release %s, V%s\nBuild %s\n' @MINOR@ @NVCC@ @BUILD@
        exit 0 ;;
esac
here=$(dirname "$(readlink -f "$0")")
compiler=$(command -v g++ || command -v c++) || { echo "nvcc fatal   : Failed to preprocess host compiler properties." >&2; exit 1; }
out=a.out source= flags=
while [ $# -gt 0 ]; do
    case "$1" in
        -o) out=$2; shift ;;
        --output-file=*) out=${1#*=} ;;
        -gencode|-arch|--gpu-architecture|-ccbin) shift ;;
        -O*|-g|-std=*|-I*|-L*|-l*) flags="$flags $1" ;;
        -*) ;;
        *) source=$1 ;;
    esac
    shift
done
[ -r "$source" ] || { echo "nvcc fatal   : No input files specified; use option --help for more information" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed -E 's/<<<[^>]*>>>//g' "$source" > "$work/source.cpp"
"$compiler" -x c++ -include "$here/../include/cuda_runtime.h" -I"$here/../include" $flags -o "$out" "$work/source.cpp"
"""
CUDA_RUNTIME_H = """/* FIXTURE: enough of the runtime's header to compile a small program for the host. */
#pragma once
#include <cstddef>
#include <cstdlib>
#include <cstring>
#define CUDART_VERSION @CUDART@
#define __global__
#define __device__
#define __host__
typedef int cudaError_t;
enum { cudaSuccess = 0, cudaErrorNoDevice = 100 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
static inline cudaError_t cudaRuntimeGetVersion(int *v) { *v = CUDART_VERSION; return cudaSuccess; }
static inline cudaError_t cudaGetDeviceCount(int *n) { *n = 0; return cudaErrorNoDevice; }
static inline cudaError_t cudaMalloc(void **p, size_t n) { *p = std::malloc(n); return cudaSuccess; }
static inline cudaError_t cudaFree(void *p) { std::free(p); return cudaSuccess; }
static inline cudaError_t cudaMemcpy(void *a, const void *b, size_t n, cudaMemcpyKind) { std::memcpy(a, b, n); return cudaSuccess; }
static inline cudaError_t cudaDeviceSynchronize(void) { return cudaSuccess; }
static inline const char *cudaGetErrorString(cudaError_t e) { return e ? "no CUDA-capable device is detected" : "no error"; }
"""


def toolkit(release: str, prefix: str = "") -> dict[str, File]:
    """A toolkit's tree below prefix (default /usr/local/cuda-MAJOR.MINOR), without the driver."""
    nvcc, build = TOOLKITS[release]
    major, minor, _patch = release.split(".")
    prefix = prefix or f"usr/local/cuda-{major}.{minor}"
    text = NVCC.replace("@MINOR@", f"{major}.{minor}").replace("@NVCC@", nvcc).replace("@BUILD@", build)
    cudart = f"{nvcc}"
    version = (
        '{\n   "cuda" : {\n      "name" : "CUDA SDK",\n      "version" : "%s"\n   },\n'
        '   "cuda_cudart" : {\n      "name" : "CUDA Runtime (cudart)",\n      "version" : "%s"\n   },\n'
        '   "cuda_nvcc" : {\n      "name" : "CUDA NVCC",\n      "version" : "%s"\n   }\n}\n' % (release, cudart, nvcc)
    )
    library = f"{prefix}/targets/x86_64-linux/lib"
    return {
        f"{prefix}/version.json": File(version),
        f"{prefix}/bin/nvcc": script(text),
        f"{prefix}/bin/ptxas": script("#!/bin/sh\n# FIXTURE\nexit 1\n"),
        f"{prefix}/include": link("targets/x86_64-linux/include"),
        f"{prefix}/lib64": link("targets/x86_64-linux/lib"),
        f"{prefix}/targets/x86_64-linux/include/cuda_runtime.h": File(
            CUDA_RUNTIME_H.replace("@CUDART@", f"{major}0{minor}0")
        ),
        f"{prefix}/targets/x86_64-linux/include/cuda.h": File(
            f"/* FIXTURE */\n#define CUDA_VERSION {major}0{minor}0\n"
        ),
        f"{library}/libcudart.so.{cudart}": File("fixture\n"),
        f"{library}/libcudart.so.{major}": link(f"libcudart.so.{cudart}"),
        f"{library}/libcudart.so": link(f"libcudart.so.{major}"),
        f"{library}/stubs/libcuda.so": File("fixture\n"),
    }
