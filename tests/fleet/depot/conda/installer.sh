#!/bin/sh
# A fixture of the gpufleet.llm test fleet: @NAME@ @VERSION@ in shape, with a real conda @CONDA@ inside.
# It takes the options of the installers that conda's constructor makes.
set -eu
THIS_PROG="$(basename "$0")"
PREFIX="@DEFAULT_PREFIX@"
BATCH=0 FORCE=0 UPDATE=0

usage() {
    cat <<USAGE
usage: $THIS_PROG [options]

Installs @NAME@ @VERSION@
-b           run install in batch mode (without manual intervention),
             it is expected the license terms (if any) are agreed upon
-f           no error if install prefix already exists
-h           print this help message and exit
-p PREFIX    install prefix, defaults to $PREFIX, must not contain spaces.
-s           skip running pre/post-link/install scripts
-u           update an existing installation
-k           keep the package cache
-t           run package tests after installation (there are none here)
USAGE
}

while getopts "bifhkp:sut" option; do
    case "$option" in
        b) BATCH=1 ;;
        i) BATCH=0 ;;
        f) FORCE=1 ;;
        p) PREFIX="$OPTARG" ;;
        u) FORCE=1 UPDATE=1 ;;
        k | s | t) ;;
        h) usage; exit 0 ;;
        *) printf "ERROR: did not recognize option, please try -h\n"; exit 1 ;;
    esac
done

if [ "$BATCH" = 0 ]; then
    printf "Welcome to @NAME@ @VERSION@\n\nDo you accept the license terms? [yes|no]\n>>> "
    read -r answer || answer=no
    if [ "$answer" != yes ] && [ "$answer" != y ]; then
        printf "The license agreement wasn't approved, aborting installation.\n"
        exit 2
    fi
fi
case "$PREFIX" in
    *[[:space:]]*) printf "ERROR: Cannot install into directories with spaces\n" >&2; exit 1 ;;
esac
if [ "$FORCE" = 0 ] && [ -e "$PREFIX" ]; then
    printf "ERROR: File or directory already exists: '%s'\n" "$PREFIX" >&2
    printf "If you want to update an existing installation, use the -u option.\n" >&2
    exit 1
elif [ "$FORCE" = 1 ] && [ -e "$PREFIX" ] && [ "$UPDATE" = 1 ]; then
    rm -rf "$PREFIX/conda-meta/"conda-[0-9]*.json "$PREFIX/lib/@PYLIB@/site-packages/conda"
fi
if [ ! -x /usr/bin/@PYLIB@ ]; then
    printf "ERROR: this fixture needs the node's own /usr/bin/@PYLIB@\n" >&2
    exit 1
fi
mkdir -p "$PREFIX"
PREFIX="$(cd "$PREFIX" && pwd)"
printf "PREFIX=%s\n" "$PREFIX"
sed '1,/^@@PAYLOAD@@$/d' "$0" | tar -xf - -C "$PREFIX" --no-same-owner
for file in bin/conda etc/profile.d/conda.sh; do
    sed -i "s|@PREFIX@|$PREFIX|g" "$PREFIX/$file"
done
"$PREFIX/bin/python" -c 'import conda, pycosat' || { printf "ERROR: the installed conda does not start\n" >&2; exit 1; }
printf "installation finished.\n"
exit 0
@@PAYLOAD@@
