"""The vCPU's deterministic core: run loop (``vcpu``), async_pf queue (``async_pf``), where time went (``account``)."""
