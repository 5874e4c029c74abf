# consumer: takes a producer's items from their ring (see producer.asm), for ever, and verifies their sequence.
#
# Registers:
#   r8   in   the ring
#   r9   in   the semaphore of items
#   r10  in   the semaphore of room; this program makes all of it at first
#   r12  in   CHECK_MULTIPLIER
#   r13  in   instructions of pure computation for each item
#   r14  out  items consumed
#   r15  out  corrupt items found: not the next number, or not its check
#   rax, rcx, rdx, rdi, rsi, r11  tmp
#
# Position-independent; no stack.

consumer:
        mov     eax, 4098                       # room for 256
        mov     rdi, r10
        mov     esi, 256
        syscall
consumer_loop:
        mov     eax, 4097                       # wait for an item
        mov     rdi, r9
        syscall
        lea     rcx, [r14 + 1]
        mov     rdx, rcx
        and     edx, 255
        shl     edx, 4
        mov     rax, qword ptr [r8 + rdx]
        cmp     rax, rcx
        jne     consumer_corrupt
        imul    rcx, r12
        cmp     rcx, qword ptr [r8 + rdx + 8]
        je      consumer_taken
consumer_corrupt:
        add     r15, 1
consumer_taken:
        add     r14, 1
        mov     eax, 4098                       # room for one more
        mov     rdi, r10
        mov     esi, 1
        syscall
.include "think.inc"
        jmp     consumer_loop
