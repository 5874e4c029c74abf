"""What the guest has told KVM by MSRs about asynchronous page faults, and whom KVM may therefore tell what.

Follows arch/x86/kvm/x86.c (X): ``kvm_pv_enable_async_pf`` and ``_int``, MSR_KVM_ASYNC_PF_ACK in ``kvm_set_msr_common``,
``kvm_can_do_async_pf`` and ``kvm_can_deliver_async_pf``. A write the CPU answers with #GP changes nothing.

| MSR | value | |
|---|---|---|
| ..._EN  | bit 0 ENABLED, 1 SEND_ALWAYS, 2 DELIVERY_AS_PF_VMEXIT, 3 DELIVERY_AS_INT, 6-63 address | 4-5 are reserved |
| ..._INT | bits 0-7 vector | bits 8-63 are reserved |
| ..._ACK | bit 0 | the others are ignored |

Before 5.8 (``pv2010``) there is EN only, and bit 3 is reserved too. ``off`` and ``halt``: the CPUID bits are clear, so
every write is a #GP. Bit 2 says what happens to a nested guest; there is none here, so it is kept and nothing follows
(departure: nor does any CPUID bit 10 have to be there).

The ready slot is the token word in guest memory together with ``pageready_pending``:

    FREE (0, no) --token written, interrupt raised--> FILLED (token, yes) --guest: token = 0--> CLEARED (0, yes)
    --guest: ACK--> FREE
"""

from __future__ import annotations

from dataclasses import dataclass

from apf.core import Kind
from apf.messages import (
    APF_FLAGS_OFFSET,
    APF_TOKEN_OFFSET,
    ASYNC_PF_DELIVERY_AS_INT,
    ASYNC_PF_DELIVERY_AS_PF_VMEXIT,
    ASYNC_PF_ENABLED,
    ASYNC_PF_SEND_ALWAYS,
    MSR_KVM_ASYNC_PF_ACK,
    MSR_KVM_ASYNC_PF_EN,
    MSR_KVM_ASYNC_PF_INT,
    ApfMode,
)
from apf.rules import Rule, Table

_RESERVED = 0x30
_RESERVED_2010 = 0x38
_ADDRESS = ~0x3F
_STRUCT_BYTES = 64
FIRST_VECTOR = 16
"""Vectors below are exceptions; the local APIC never delivers them as interrupts (apic_has_interrupt_for_ppr)."""


class Outcome(Kind):
    """What a write of an MSR has led to."""

    GP = "#GP"
    NOTHING = "nothing"
    ENABLED = "enabled"
    DISABLED = "disabled"
    ACKNOWLEDGED = "acknowledged"


class SlotState(Kind):
    """The ready slot: (token word, pageready_pending)."""

    FREE = "FREE(0,0)"
    FILLED = "FILLED(t,1)"
    CLEARED = "CLEARED(0,1)"
    LEFT = "LEFT(t,0)"  # by a snapshot, or by a guest that acknowledges before it stores 0


class SlotEvent(Kind):
    """What happens to the ready slot."""

    DELIVERED = "page ready delivered"
    STORED = "guest stores 0"
    ACKED = "ACK"


_S, _E = SlotState, SlotEvent
SLOT: Table[SlotState, SlotEvent] = Table(
    "ready slot",
    Rule(_S.FREE, _E.DELIVERED, _S.FILLED, "X:kvm_arch_async_page_present, apf_put_user_ready"),
    Rule(_S.FREE, _E.STORED, _S.FREE, "G:sysvec_kvm_asyncpf_interrupt (an interrupt too many)"),
    Rule(_S.FREE, _E.ACKED, _S.FREE, "X:kvm_set_msr_common (an interrupt too many)"),
    Rule(_S.FILLED, _E.STORED, _S.CLEARED, "G:sysvec_kvm_asyncpf_interrupt"),
    Rule(_S.FILLED, _E.ACKED, _S.LEFT, "X:kvm_set_msr_common (nothing can be dequeued, E35)"),
    Rule(_S.CLEARED, _E.STORED, _S.CLEARED, "G:sysvec_kvm_asyncpf_interrupt (an interrupt too many)"),
    Rule(_S.CLEARED, _E.ACKED, _S.FREE, "X:kvm_set_msr_common MSR_KVM_ASYNC_PF_ACK, then the done list again"),
    Rule(_S.CLEARED, _E.DELIVERED, _S.FILLED, "X:apf_pageready_slot_free looks at the token only (E20)"),
    Rule(_S.LEFT, _E.STORED, _S.FREE, "G:sysvec_kvm_asyncpf_interrupt"),
    Rule(_S.LEFT, _E.ACKED, _S.LEFT, "X:kvm_set_msr_common"),
)


@dataclass(frozen=True, slots=True)
class Context:
    """What the guest was at when it faulted.

    ``shadow``: right behind STI or MOV SS. ``pending``: an exception waits to be injected. ``reinject``: so does an
    event whose delivery was cut short.
    """

    cpl: int
    interrupts: bool = True
    shadow: bool = False
    pending: bool = False
    reinject: bool = False


