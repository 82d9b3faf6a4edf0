# The root is Debian's; what a RHEL machine would have in its rpm database of it is put there by name and version.
set -eu
mkdir -p /var/lib/rpm /etc/pki/rpm-gpg /etc/pki/tls/certs /tmp/rpm
rpm --initdb
part() { # name version [tags of the spec file]
    { printf 'Name: %s\nVersion: %s\nRelease: 1.el9\nSummary: part of the image\nLicense: as upstream\nAutoReqProv: no\n' "$1" "$2"
      printf '%s\n%%description\nPart of the image.\n%%files\n' "${3:-}"; } > "/tmp/rpm/$1.spec"
    rpmbuild -bb --quiet --target x86_64 --define '_topdir /tmp/rpm' --define '_rpmdir /tmp/rpm/out' "/tmp/rpm/$1.spec"
}
for name in ca-certificates coreutils curl dbus dnf iproute openssh-server openssl python3 sudo systemd tar bash; do
    case "$name" in iproute) debian=iproute2 ;; *) debian=$name ;; esac
    part "$name" "$(dpkg-query -W -f '${source:Upstream-Version}' "$debian" | tr '~+-' '...')" \
        "$([ "$name" != bash ] || echo 'Provides: /bin/sh /usr/bin/sh')"
done
# What dnf reads $releasever from
part rocky-release 9.4 'Provides: redhat-release = 9.4, system-release = 9.4, system-release(releasever) = 9'
rpm --install --justdb $(find /tmp/rpm/out -name '*.rpm')
rm -rf /tmp/rpm
ln -s /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt
groupadd -f -r wheel
