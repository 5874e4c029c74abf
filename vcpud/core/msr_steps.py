"""What a handler of the guest kernel does with interrupts off: stores and WRMSR; and faults injected into the protocol.

The MSRs themselves are ``apf_msr``.
"""

from __future__ import annotations

from apf.messages import (
    MSR_KVM_ASYNC_PF_ACK,
    MSR_KVM_ASYNC_PF_EN,
    MSR_KVM_ASYNC_PF_INT,
    ApfMode,
    MsrWrite,
    Store,
)
from vcpud.core.account import Cause
from vcpud.core.apf_msr import Outcome
from vcpud.core.effects import (
    Effect,
    WaitUntil,
    WriteGuest,
)
from vcpud.core.injected import Injected
from vcpud.core.page_ready import TOKEN_BYTES, PageReady
from vcpud.core.state import State
from vcpud.core.thread import ThreadEvent

_LEFT_TOKEN = 0xFFFFE
"""Id of the token that an injected snapshot has left in the token word."""


class MsrSteps(PageReady):
    """Steps of the guest's handlers, and of an operator."""

    def _do_steps(self) -> list[Effect]:
        """What a handler does with interrupts off, until memory or workers have to be waited for."""
        while self._steps:
            if self.state is not State.STEPS:
                self._move(State.STEPS)
            step = self._steps[0]
            if isinstance(step, Store):
                return [WriteGuest(step.gpa, step.data)]
            self._steps.popleft()
            effects = self._wrmsr(step)
            if effects is not None:
                return effects
        dispatched, self._dispatched_steps = self._dispatched_steps, False
        if not dispatched:
            return self._go_back()
        return self._after_steps()

    def _wrmsr(self, write: MsrWrite) -> list[Effect] | None:
        """Carry out WRMSR; effects if it has to wait for something before the next step."""
        if write.msr == MSR_KVM_ASYNC_PF_ACK:
            self._exit("MSR_WRITE")
            self.counters.acks += 1
            self._spend(Cause.APF, self.now_ns + self._costs.apf_ack_exit_ns)
            if self._hit(Injected.DROPPED_ACK):
                return None
        before = self.msrs.enabled
        outcome = self.msrs.write(write.msr, write.value)
        self.journal.record((self.now_ns, "wrmsr", f"{write.msr:#x}", f"{write.value:#x}", outcome.value))
        match outcome:
            case Outcome.GP:
                self.counters.msr_gp += 1
            case Outcome.ACKNOWLEDGED:
                self._advance()
                return self._check_completion()
            case Outcome.ENABLED:
                if self._config.mode is ApfMode.PV or before or not self._booting:
                    self._apf_ready |= self.async_pf.wakeup_all(self.now_ns)
                self._booting = False
            case Outcome.DISABLED:
                until_ns = self._drop()
                if until_ns > self.now_ns:
                    self._move(State.DRAIN)
                    return [WaitUntil(until_ns)]
            case Outcome.NOTHING:
                pass
        return None

    def _drop(self) -> int:
        """kvm_clear_async_pf_completion_queue; returns when it would return (E36)."""
        self.counters.dropped += len(self.async_pf)
        self.journal.record((self.now_ns, "async_pf_cleared", len(self.async_pf)))
        self._apf_ready = False
        self._forgotten += [item.token for item in self.async_pf.queue if not item.wakeup_all]
        return self.async_pf.clear(self.now_ns)

    def _inject_fault(self, what: Injected) -> list[Effect]:
        """One that is bound to this moment; what the VMM does happens while the vCPU is out of the guest."""
        self._note_injected(what)
        msrs, steps = self.msrs, self._steps
        vector, en = msrs.vector, msrs.en
        match what:
            case Injected.TOKEN_LEFT:
                if msrs.enabled and self._config.mode is ApfMode.PV:
                    left = _LEFT_TOKEN << 12 | self._config.vcpu
                    steps.append(Store(msrs.token_gpa, left.to_bytes(TOKEN_BYTES, "little")))
            case Injected.LAPIC_OFF | Injected.LAPIC_ON:
                msrs.lapic_enabled = what is Injected.LAPIC_ON
                self._apf_ready |= msrs.lapic_enabled  # apic_set_spiv (E24)
            case Injected.PAGING_OFF | Injected.PAGING_ON:
                msrs.paging = what is Injected.PAGING_ON
                self._apf_ready |= msrs.paging  # kvm_post_set_cr0 (E25)
            case Injected.INT_WRITTEN:
                steps.append(MsrWrite(MSR_KVM_ASYNC_PF_INT, self._late_vector))
            case _:
                self._restore(what, vector, en)
        self._end_halt(ThreadEvent.INTERRUPT)
        if self._steps:
            self._move(State.STEPS)
            return self._do_steps()
        return self._enter()

    def _restore(self, what: Injected, vector: int, en: int) -> None:
        """Another KVM takes over: nothing of the old one's is there but what the VMM writes (E33, E34).

        An interrupt that waits to be taken is in the local APIC's state, which goes along.

        Departure: the id of the next token goes on, where another KVM begins at 1 and may give a token to one task
        while another, which nobody will ever wake, still waits for it.
        """
        self._drop()
        self.msrs.reset()
        self.msrs.pageready_pending = False
        if what is Injected.MSR_LOST or not en:  # what the guest has not written is not restored either
            return
        with_vector = self._config.mode is ApfMode.PV and what is Injected.RESTORE
        if with_vector:
            self._steps.append(MsrWrite(MSR_KVM_ASYNC_PF_INT, vector))
        self._steps.append(MsrWrite(MSR_KVM_ASYNC_PF_EN, en))
        if self._config.mode is ApfMode.PV and what is Injected.RESTORE_INT_LATE:
            self._late_vector = vector
            self._injections.follow(self.now_ns + 1, Injected.INT_WRITTEN)
