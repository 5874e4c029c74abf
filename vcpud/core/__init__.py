"""The vCPU's deterministic core: one ``VcpuCore`` per vCPU, KVM's side of everything the guest does.

    vcpu.py      the run loop: enter the guest, handle the exit, deliver what is due; on top of
    faults.py    what is asked of hostd; msr_steps.py, what a handler writes; page_ready.py, telling the guest
    base.py      what these share
    state.py     what the core waits for, what it counts
    async_pf.py  the queue of work items: virt/kvm/async_pf.c
    apf_msr.py   the MSRs, who may be told what, the ready slot: arch/x86/kvm/x86.c
    thread.py    where the vCPU's thread is
    injected.py  faults of the protocol that a scenario injects
    effects.py   what goes in and what comes out
    account.py   where the time went; observed.py, what faults took; sampler.py, the profile's timer

Transitions, drawn from the tables by ``poe diagrams``:

APF work item:

    FREE     --- setup ------------------> LISTED
                 A:kvm_setup_async_pf, X:kvm_add_async_pf_gfn
             --- EN written -------------> DONE
                 A:kvm_async_pf_wakeup_all

    LISTED   --- schedule_work ----------> PENDING
                 A:kvm_setup_async_pf

    PENDING  --- worker picks it up -----> RUNNING
                 A:async_pf_execute
             --- queue cleared ----------> FREE
                 A:kvm_clear_async_pf_completion_queue (cancelled)

    RUNNING  --- get_user_pages returns -> DONE
                 A:async_pf_execute
             --- queue cleared ----------> FREE
                 A:kvm_clear_async_pf_completion_queue (waits)

    DONE     --- can_dequeue ------------> PREFAULT
                 A:kvm_check_async_pf_completion
             --- queue cleared ----------> FREE
                 A:kvm_clear_async_pf_completion_queue

    PREFAULT --- mapped -----------------> PRESENT
                 M:kvm_arch_async_page_ready
             --- queue cleared ----------> FREE
                 A:kvm_clear_async_pf_completion_queue

    PRESENT  --- delivered --------------> FREE
                 X:kvm_arch_async_page_present
             --- queue cleared ----------> FREE
                 A:kvm_clear_async_pf_completion_queue

ready slot:

    FREE(0,0)    --- page ready delivered -> FILLED(t,1)
                     X:kvm_arch_async_page_present, apf_put_user_ready
                 --- guest stores 0 -------> FREE(0,0)
                     G:sysvec_kvm_asyncpf_interrupt (an interrupt too many)
                 --- ACK ------------------> FREE(0,0)
                     X:kvm_set_msr_common (an interrupt too many)

    FILLED(t,1)  --- guest stores 0 -------> CLEARED(0,1)
                     G:sysvec_kvm_asyncpf_interrupt
                 --- ACK ------------------> LEFT(t,0)
                     X:kvm_set_msr_common (nothing can be dequeued, E35)

    CLEARED(0,1) --- guest stores 0 -------> CLEARED(0,1)
                     G:sysvec_kvm_asyncpf_interrupt (an interrupt too many)
                 --- ACK ------------------> FREE(0,0)
                     X:kvm_set_msr_common MSR_KVM_ASYNC_PF_ACK, then the done list again
                 --- page ready delivered -> FILLED(t,1)
                     X:apf_pageready_slot_free looks at the token only (E20)

    LEFT(t,0)    --- guest stores 0 -------> FREE(0,0)
                     G:sysvec_kvm_asyncpf_interrupt
                 --- ACK ------------------> LEFT(t,0)
                     X:kvm_set_msr_common

vCPU thread:

    GUEST      --- fault, mapped quickly ----------------------> GUEST
                   M:direct_page_fault
               --- fault, page cannot be had ------------------> GUEST
                   M:kvm_handle_error_pfn
               --- NEEDS_IO, PV deliverable -------------------> GUEST
                   X:kvm_arch_async_page_not_present (#PF queued)
               --- NEEDS_IO, not deliverable or gfn repeated --> APF_HALT
                   X:kvm_arch_async_page_not_present, M:__kvm_mmu_faultin_pfn
               --- NEEDS_IO, not eligible, limit or no memory -> SYNC_SLEEP
                   M:__kvm_mmu_faultin_pfn, K:hva_to_pfn_slow
               --- HLT ----------------------------------------> HLT
                   K:kvm_vcpu_halt

    SYNC_SLEEP --- I/O done -----------------------------------> GUEST
                   M:kvm_handle_error_pfn, kvm_mmu_finish_page_fault

    APF_HALT   --- item done ----------------------------------> GUEST
                   X:vcpu_block (halted = false)
               --- interrupt or timer -------------------------> GUEST
                   X:vcpu_block (halted = false)
               --- queue cleared ------------------------------> GUEST
                   X:kvm_vcpu_reset (halted = false)

    HLT        --- interrupt or timer -------------------------> GUEST
                   X:vcpu_block (mp_state RUNNABLE)
               --- item done ----------------------------------> GUEST
                   X:kvm_arch_async_page_present (mp_state RUNNABLE)
"""
