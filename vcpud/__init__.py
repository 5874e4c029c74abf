"""vcpud plays KVM and the CPU: one process per VM, with a worker process per vCPU."""
