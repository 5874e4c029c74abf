"""The vCPU's deterministic core: the run loop (``vcpu``), the async_pf queue (``async_pf``), where time went (``account``)."""
