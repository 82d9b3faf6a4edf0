# Takes away what NVIDIA's installer put in place when it ended before its uninstaller was there, and gives back what it had set
# aside; prints each path. Argument: the folder of its database (/var/lib/nvidia).
#
# "log" there (nvidia-installer, backup.c) is a line with the version, a line of words, then entries:
#   0: PATH, its target                    a link that it made
#   1: PATH, a checksum                    a file that it put there
#   2: PATH, its target, mode uid gid      a link that was there before
#   100: PATH, checksum mode uid gid       a file that was there before, kept beside the log under that number (or a higher one)
# "dirs" are the folders that it made. What is a package's, and a link that leads elsewhere, is somebody else's by now.
export LC_ALL=C
base=$1
[ -r "$base/log" ] || exit 0
version=$(sed -n '1s/.*(\([0-9.]*\)).*/\1/p; 1q' "$base/log")

owned() {
    { dpkg -S "$1" || rpm -qf "$1" || pacman -Qqo "$1"; } >/dev/null 2>&1
}

# One line per entry: number, path, what follows; tabs between
entries=$(awk 'NR <= 2 { next }
    rest { more = more "\t" $0; if (--rest == 0) print head more; next }
    match($0, /^[0-9]+: /) { number = substr($0, 1, RLENGTH - 2) + 0; head = number "\t" substr($0, RLENGTH + 1); more = ""
        rest = number == 2 ? 2 : 1; next }
    { exit }' "$base/log")
tab=$(printf '\t')

if [ -n "$version" ] && dkms status -m nvidia -v "$version" 2>/dev/null | grep -q .; then
    dkms remove -m nvidia -v "$version" --all >/dev/null 2>&1 && echo "dkms nvidia/$version"
fi

printf '%s\n' "$entries" | while IFS=$tab read -r number path more _; do
    case $number in
        0) [ -L "$path" ] && [ "$(readlink "$path")" = "$more" ] || continue ;;
        1) [ -f "$path" ] && [ ! -L "$path" ] || continue ;;
        *) continue ;;
    esac
    owned "$path" || { rm -f "$path" && echo "$path"; }
done

printf '%s\n' "$entries" | while IFS=$tab read -r number path more owner; do
    [ -n "$path" ] && [ ! -e "$path" ] && [ ! -L "$path" ] || continue
    case $number in
        0|1) continue ;;
        2)
            # shellcheck disable=SC2086
            set -- $owner
            ln -s "$more" "$path" && chown -h "$2:$3" "$path" && echo "$path" ;;
        *)
            # shellcheck disable=SC2086
            set -- $more
            # the mode is the whole st_mode: the last four digits are the permissions
            mode=$(printf '%s' "$2" | sed 's/.*\(....\)$/\1/')
            [ -f "$base/$number" ] && mv "$base/$number" "$path" && chown "$3:$4" "$path" && chmod "$mode" "$path" && echo "$path" ;;
    esac
done

if [ -r "$base/dirs" ]; then
    # A folder stands after those in it. The database's own is among them; it goes last.
    while read -r folder; do
        [ -d "$folder" ] && rmdir "$folder" 2>/dev/null && echo "$folder"
    done <"$base/dirs"
fi
rm -rf "$base" && echo "$base"
ldconfig
depmod -a 2>/dev/null
exit 0
