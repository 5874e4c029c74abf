"""hostd plays the host kernel's memory management: one process per host."""
