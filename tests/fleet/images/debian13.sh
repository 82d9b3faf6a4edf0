# torch's local CPU build is for CPython 3.11: Debian 12's, beside the distribution's own 3.13.
set -eu
cd /etc/apt
sed -n '/^$/q; s/trixie trixie-updates/bookworm/; p' sources.list.d/debian.sources > sources.list.d/bookworm.sources
printf 'Package: *\nPin: release n=bookworm\nPin-Priority: 1\n' > preferences.d/bookworm
apt-get update -q
apt-get install -y -q --no-install-recommends python3.11 python3.11-venv
rm sources.list.d/bookworm.sources preferences.d/bookworm
