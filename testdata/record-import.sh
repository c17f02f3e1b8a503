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
# 2: the repository's core.mode
ostree config --repo="$REPO" get core.mode >/dev/null || missed 2
# 2 took TIME
# 3: which ostree this is
ostree --version >/dev/null || missed 3
# 3 took TIME
# 4: a fresh repository where REPO is none
[ -e "$REPO"/config ] || ostree init --repo="$REPO" --mode=bare-user
# 5: make a repository
ostree init --repo="$WORK"/stage --mode=bare-user
# 5 took TIME
# 6: the blob's digest holds
echo "369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5  $BLOBS/369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5" | sha256sum -c -
# 7: commit layer sha256:369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5
[ ! -e "$BLOBS"/369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5.tar.zst ] || { zstd -dc "$BLOBS"/369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5.tar.zst >"$WORK"/369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5.tar; ostree commit --repo="$WORK"/stage --parent=none --timestamp=@0 --fsync=false --branch=ociimage/369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5 --add-metadata-string=docker.size=5120 --add-metadata-string=docker.uncompressed_size=5120 --add-metadata-string=docker.uncompressed_digest=sha256:369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5 --add-metadata-string=tarsplit.output=H4sIAAAJbogA/+yYW2+bMBTH3/MpJr/sBa1cdmmQ+nBaRy3dfCSmZGujvVDIKBolTKQ1MOW7Tx1kOJuJdotMNP9eiOPkOFL8/5/LF7Kq8gVxbYPkQZUug4i45E1yDMqhwBkFB6czYM1rzqB9UuDtvrCemDj1TKxDju0+1mAxgBj9Lqw6Tq3QeXsbxsDZxeXDjTOIH3XonBCD5MsiWSXLjLjmerS50JZBsuBuQVzy7IgIlzu7T1PxK9Z6JNXAvDtDHf9IA8i1Bv4bDdgyDUS7JOD0SeBsnEdnUe2dT17P79JiruLfaq63jdT/lTRQSiRQMho6zIeYiXGVodPA3tPAc6kEjpLV0+JJ8CH7mKQLYpAiqZs80Zm+V/ZEfNEjkc2nNZpBc+4/hM67XHFV82jVJtYzq7V1zmhX3WO8ea99+lAinVX4aN/UbyqfKXBWX4NHhagKia7QvL7ygNHT6sYem92O5k/Zquhfyq28uE+iHgv//D3QdlJ4pS1cW/ghW/jFIOrXb9aMdeh0Fg7SAU27/tnCaVghZeDRy09CXGVoC9+zhR/LLLzY1ZCOe6w6EI5Qxu81pLK5ZMnoxEaAmL0fQlWmG9K9N6SWdDB5u0sDVt9gUjxFo9FoNH/LyQ+Gba9HXwcA8pIZrxsdAAA= --tree=tar=- <"$WORK"/369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5.tar; rm "$WORK"/369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5.tar; }
# 7 took TIME
# 8: a tree to commit
mkdir -p "$WORK"/tree-1
printf %s '{"architecture":"riscv64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5"]}}' >"$WORK"/tree-1/content
# 10: readable whatever the umask
chmod -R u=rwX,go=rX "$WORK"/tree-1
# 11: commit blob sha256:0dd6f96f5bba2633184a33dc6c60ef935113ecf7a40e32f3d549acefc6e47374
ostree commit --repo="$WORK"/stage --parent=none --timestamp=@0 --fsync=false --branch=ociimage/0dd6f96f5bba2633184a33dc6c60ef935113ecf7a40e32f3d549acefc6e47374 --add-metadata-string=docker.size=165 --tree=dir="$WORK"/tree-1 --owner-uid=0 --owner-gid=0 --no-xattrs
# 11 took TIME
# 12: the tree is committed
rm -rf "$WORK"/tree-1
# 13: the refs of the repository
ostree refs --repo="$REPO" >/dev/null || missed 13
# 13 took TIME
# 14: a tree to commit
mkdir -p "$WORK"/tree-2
printf %s '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:0dd6f96f5bba2633184a33dc6c60ef935113ecf7a40e32f3d549acefc6e47374","size":165},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5","size":5120}]}' >"$WORK"/tree-2/manifest.json
# 16: readable whatever the umask
chmod -R u=rwX,go=rX "$WORK"/tree-2
# 17: commit image tiny:latest
ostree commit --repo="$WORK"/stage --parent=none --timestamp=@0 --fsync=false --branch=ociimage/tiny_3Alatest '--add-metadata-string=docker.manifest={"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:0dd6f96f5bba2633184a33dc6c60ef935113ecf7a40e32f3d549acefc6e47374","size":165},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5","size":5120}]}' --add-metadata-string=docker.digest=sha256:78d683e40dc60ab8b05373c16fbf4a7bf2c0ecaba22f34649c97dd8ec328f783 --add-metadata-string=signatures=0 --add-metadata-string=docker.architecture=riscv64 --add-metadata-string=docker.os=linux --tree=dir="$WORK"/tree-2 --owner-uid=0 --owner-gid=0 --no-xattrs
# 17 took TIME
# 18: the tree is committed
rm -rf "$WORK"/tree-2
# 19: publish the blobs
ostree pull-local --repo="$REPO" --disable-fsync "$WORK"/stage ociimage/0dd6f96f5bba2633184a33dc6c60ef935113ecf7a40e32f3d549acefc6e47374 ociimage/369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5 "$(ostree rev-parse --repo="$WORK"/stage ociimage/tiny_3Alatest)"
# 19 took TIME
# 20: which of these refs there are
ostree refs --repo="$REPO" --list ociimage/0dd6f96f5bba2633184a33dc6c60ef935113ecf7a40e32f3d549acefc6e47374 ociimage/369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5 >/dev/null || missed 20
# 20 took TIME
# 21: publish the image
ostree pull-local --repo="$REPO" --disable-fsync "$WORK"/stage ociimage/tiny_3Alatest
# 21 took TIME
checked
ENDED=yes
