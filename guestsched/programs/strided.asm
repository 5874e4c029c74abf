# strided: accesses every n-th page of a buffer, as who walks a matrix column by column, and verifies what it finds:
# pages 0, n, 2n, ... to the end of the buffer, then 1, n + 1, ..., so that a round visits every page once.
#
# Registers: those of sequential.asm, and
#   rbp   io   the next page
#   xmm0  in   the stride in pages, 1 or more
#   xmm1  tmp
#
# Position-independent; no stack.

strided:
.include "think.inc"
.include "random.inc"
        movq    xmm1, rbp
        movq    rcx, xmm0
        lea     rdx, [rbp + rcx]
        cmp     rdx, rsi
        jb      strided_access
        mov     rax, rbp                        # the next column
        xor     edx, edx
        div     rcx
        add     rdx, 1
        cmp     rdx, rcx
        jae     strided_first
        cmp     rdx, rsi
        jb      strided_access
strided_first:
        xor     edx, edx
strided_access:
        mov     rbp, rdx
        movq    rax, xmm1
.include "access.inc"
