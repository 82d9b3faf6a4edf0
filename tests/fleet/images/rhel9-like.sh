# The root is Debian's; what a RHEL machine would have in its rpm database of it is put there by name and version.
set -eu
mkdir -p /var/lib/rpm /etc/pki/rpm-gpg /etc/pki/tls/certs /tmp/rpm
rpm --initdb
for name in bash ca-certificates coreutils curl dbus dnf iproute openssh-server openssl python3 sudo systemd tar; do
    case "$name" in iproute) debian=iproute2 ;; *) debian=$name ;; esac
    version=$(dpkg-query -W -f '${source:Upstream-Version}' "$debian" | tr '~+-' '...')
    printf 'Name: %s\nVersion: %s\nRelease: 1.el9\nSummary: part of the image\nLicense: as upstream\nAutoReqProv: no\n%%description\nPart of the image.\n%%files\n' \
        "$name" "$version" > /tmp/rpm/$name.spec
    rpmbuild -bb --quiet --target x86_64 --define '_topdir /tmp/rpm' --define '_rpmdir /tmp/rpm/out' /tmp/rpm/$name.spec
done
rpm --install --justdb $(find /tmp/rpm/out -name '*.rpm')
rm -rf /tmp/rpm
ln -s /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt
groupadd -f -r wheel
