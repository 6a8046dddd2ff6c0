"""Drive one migration from a plan: the driver follows events, a mechanism takes care of the frames."""
