"""What every process of the emulator shares: the wire, virtual time, shared memory, the scenario, the journal.

A leaf package: it imports no daemon (checked in CI). A thing lives here only if it crosses the wire, is the
core contract, is process scaffold, or is generated.
"""
