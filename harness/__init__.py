"""switchover: what a live migration does to the network, packet by packet."""

__version__ = "0.1.0"
