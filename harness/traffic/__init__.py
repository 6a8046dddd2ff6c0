"""Traffic across the pair: endpoints that run programs, and generators, one file each, behind one Protocol."""
