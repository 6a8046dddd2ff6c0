"""A QEMU source tree in miniature: configures, compiles and answers like the real one, in a second instead of minutes."""

from __future__ import annotations

from pathlib import Path

__all__ = ["FIRMWARE", "write_tree"]

FIRMWARE = ("bios-256k.bin", "kvmvapic.bin", "linuxboot_dma.bin")

_CONFIGURE = r"""#!/bin/sh
src=$(dirname "$0")
for option; do
  case $option in
    --enable-slirp)
      echo 'Run-time dependency slirp found: NO (tried pkgconfig)'
      echo '../meson.build:1:0: ERROR: Dependency "slirp" not found (tried pkg-config)'
      echo 'ERROR: meson setup failed'
      exit 1 ;;
    --nonsense) echo "ERROR: unknown option --nonsense"; exit 1 ;;
    --with-devices-x86_64=*) test -f "$src/configs/devices/x86_64-softmmu/${option#*=}.mak" || exit 1 ;;
  esac
done
printf '%s\n' "$@" > arguments
cat > build.ninja <<END
rule cc
  command = echo \$in >> compiled && ${CC:-gcc} -c -MD -MF \$out.d -o \$out \$in
  depfile = \$out.d
rule link
  command = ${CC:-gcc} -o \$out \$in
build main.o: cc $src/main.c
build net.o: cc $src/net/net.c
build qemu-system-x86_64: link main.o net.o
END
"""

_MAIN = r"""
#include <stdio.h>
#include <string.h>
extern const char *net_words;
int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "--version")) {
        puts("QEMU emulator version 10.0.99");
    } else if (argc == 3 && !strcmp(argv[1], "-machine")) {
        puts("pc\nq35");
    } else if (argc == 3 && !strcmp(argv[1], "-L")) {
        return 0;
    } else {
        puts("{\"QMP\": {}}\n{\"return\": {\"status\": \"prelaunch\"}}");
    }
    return net_words == NULL;
}
"""

_NET = """\
/* one */
/* two */
/* three */
const char *net_words = "stock";
/* five */
/* six */
/* seven */
/* eight */
/* nine */
/* ten */
/* eleven */
/* twelve */
int last_line;
"""


def write_tree(folder: Path) -> Path:
    """Make `folder` a source tree; its ``net/net.c`` is there to be patched."""
    for place in ("hw", "qapi", "net", "pc-bios", "configs/devices/x86_64-softmmu"):
        (folder / place).mkdir(parents=True)
        (folder / place / "README").write_text(f"{place}\n")
    for firmware in FIRMWARE:
        (folder / "pc-bios" / firmware).write_bytes(b"\0" * 16)
    (folder / "VERSION").write_text("10.0.99\n")
    (folder / "meson.build").write_text("project('qemu')\n")
    (folder / "main.c").write_text(_MAIN)
    (folder / "net/net.c").write_text(_NET)
    symbols = ("Q35", "VIRTIO_NET", "SLOW")
    (folder / "hw/Kconfig").write_text("".join(f"config {symbol}\n    bool\n\n" for symbol in symbols))
    configure = folder / "configure"
    configure.write_text(_CONFIGURE)
    configure.chmod(0o755)
    return folder
