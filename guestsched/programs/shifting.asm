# shifting: accesses random pages within a window of a buffer, and verifies what it finds; the window moves on now and
# then, round and round.
#
# Registers: those of sequential.asm, and
#   rbp   io   the window's first page
#   xmm0  in   pages of the window, at most those of the buffer
#   xmm1  in   pages it moves on by, at most those of the buffer
#   xmm2  in   accesses between two moves, 1 or more
#   xmm3  io   accesses until the next move
#
# Position-independent; no stack.

shifting:
.include "think.inc"
.include "random.inc"
        movq    rax, xmm3
        test    rax, rax
        jnz     shifting_access
        movq    rax, xmm1
        add     rbp, rax
        cmp     rbp, rsi
        jb      shifting_moved
        sub     rbp, rsi
shifting_moved:
        movq    rax, xmm2
shifting_access:
        sub     rax, 1
        movq    xmm3, rax
        mov     rax, rbx                        # high half * window / 2^32
        shr     rax, 32
        movq    rcx, xmm0
        imul    rax, rcx
        shr     rax, 32
        add     rax, rbp
        cmp     rax, rsi
        jb      shifting_page
        sub     rax, rsi
shifting_page:
.include "access.inc"
