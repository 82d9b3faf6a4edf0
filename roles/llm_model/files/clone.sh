#!/bin/sh
# clone.sh DEST COMMIT keep|overwrite URL...
# Brings the clone DEST to COMMIT (40 hex digits) from the first URL that has it. A new clone appears under its name only
# when it is complete; one that is there is not touched unless the commit was fetched, nor, with "keep", if it has changes.
set -u
dest=$1 commit=$2 mode=$3
shift 3

die() { echo "$*" >&2; exit 1; }

command -v git >/dev/null 2>&1 || die "git is missing on the node: run the role gpufleet.llm.git, or install it."

if [ -e "$dest/.git" ]; then
    place=$dest
    if [ "$mode" = keep ] && [ -n "$(git -C "$dest" status --porcelain 2>/dev/null)" ]; then
        die "it has changes that are in no commit; they are kept. Set llm_model_overwrite_dirty: true to lose them."
    fi
elif [ -e "$dest" ] && [ -n "$(ls -A "$dest" 2>/dev/null)" ]; then
    die "$dest is there, is no clone and is not empty; move it away."
else
    place=$dest.new
    rm -rf "$place"
    git init -q "$place" || die "git init failed"
fi

said="" missing=""
for url in "$@"; do
    if answer=$(git -C "$place" fetch -q --depth 1 --no-tags "$url" "$commit" 2>&1); then
        got=$(git -C "$place" rev-parse FETCH_HEAD)
        if [ "$got" = "$commit" ]; then
            missing="" said="" found=$url
            break
        fi
        answer="it answers with the commit $got"
    fi
    case $answer in
        *"not our ref"* | *"couldn't find remote ref"* | *"unadvertised object"*) missing="$missing $url" ;;
    esac
    said="$said
  $url: $answer"
done

if [ -z "${found:-}" ]; then
    [ "$place" = "$dest" ] || rm -rf "$place"
    [ -z "$missing" ] || die "there is no such commit in$missing (or the server does not give it by its name). Look the 40 digits up in the repository's history.$said"
    die "no place could be reached:$said"
fi

if [ "$mode" = overwrite ]; then
    git -C "$place" checkout -q --force --detach "$commit" && git -C "$place" clean -q -fdx || die "git checkout failed"
else
    git -C "$place" checkout -q --detach "$commit" || die "git checkout failed"
fi
git -C "$place" remote remove origin 2>/dev/null
git -C "$place" remote add origin "$found"
if [ "$place" != "$dest" ]; then
    rmdir "$dest" 2>/dev/null
    mv "$place" "$dest" || die "cannot move $place to $dest"
fi
[ "$(git -C "$dest" rev-parse HEAD)" = "$commit" ] || die "HEAD is not $commit after the checkout"
