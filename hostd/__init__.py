"""The host daemon: plays the host kernel's memory management for all VMs of one emulated host."""
