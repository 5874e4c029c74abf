"""KVM and the CPUs of one VM."""
