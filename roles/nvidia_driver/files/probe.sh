# What the decision needs to know besides gpu_facts. Reads only; answered in sections, one fact per line.
# Arguments: the folder that a runfile would use, then the files that are this role's.
export LC_ALL=C
tmpdir=$1
shift
kernel=$(uname -r)

echo "== packages"
if command -v dpkg-query >/dev/null; then
    dpkg-query -W -f '${db:Status-Abbrev}|${Package}|${Version}\n' '*nvidia*' 'libcuda*' 'cuda-drivers*' 'linux-image*' \
        'linux-headers*' dkms 2>/dev/null | tr -d ' ' | tr '|' ' '
elif command -v pacman >/dev/null && [ ! -x /usr/bin/rpm ]; then
    pacman -Q 2>/dev/null | grep -E 'nvidia|cuda|^linux|^dkms' | sed 's/^/ii /'
elif command -v rpm >/dev/null; then
    rpm -qa --qf 'ii %{NAME} %|EPOCH?{%{EPOCH}:}:{}|%{VERSION}-%{RELEASE}\n' '*nvidia*' 'cuda-drivers*' 'kernel*' dkms
fi

echo "== own"
for file in "$@"; do [ -e "$file" ] && echo "$file"; done

echo "== recorded"
cat /var/lib/gpufleet/nvidia_driver/installed_packages 2>/dev/null

# The role cuda may take its toolkits from the same repository.
echo "== cuda_repository"
grep -l 'method=repository' /var/lib/gpufleet/cuda/*.toolkit 2>/dev/null

echo "== uninstaller"
[ -x /usr/bin/nvidia-uninstall ] && { [ -x /usr/bin/dpkg ] && dpkg -S /usr/bin/nvidia-uninstall >/dev/null 2>&1 || echo /usr/bin/nvidia-uninstall; }

# The runfile is kept until its installer has ended well: a driver that nothing else explains is half of that one.
echo "== runfile_started"
[ -d "$tmpdir/gpufleet-nvidia-driver" ] && echo yes

# The database of NVIDIA's installer: its uninstaller comes late, this comes first.
echo "== runfile_database"
[ -s /var/lib/nvidia/log ] && echo yes

# The persistence daemon and the fabric manager are the driver's own; they are stopped before a change.
echo "== users"
find /proc/[0-9]*/fd -maxdepth 1 -lname '/dev/nvidia*' 2>/dev/null | cut -d/ -f3 | sort -un | while read -r pid; do
    name=$(cat "/proc/$pid/comm" 2>/dev/null)
    case $name in nvidia-persiste*|nv-fabricmanage*|'') ;; *) echo "$pid $name" ;; esac
done

echo "== display"
systemctl is-active display-manager.service 2>/dev/null | grep -x active

echo "== initramfs"
for tool in update-initramfs dracut mkinitcpio; do command -v "$tool" >/dev/null && echo "$tool"; done

echo "== container"
systemd-detect-virt --container 2>/dev/null | grep -vx none

echo "== machine_id"
cat /etc/machine-id 2>/dev/null

echo "== boot_id"
cat /proc/sys/kernel/random/boot_id 2>/dev/null

# For which driver the role rebooted the node last, if that did not help
echo "== rebooted"
cat /var/lib/gpufleet/nvidia_driver/rebooted_for 2>/dev/null

echo "== proc_version"
cat /proc/version

echo "== boot"
ls -d /boot/vmlinuz-* 2>/dev/null

echo "== modules"
for folder in /lib/modules/*; do [ -e "$folder/build/Makefile" ] && echo "${folder##*/}"; done

echo "== disk"
for path in /usr /var /boot "$tmpdir"; do [ -d "$path" ] && df -Pk "$path" | awk -v p="$path" 'NR == 2 {print p, $4}'; done

echo "== tmp_noexec"
findmnt -n -o OPTIONS --target "$tmpdir" 2>/dev/null | tr ',' '\n' | grep -x noexec

