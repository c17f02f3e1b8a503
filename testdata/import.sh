
# ostree-image VERSION, TIME
# Run it with: BLOBS=directory sh FILE. BLOBS holds what the commands read: the blobs, each named by the hex part of its
# digest, and the clean tar streams made of them, named HEX.tar. REPO is a fresh repository unless it is set.
set -eu
NL=$(printf '\nx'); NL=${NL%x}
WORK=${WORK:-$(mktemp -d)}
REPO=${REPO:-$WORK/repo}
BLOBS=${BLOBS:-.}
# 1: the refs of the repository
ostree refs --repo="$REPO" >/dev/null || :
# 2: the repository's core.mode
ostree config --repo="$REPO" get core.mode >/dev/null || :
# 3: which ostree this is
ostree --version >/dev/null || :
# 4: a fresh repository where REPO is none
[ -e "$REPO"/config ] || ostree init --repo="$REPO" --mode=archive
# 5: make a repository
ostree init --repo="$WORK"/stage --mode=archive
# 6: the blob's digest holds
echo "369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5  $BLOBS/369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5" | sha256sum -c -
# 7: commit layer sha256:369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5
ostree commit --repo="$WORK"/stage --parent=none --timestamp=@0 --fsync=false --branch=ociimage/369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5 --add-metadata-string=docker.size=5120 --add-metadata-string=docker.uncompressed_size=5120 --add-metadata-string=docker.uncompressed_digest=sha256:369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5 --add-metadata-string=tarsplit.output=H4sIAAAJbogA/+yYW2+bMBTH3/MpJr/sBa1cdmmQ+nBaRy3dfCSmZGujvVDIKBolTKQ1MOW7Tx1kOJuJdotMNP9eiOPkOFL8/5/LF7Kq8gVxbYPkQZUug4i45E1yDMqhwBkFB6czYM1rzqB9UuDtvrCemDj1TKxDju0+1mAxgBj9Lqw6Tq3QeXsbxsDZxeXDjTOIH3XonBCD5MsiWSXLjLjmerS50JZBsuBuQVzy7IgIlzu7T1PxK9Z6JNXAvDtDHf9IA8i1Bv4bDdgyDUS7JOD0SeBsnEdnUe2dT17P79JiruLfaq63jdT/lTRQSiRQMho6zIeYiXGVodPA3tPAc6kEjpLV0+JJ8CH7mKQLYpAiqZs80Zm+V/ZEfNEjkc2nNZpBc+4/hM67XHFV82jVJtYzq7V1zmhX3WO8ea99+lAinVX4aN/UbyqfKXBWX4NHhagKia7QvL7ygNHT6sYem92O5k/Zquhfyq28uE+iHgv//D3QdlJ4pS1cW/ghW/jFIOrXb9aMdeh0Fg7SAU27/tnCaVghZeDRy09CXGVoC9+zhR/LLLzY1ZCOe6w6EI5Qxu81pLK5ZMnoxEaAmL0fQlWmG9K9N6SWdDB5u0sDVt9gUjxFo9FoNH/LyQ+Gba9HXwcA8pIZrxsdAAA= --tree=tar=- <"$BLOBS"/369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5.tar
# 8: a tree to commit
mkdir -p "$WORK"/tree-1
printf %s '{"architecture":"riscv64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5"]}}' >"$WORK"/tree-1/content
# 10: readable whatever the umask
chmod -R u=rwX,go=rX "$WORK"/tree-1
# 11: commit blob sha256:0dd6f96f5bba2633184a33dc6c60ef935113ecf7a40e32f3d549acefc6e47374
ostree commit --repo="$WORK"/stage --parent=none --timestamp=@0 --fsync=false --branch=ociimage/0dd6f96f5bba2633184a33dc6c60ef935113ecf7a40e32f3d549acefc6e47374 --add-metadata-string=docker.size=165 --tree=dir="$WORK"/tree-1 --owner-uid=0 --owner-gid=0 --no-xattrs
# 12: the tree is committed
rm -rf "$WORK"/tree-1
# 13: the refs of the repository
ostree refs --repo="$REPO" >/dev/null || :
# 14: a tree to commit
mkdir -p "$WORK"/tree-2
printf %s '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:0dd6f96f5bba2633184a33dc6c60ef935113ecf7a40e32f3d549acefc6e47374","size":165},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5","size":5120}]}' >"$WORK"/tree-2/manifest.json
# 16: readable whatever the umask
chmod -R u=rwX,go=rX "$WORK"/tree-2
# 17: commit image tiny:latest
ostree commit --repo="$WORK"/stage --parent=none --timestamp=@0 --fsync=false --branch=ociimage/tiny_3Alatest '--add-metadata-string=docker.manifest={"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:0dd6f96f5bba2633184a33dc6c60ef935113ecf7a40e32f3d549acefc6e47374","size":165},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5","size":5120}]}' --add-metadata-string=docker.digest=sha256:78d683e40dc60ab8b05373c16fbf4a7bf2c0ecaba22f34649c97dd8ec328f783 --add-metadata-string=signatures=0 --add-metadata-string=docker.architecture=riscv64 --add-metadata-string=docker.os=linux --tree=dir="$WORK"/tree-2 --owner-uid=0 --owner-gid=0 --no-xattrs
# 18: the tree is committed
rm -rf "$WORK"/tree-2
# 19: check all objects
ostree fsck --repo="$WORK"/stage --all --quiet >/dev/null || :
# 20: publish the blobs
ostree pull-local --repo="$REPO" --disable-fsync "$WORK"/stage ociimage/0dd6f96f5bba2633184a33dc6c60ef935113ecf7a40e32f3d549acefc6e47374 ociimage/369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5 "$(ostree rev-parse --repo="$WORK"/stage ociimage/tiny_3Alatest)"
# 21: which of these refs there are
ostree refs --repo="$REPO" --list ociimage/0dd6f96f5bba2633184a33dc6c60ef935113ecf7a40e32f3d549acefc6e47374 ociimage/369e3d49e9dbdfab69bee6ecbe1d7e01600e223cf7e8d559ae7913e971a982d5 >/dev/null || :
# 22: publish the image
ostree pull-local --repo="$REPO" --disable-fsync "$WORK"/stage ociimage/tiny_3Alatest
