# access_thread: performs the accesses that somebody outside asks for: a load generator's, or a trace's.
#
# System call 4099 (take) sleeps until there are accesses to do, and returns how many: the guest kernel has put as many
# entries into the ring, from its start. An entry is four words:
#   0   address, 8-aligned
#   8   words to touch, one after the other, 1 or more; bit 63 set: by writing them
#   16  instructions of pure computation before the access, give or take one
#   24  done: this program stores the time (RDTSC) here after the access
#
# A write stores the pattern of each word's address, address * CHECK_MULTIPLIER (mod 2^64), lowest bit set. A read
# verifies: a word is zero, for it was never written, or has its pattern. What it finds changes nothing of its course, for
# two threads may access a word at the same time.
#
# Registers:
#   r8   in   the ring: one page
#   r9   in   CHECK_MULTIPLIER
#   r14  out  accesses done
#   r15  out  corrupt words read
#   rax, rbx, rcx, rdx, rbp, rsi, r11, r13  tmp
#
# Position-independent; no stack.

access_thread:
        mov     eax, 4099
        syscall
        mov     rbp, rax                        # entries left
        mov     rbx, r8                         # the entry
access_thread_entry:
        mov     r13, qword ptr [rbx + 16]
.include "think.inc"
        mov     rdx, qword ptr [rbx]
        mov     rsi, qword ptr [rbx + 8]
        btr     rsi, 63
        jc      access_thread_write
access_thread_read:                             # without branches: another vCPU may just be writing the pattern
        mov     rcx, rdx
        imul    rcx, r9
        or      rcx, 1
        mov     rax, qword ptr [rdx]
        xor     rcx, rax                        # not its pattern?
        neg     rcx
        sbb     rcx, rcx
        neg     rax                             # and not zero?
        sbb     rax, rax
        and     rax, rcx
        sub     r15, rax
        add     rdx, 8
        dec     rsi
        jnz     access_thread_read
        jmp     access_thread_done
access_thread_write:
        mov     rcx, rdx
        imul    rcx, r9
        or      rcx, 1
        mov     qword ptr [rdx], rcx
        add     rdx, 8
        dec     rsi
        jnz     access_thread_write
        jmp     access_thread_done              # RDTSC tells when its block began: now
access_thread_done:
        rdtsc
        shl     rdx, 32
        or      rax, rdx
        mov     qword ptr [rbx + 24], rax
        add     r14, 1
        add     rbx, 32
        dec     rbp
        jnz     access_thread_entry
        jmp     access_thread
