# The root is Debian's; what an Arch machine would have in pacman's database of it is put there by name and version.
set -eu
local_db=/var/lib/pacman/local
mkdir -p $local_db /var/lib/pacman/sync /var/cache/pacman/pkg /etc/pacman.d
echo 9 > $local_db/ALPM_DB_VERSION
for name in bash ca-certificates coreutils curl dbus iproute2 openssh openssl pacman python sudo systemd tar; do
    case "$name" in
        openssh) debian=openssh-server ;; python) debian=python3 ;; pacman) debian=pacman-package-manager ;; *) debian=$name ;;
    esac
    version=$(dpkg-query -W -f '${source:Upstream-Version}' "$debian" | tr '~+-' '...')-1
    mkdir "$local_db/$name-$version"
    printf '%%NAME%%\n%s\n\n%%VERSION%%\n%s\n\n%%BASE%%\n%s\n\n%%DESC%%\nPart of the image\n\n%%ARCH%%\nx86_64\n\n%%BUILDDATE%%\n1700000000\n\n%%INSTALLDATE%%\n1700000000\n\n%%PACKAGER%%\ngpufleet fixture\n\n%%SIZE%%\n0\n\n%%VALIDATION%%\nnone\n\n' \
        "$name" "$version" "$name" > "$local_db/$name-$version/desc"
    printf '%%FILES%%\n' > "$local_db/$name-$version/files"
done
groupadd -f -r wheel
