# sequential: accesses the pages of a buffer one after the other, round and round, and verifies what it finds.
#
# Registers of this program and of all others that end with access.inc:
#   rdi  in   the buffer plus the stamp's offset in a page
#   rsi  in   pages of the buffer, 1 .. 2^32-1
#   rbx  io   state of the xorshift64 generator, not 0
#   r8   in   1: a stamp of zeros is one not written yet (a demand-zero buffer); 0: it is corrupt
#   r9   in   the stamp's base
#   r10  in   the stamp's stride
#   r11  in   CHECK_MULTIPLIER
#   r12  in   accesses of 256 that write; the others read
#   r13  in   instructions of pure computation before each access
#   r14  out  accesses done
#   r15  out  corrupt pages found
#   rax, rcx, rdx  tmp
# This one's own:
#   rbp  io   the next page
#
# Position-independent; no stack.

sequential:
.include "think.inc"
.include "random.inc"
        mov     rax, rbp
        add     rbp, 1
        cmp     rbp, rsi
        jb      sequential_access
        xor     ebp, ebp
sequential_access:
.include "access.inc"
