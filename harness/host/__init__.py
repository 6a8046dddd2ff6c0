"""What this host offers and gives: facts, accelerator probe, namespaces, bridges, TAPs, supervised processes, deadlines."""
