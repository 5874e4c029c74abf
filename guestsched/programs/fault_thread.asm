# fault_thread: accesses the pages of a buffer at random, for ever, and verifies what it finds (the faulting thread of
# the 2010 benchmark). Every page holds this thread's stamp: see Stamp in apf/messages.py.
#
# Registers:
#   rdi  in   the buffer plus the stamp's offset in a page
#   rsi  in   pages of the buffer, 1 .. 2^32-1
#   rbx  io   state of the xorshift64 generator, not 0
#   r8   in   1: a stamp of zeros is one not written yet (a demand-zero buffer); 0: it is corrupt
#   r9   in   the stamp's base
#   r10  in   the stamp's stride
#   r11  in   CHECK_MULTIPLIER
#   r14  out  accesses done
#   r15  out  corrupt pages found
#   rax, rcx, rdx  tmp
#
# Position-independent; no stack. The first touch of a page is a write, so that an access to a page that is away makes
# one EPT violation. A corrupt stamp is counted once and then made good.

fault_thread:
        mov     rax, rbx                        # xorshift64, Marsaglia 2003: shifts 13, 7, 17
        shl     rax, 13
        xor     rbx, rax
        mov     rax, rbx
        shr     rax, 7
        xor     rbx, rax
        mov     rax, rbx
        shl     rax, 17
        xor     rbx, rax
        mov     rax, rbx                        # page = high half * pages / 2^32
        shr     rax, 32
        imul    rax, rsi
        shr     rax, 32
        mov     rdx, rax
        shl     rdx, 12
        add     rdx, rdi                        # rdx = the stamp
        mov     qword ptr [rdx + 16], r14       # the access
        imul    rax, r10
        add     rax, r9                         # rax = what the stamp's word was at first
        mov     rcx, qword ptr [rdx]
        xor     rax, rcx
        shr     rax, 32                         # another page's or thread's tag?
        jnz     fault_thread_corrupt
        mov     rax, rcx
        imul    rax, r11
        cmp     rax, qword ptr [rdx + 8]
        jne     fault_thread_corrupt
fault_thread_count:
        add     rcx, 1
        mov     qword ptr [rdx], rcx
        imul    rcx, r11
        mov     qword ptr [rdx + 8], rcx
        add     r14, 1
        jmp     fault_thread
fault_thread_corrupt:
        or      rcx, qword ptr [rdx + 8]
        jnz     fault_thread_bad
        test    r8, r8
        jnz     fault_thread_first
fault_thread_bad:
        add     r15, 1
fault_thread_first:
        mov     rcx, rdx                        # page number again, from the address
        sub     rcx, rdi
        shr     rcx, 12
        imul    rcx, r10
        add     rcx, r9
        jmp     fault_thread_count
