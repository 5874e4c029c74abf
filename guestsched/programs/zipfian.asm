# zipfian: accesses random pages of a buffer, the page of rank r with a probability proportional to (r + 1)^-theta, and
# verifies what it finds. Ranks are scattered over the buffer.
#
# A number drawn evenly is turned into a rank by the inverse of the distribution function, which is linear between 512
# points: entry q of the table is the rank below which q of 511 parts of all accesses are, in units of 2^-32 rank.
#
# Registers: those of sequential.asm, and
#   rbp   in   the table
#   xmm0  in   the scatter: rank r is page r * scatter mod pages; no common divisor with pages, below 2^32
#   xmm1  tmp
#
# Position-independent; no stack.

zipfian:
.include "think.inc"
.include "random.inc"
        mov     rax, rbx
        shr     rax, 32
        imul    rax, rax, 511
        mov     ecx, eax                        # rcx = place within the part, in units of 2^-32
        shr     rax, 32                         # rax = the part
        lea     rdx, [rbp + rax * 8]
        movq    xmm1, qword ptr [rdx]
        mov     rax, qword ptr [rdx + 8]
        sub     rax, qword ptr [rdx]
        mul     rcx
        shrd    rax, rdx, 32
        movq    rdx, xmm1
        add     rax, rdx
        shr     rax, 32                         # rax = the rank
        movq    rcx, xmm0
        imul    rax, rcx
        xor     edx, edx
        div     rsi
        mov     rax, rdx
.include "access.inc"
