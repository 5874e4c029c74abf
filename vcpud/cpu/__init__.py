"""The x86-64 engine of a vCPU."""
