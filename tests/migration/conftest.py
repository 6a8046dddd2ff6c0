"""The suite that users run on their own QEMU: `switchover suite`, or pytest with the plugin's options."""
