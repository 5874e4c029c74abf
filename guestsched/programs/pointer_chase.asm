# pointer_chase: goes through all pages of a buffer in a cycle that is written in the pages themselves, and verifies what
# it finds. The word behind the stamp and its check is the link: 1 + the number of the next page.
#
# The first round writes all links; later rounds load each page's link and go where it says. An access therefore reads
# first and may write then, as who updates a list's nodes does. A link is verified like the stamp: it must lead to the
# page one scatter further. What is corrupt is counted once a page and then made good.
#
# Registers: those of sequential.asm, and
#   rbp   io   the next page
#   xmm0  in   the scatter: no common divisor with pages, below 2^32
#   xmm1  tmp
#
# Position-independent; no stack.

pointer_chase:
.include "think.inc"
.include "random.inc"
        mov     rdx, rbp
        shl     rdx, 12
        add     rdx, rdi                        # rdx = the stamp
        movq    rax, xmm0
        add     rax, rbp
        cmp     rax, rsi
        jb      pointer_chase_expected
        sub     rax, rsi
pointer_chase_expected:
        add     rax, 1
        movq    xmm1, rax                       # xmm1 = the link that is due
        cmp     r14, rsi
        jae     pointer_chase_follow
        mov     qword ptr [rdx + 16], rax       # the first round: the first touch is a write
pointer_chase_follow:
        mov     rcx, qword ptr [rdx + 16]       # rcx = the link that is there
        xor     rax, rcx
        jnz     pointer_chase_corrupt
        mov     rax, rbp
        imul    rax, r10
        add     rax, r9
        lea     rbp, [rcx - 1]                  # go where it leads
        mov     rcx, qword ptr [rdx]
        xor     rax, rcx
        shr     rax, 32
        jnz     pointer_chase_suspect
        mov     rax, rcx
        imul    rax, r11
        cmp     rax, qword ptr [rdx + 8]
        jne     pointer_chase_suspect
        cmp     r14, rsi
        jb      pointer_chase_write             # the first round stamps
        movzx   eax, bl
        cmp     rax, r12
        jae     pointer_chase_done
pointer_chase_write:
        add     rcx, 1
        mov     qword ptr [rdx], rcx
        imul    rcx, r11
        mov     qword ptr [rdx + 8], rcx
pointer_chase_done:
        add     r14, 1
        jmp     pointer_chase
pointer_chase_suspect:
        or      rcx, qword ptr [rdx + 8]
        jnz     pointer_chase_corrupt
        test    r8, r8
        jz      pointer_chase_corrupt
        cmp     r14, rsi
        jb      pointer_chase_restamp           # not written yet
pointer_chase_corrupt:
        add     r15, 1
pointer_chase_restamp:
        movq    rbp, xmm1
        mov     qword ptr [rdx + 16], rbp
        sub     rbp, 1
        mov     rcx, rdx                        # page number again, from the address
        sub     rcx, rdi
        shr     rcx, 12
        imul    rcx, r10
        add     rcx, r9
        jmp     pointer_chase_write
