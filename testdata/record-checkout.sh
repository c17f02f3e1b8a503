#!/bin/sh
# The commands that one run of ostree-image 0.1.0 ran.
#
# Run them again with: sh commands.sh. That needs ostree, tar, zstd and the decompressors of the image's layers.
#   REPO=/other/repo sh commands.sh   runs them against another repository, or a copy of the original
#   WORK=/some/dir sh commands.sh     works in that directory, which stays
# Without them REPO is a fresh repository in WORK, and WORK a fresh directory. The file refs says what must come of it.
#
# Each command has a number and a comment on what it is for, and how long it took. "Taken back" are commands whose
# stream is not there: the run ended them, and began anew or failed. Commands that only read may fail where they did when
# they were recorded.
set -eu
NL=$(printf '\nx'); NL=${NL%x}
ENDED=
MISSED=
KNOWN=
missed() { MISSED="$MISSED $1"; }
checked() {
    for n in $MISSED; do
        case " $KNOWN " in *" $n "*) ;; *) echo "command $n only reads, and fails now though it did not when it was recorded" >&2; ENDED=no ;; esac
    done
    [ "$ENDED" != no ]
}
trap '[ $? -ne 0 ] || [ "$ENDED" ] || { echo "the record ends here: the run was cut off" >&2; exit 1; }' EXIT
RECORD=$(cd "$(dirname "$0")" && pwd)
BLOBS=$RECORD/blobs
WORK=${WORK:-$(mktemp -d)}
REPO=${REPO:-$WORK/repo}
OUT=${OUT:-$WORK/out}
echo "working in $WORK, on the repository $REPO" >&2
# 0: the repository, with what the run read from the original
[ -e "$REPO"/config ] || ostree init --repo="$REPO" --mode=bare-user
[ ! -d "$RECORD"/repo ] || ostree pull-local --repo="$REPO" --disable-verify-bindings "$RECORD"/repo
[ ! -e "$RECORD"/remotes ] || while read -r c r; do ostree refs --repo="$REPO" --force --create="$r" "$c"; done <"$RECORD"/remotes
# 1: the refs of the repository
ostree refs --repo="$REPO" >/dev/null || missed 1
# 1 took TIME
# 2: all that ociimage/tiny_3Alatest says
ostree show --repo="$REPO" --raw ociimage/tiny_3Alatest >/dev/null || missed 2
# 2 took TIME
# 3: the repository's core.mode
ostree config --repo="$REPO" get core.mode >/dev/null || missed 3
# 3 took TIME
# 4: all that ociimage/369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5 says
ostree show --repo="$REPO" --raw ociimage/369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5 >/dev/null || missed 4
# 4 took TIME
# 5: read 1 files of ociimage/0dd6f96f5bba2633184a33dc6c60ef935113ecf7a40e32f3d549acefc6e47374
ostree cat --repo="$REPO" ociimage/0dd6f96f5bba2633184a33dc6c60ef935113ecf7a40e32f3d549acefc6e47374 /content >/dev/null || missed 5
# 5 took TIME
# 6: check out ociimage/369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5
ostree checkout --repo="$REPO" --force-copy ociimage/369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5 "$WORK"/root
# 6 took TIME
# 7: apply layer sha256:369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5
ROOT="$WORK"/root LAYER="$WORK"/root sh "$BLOBS"/layer-0.sh
# 8: set the times
ROOT="$WORK"/root sh "$BLOBS"/times.sh
# 9: the tree is finished
rmdir "$OUT" 2>/dev/null || : ; mv "$WORK"/root "$OUT"
checked
ENDED=yes
