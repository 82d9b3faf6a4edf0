# torch's local CPU build is for CPython 3.11: Debian 12's, beside the distribution's own 3.13.
set -eu
cd /etc/apt
sed -n '/^$/q; s/trixie trixie-updates/bookworm/; p' sources.list.d/debian.sources > sources.list.d/bookworm.sources
printf 'Package: *\nPin: release n=bookworm\nPin-Priority: 1\n' > preferences.d/bookworm
apt-get update -q
apt-get install -y -q --no-install-recommends python3.11
# Debian 12's python3.11-venv wants its python3-distutils, which Debian 13's python3 forbids and `venv` does not need: only
# its files (the module ensurepip) are taken.
cd /tmp
apt-get download -q python3.11-venv
dpkg-deb --extract python3.11-venv_*.deb /
rm python3.11-venv_*.deb /etc/apt/sources.list.d/bookworm.sources /etc/apt/preferences.d/bookworm
python3.11 -m venv /tmp/try && /tmp/try/bin/pip --version
rm -r /tmp/try
