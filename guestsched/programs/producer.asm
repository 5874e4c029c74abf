# producer: puts numbered items into a ring of 256 for a consumer, for ever.
#
# The ring is one page that both share: item n (1, 2, ...) is two words, n and n * CHECK_MULTIPLIER, in place n mod 256.
# Two semaphores of their process count the items in the ring and the room left in it.
#
# Registers:
#   r8   in   the ring
#   r9   in   the semaphore of items
#   r10  in   the semaphore of room
#   r12  in   CHECK_MULTIPLIER
#   r13  in   instructions of pure computation for each item
#   r14  out  items produced
#   rax, rcx, rdx, rdi, rsi, r11  tmp
#
# Position-independent; no stack.

producer:
.include "think.inc"
        mov     eax, 4097                       # wait for room
        mov     rdi, r10
        syscall
        lea     rcx, [r14 + 1]
        mov     rdx, rcx
        and     edx, 255
        shl     edx, 4
        mov     qword ptr [r8 + rdx], rcx
        imul    rcx, r12
        mov     qword ptr [r8 + rdx + 8], rcx
        mov     eax, 4098                       # one more item
        mov     rdi, r9
        mov     esi, 1
        syscall
        add     r14, 1
        jmp     producer
