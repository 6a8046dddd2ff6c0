"""One QEMU process and the guest in it: command line, QMP, guest agent, console, SSH, discovery, warm start."""
