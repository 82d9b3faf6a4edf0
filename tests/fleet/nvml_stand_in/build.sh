#!/bin/sh
# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Builds the NVML stand-in: build.sh OUTDIR [PROFILE ...] makes OUTDIR/<profile>/ for each profile (default: all).
# What is in there and where it goes in a node: README.md beside this file. Needs gcc and python3.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 1 ] || { echo "usage: build.sh OUTDIR [PROFILE ...]" >&2; exit 2; }
out=$1; shift
mkdir -p "$out"
out=$(cd "$out" && pwd)
[ $# -ge 1 ] || set -- $(cd "$here/profiles" && ls *.profile | sed 's/\.profile$//')

library=$(mktemp "$out/.library.XXXXXX")
trap 'rm -f "$library"' EXIT
"${CC:-gcc}" -Wall -Wextra -O1 -shared -fPIC -Wl,-soname,libnvidia-ml.so.1 -o "$library" "$here/nvml_stand_in.c"

for profile in "$@"; do
    source="$here/profiles/$profile.profile"
    [ -f "$source" ] || { echo "no profile $profile in $here/profiles" >&2; exit 2; }
    # The file's name carries the library's version, as the driver's packages do it.
    version=$(sed -n 's/^library_version *= *//p' "$source" | head -n 1)
    node="$out/$profile"
    rm -rf "$node"
    mkdir -p "$node/lib" "$node/bin"
    install -m 0644 "$source" "$node/profile"
    install -m 0755 "$library" "$node/lib/libnvidia-ml.so.$version"
    ln -s "libnvidia-ml.so.$version" "$node/lib/libnvidia-ml.so.1"
    install -m 0755 "$here/nvidia_smi_stand_in.py" "$node/bin/nvidia-smi"
    python3 "$here/make_tree.py" "$source" "$node"
done