if command -v apt-get >/dev/null && [ -d /etc/apt ]; then
    echo "== headers_candidate"
    # Without its cache files: apt-cache would write them, and a look changes nothing.
    if [ -e "/lib/modules/$kernel/build/Makefile" ]; then
        echo installed
    else
        apt-cache -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= policy "linux-headers-$kernel" 2>/dev/null |
            awk '/Candidate:/ && $2 != "(none)" {print $2}'
    fi
    echo "== build_missing"
    tools="dkms gcc make libc6-dev kmod $(sed -n 's/.*[^a-z]\(gcc-[0-9]\{1,\}\).*/\1/p' /proc/version)"
    there=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' $tools 2>/dev/null | sed -n 's/^installed //p')
    lacking=$(for tool in $tools; do echo "$there" | grep -qx "$tool" || echo "$tool"; done)
    [ -z "$lacking" ] || offered=$(apt-cache -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= policy $lacking 2>/dev/null |
        awk '/^[^ ]/ {sub(/:$/, ""); name = $1} /Candidate:/ && $2 != "(none)" {print name}')
    for tool in $lacking; do echo "$offered" | grep -qx "$tool" || echo "$tool"; done
    echo "== audit"
    dpkg --audit 2>/dev/null | head -n 5
    echo "== dpkg_updates"
    ls /var/lib/dpkg/updates 2>/dev/null
    echo "== targets"
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
        [ -r "$file" ] && { echo "|# $file"; sed 's/^/|/' "$file"; echo "|"; }
    done
elif command -v dnf >/dev/null; then
    echo "== headers_candidate"
    if [ -e "/lib/modules/$kernel/build/Makefile" ]; then
        echo installed
    else # from the metadata that is there; the role fetches it anew when this finds nothing
        dnf -q -C list "kernel-devel-$kernel" 2>/dev/null | awk '$1 ~ /^kernel-devel\./ {print $2}'
    fi
    echo "== build_missing" # without dkms: EPEL has it, which the role brings
    lacking=$(for tool in gcc make kmod; do rpm -q --whatprovides "$tool" >/dev/null 2>&1 || echo "$tool"; done)
    [ -z "$lacking" ] || offered=$(dnf -q -C repoquery --available --queryformat '%{name}\n' $lacking 2>/dev/null)
    for tool in $lacking; do echo "$offered" | grep -qx "$tool" || echo "$tool"; done
    echo "== dnf_modules"
    ls /usr/lib/python3*/site-packages/dnf/cli/commands/module.py /usr/lib/python3/dist-packages/dnf/cli/commands/module.py 2>/dev/null
elif command -v pacman >/dev/null; then
    echo "== headers_candidate"
    # Arch has the headers of one kernel: they help when that is the running one (6.9.3-arch1-1 is 6.9.3.arch1-1 to pacman).
    if [ -e "/lib/modules/$kernel/build/Makefile" ]; then
        echo installed
    else
        for headers in linux-headers linux-lts-headers linux-zen-headers linux-hardened-headers; do
            version=$(pacman -Sp --print-format %v "$headers" 2>/dev/null | tail -n 1)
            [ "$(echo "$version" | tr - .)" = "$(echo "$kernel" | sed 's/-\(lts\|zen\|hardened\)$//' | tr - .)" ] && echo "$version"
        done
    fi
    echo "== offered" # Arch has one branch at a time
    pacman -Si nvidia-utils 2>/dev/null | awk '$1 == "Version" {print $3; exit}'
    echo "== build_missing" # nothing is known of a machine without lists, which the role fetches
    if ls /var/lib/pacman/sync/*.db >/dev/null 2>&1; then
        for tool in $(pacman -T dkms gcc make kmod); do pacman -Si "$tool" >/dev/null 2>&1 || echo "$tool"; done
    fi
fi
exit 0
