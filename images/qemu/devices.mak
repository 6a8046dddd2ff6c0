# The testbed's machines and devices, and no others: a build takes minutes instead of a quarter of an hour.
# Lines that name what a source doesn't have (a device that one of the series brings, for one) are left out there.
CONFIG_Q35=y
CONFIG_I440FX=y
CONFIG_VIRTIO_PCI=y
CONFIG_VIRTIO_NET=y
CONFIG_VIRTIO_BLK=y
CONFIG_VIRTIO_SERIAL=y
CONFIG_VIRTIO_RNG=y
CONFIG_SERIAL_ISA=y
CONFIG_ISA_DEBUG=y
CONFIG_TEST_DEVICES=y
CONFIG_SLOW_MIGRATION_DEVICE=y
