"""Traffic across the pair: endpoints that run programs, and generators behind one Protocol."""