USER = Context(cpl=3)
KERNEL = Context(cpl=0)
INTERRUPTS_OFF = Context(cpl=0, interrupts=False)


class ApfMsrs:
    """One vCPU's ``vcpu->arch.apf``, as far as the guest has set it."""

    __slots__ = (
        *("_hlt_exits", "_mode", "en", "guest_bytes", "lapic_enabled", "lapic_in_kernel", "pageready_pending"),
        *("guest_token_gpa", "paging", "vector"),
    )

    def __init__(self, mode: ApfMode, *, hlt_exits: bool = True, guest_bytes: int = 1 << 52) -> None:
        self._mode = mode
        self._hlt_exits = hlt_exits
        self.guest_bytes = guest_bytes
        self.en = 0
        self.vector = 0
        self.pageready_pending = False
        self.lapic_in_kernel = True
        self.lapic_enabled = True
        self.paging = True  # CR0.PG
        self.guest_token_gpa = 0
        """Where the guest's own handler reads the token: what it enabled last, also if KVM has lost that since."""

    # Writes

    def write(self, msr: int, value: int) -> Outcome:
        """WRMSR by the guest, or by a VMM that restores it."""
        if msr == MSR_KVM_ASYNC_PF_EN:
            return self._write_en(value)
        if self._mode is not ApfMode.PV:
            return Outcome.GP
        if msr == MSR_KVM_ASYNC_PF_INT:
            if value >> 8 or not self.lapic_in_kernel:
                return Outcome.GP
            self.vector = value & 0xFF
            return Outcome.NOTHING
        if msr == MSR_KVM_ASYNC_PF_ACK:
            if not value & 1:
                return Outcome.NOTHING
            self.pageready_pending = False
            return Outcome.ACKNOWLEDGED
        return Outcome.GP

    def _write_en(self, value: int) -> Outcome:
        """kvm_pv_enable_async_pf."""
        if self._mode not in (ApfMode.PV, ApfMode.PV2010):
            return Outcome.GP
        if value & (_RESERVED if self._mode is ApfMode.PV else _RESERVED_2010):
            return Outcome.GP
        if not self.lapic_in_kernel:
            return Outcome.GP if value else Outcome.NOTHING
        before, self.en = self.en, value
        if not self.enabled:
            return Outcome.DISABLED
        if self.gpa + _STRUCT_BYTES > self.guest_bytes:  # kvm_gfn_to_hva_cache_init
            self.en = before
            return Outcome.GP
        self.guest_token_gpa = self.token_gpa
        return Outcome.ENABLED

    def reset(self) -> None:
        """kvm_vcpu_reset, or a KVM that has never heard of this vCPU. ``pageready_pending`` is not reset."""
        self.en = self.vector = 0

    # What follows

    @property
    def enabled(self) -> bool:
        """kvm_pv_async_pf_enabled: EN and, since 5.8, DELIVERY_AS_INT as well (E06)."""
        wanted = ASYNC_PF_ENABLED | (ASYNC_PF_DELIVERY_AS_INT if self._mode is ApfMode.PV else 0)
        return self.en & wanted == wanted

    @property
    def gpa(self) -> int:
        """Of struct kvm_vcpu_pv_apf_data."""
        return self.en & _ADDRESS

    @property
    def flags_gpa(self) -> int:
        """Of its word ``flags``."""
        return self.gpa + APF_FLAGS_OFFSET

    @property
    def token_gpa(self) -> int:
        """Of its word ``token``."""
        return self.gpa + APF_TOKEN_OFFSET

    @property
    def send_always(self) -> bool:
        """Not-present may come in kernel mode."""
        return bool(self.en & ASYNC_PF_SEND_ALWAYS)

    @property
    def as_pf_vmexit(self) -> bool:
        """A nested guest's faults go to L1 as #PF exits."""
        return bool(self.en & ASYNC_PF_DELIVERY_AS_PF_VMEXIT)

    @property
    def delivers_interrupts(self) -> bool:
        """The local APIC would deliver the vector that was set."""
        return self.lapic_enabled and self.vector >= FIRST_VECTOR

    def can_deliver(self, context: Context) -> bool:
        """kvm_can_deliver_async_pf: the guest can be told of a page that is not present."""
        return self.enabled and self.paging and (self.send_always or context.cpl != 0)

    def can_do(self, context: Context) -> bool:
        """kvm_can_do_async_pf: the fault may be left to a worker at all."""
        if not self.lapic_in_kernel or context.reinject or context.pending:
            return False
        if not self._hlt_exits and not self.can_deliver(context):
            return False
        return context.interrupts and not context.shadow  # kvm_arch_interrupt_allowed

    def slot(self, token: int) -> SlotState:
        """The ready slot, whose token word holds ``token``."""
        if token:
            return SlotState.FILLED if self.pageready_pending else SlotState.LEFT
        return SlotState.CLEARED if self.pageready_pending else SlotState.FREE
