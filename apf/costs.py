"""What the emulated hardware and kernels cost: a scenario's ``[costs]``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from apf.fields import Section

Cost = Annotated[int, Field(ge=0, le=1_000_000_000)]


class Costs(Section):
    """Modelled costs in guest ns. Every default with where it comes from."""

    # EPT violation: exit, walk, map, entry. Commonly 1-2 us; no citable figure was found.
    ept_violation_ns: Annotated[int, Field(ge=1, le=1_000_000_000)] = 1_500
    # Zero-fill of a page: less than half of the 1.2 us a whole anonymous minor fault was measured to take on a host.
    zero_fill_ns: Cost = 500
    # Host page-table fault that needs no I/O (swap-cache lookup, set the PTE): the rest of those 1.2 us.
    host_fault_ns: Cost = 700
    # Allocate a bio and submit one read: chosen, the order of a block-layer submission.
    swap_submit_ns: Cost = 1_000
    # Reclaim, per page scanned and per page unmapped (rmap walk and EPT entry): chosen, 0.2 and 1 us.
    reclaim_scan_ns: Cost = 200
    reclaim_unmap_ns: Cost = 1_000
    # From queueing the work item to the fault-in worker's get_user_pages: chosen, one kworker wake-up.
    fault_in_worker_ns: Cost = 2_000
    # The APF protocol. In sum 9,500 ns a fault (two injections, two handlers, the exit for page ready, two context
    # switches); the arm64 APF cover letter of 2021 puts 0.42-0.55 s on 55,000 APFs: 8,000-10,000 ns each.
    apf_inject_ns: Cost = 1_500
    apf_handler_ns: Cost = 1_000
    apf_ready_exit_ns: Cost = 1_500
    # The exit of the guest's write to MSR_KVM_ASYNC_PF_ACK (pv only): chosen, an exit without a walk or a mapping.
    apf_ack_exit_ns: Cost = 1_000
    # Guest context switch: chosen, lmbench's lat_ctx for small processes is 1-2 us on servers.
    context_switch_ns: Cost = 1_500
    # Timer tick: interrupt exit, injection, update_process_times: chosen.
    tick_ns: Cost = 1_000
    # Any other interrupt of the guest (timer, reschedule), exit to return: chosen, as a tick.
    interrupt_ns: Cost = 1_000
    # One sample of the profile, interrupt included: chosen, as a tick.
    profile_sample_ns: Cost = 1_000
    # A system call of the guest, entry to exit: chosen, below the 0.1-0.3 us usually measured with mitigations.
    syscall_ns: Annotated[int, Field(ge=1, le=1_000_000_000)] = 100
