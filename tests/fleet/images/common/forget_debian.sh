#!/bin/sh
# Takes Debian's package managers away, so that nothing but the distribution's own can be found.
set -eu
rm -rf /etc/apt /var/lib/apt /var/cache/apt /var/lib/dpkg /usr/lib/apt /usr/lib/dpkg /usr/share/dpkg /etc/dpkg \
    /usr/lib/python3/dist-packages/apt* /usr/lib/python3/dist-packages/python_apt*
find /usr/bin /usr/sbin -name 'apt' -o -name 'apt-*' -o -name 'dpkg' -o -name 'dpkg-*' | xargs rm -f
rm -f /etc/systemd/system/apt-daily* /usr/lib/systemd/system/apt-daily* /usr/lib/systemd/system/dpkg-db-backup*
