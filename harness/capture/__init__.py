"""Live packet capture on AF_PACKET sockets.

`ring` holds the loss-accounted recorder behind every capture file, `live` what a mechanism needs while
a migration is under way: frames on their way to a TAP, at once, and a way to send them again.
Sockets are made by the caller, in the namespace of the interface; nothing here changes namespace.
"""
