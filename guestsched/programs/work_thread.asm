# work_thread: increments a counter of its own, for ever (the working thread of the 2010 benchmark).
#
# Registers:
#   rdi  in   the thread's own page; its first word shows the counter, for whoever looks at memory
#   rax  io   the counter: exact whenever the thread is stopped
#   rcx  tmp
#
# Position-independent. The counter is stored once in 4096 increments, so that the page stays in use.

work_thread:
        mov     ecx, 16
work_thread_increments:
        .rept   256
        add     rax, 1
        .endr
        dec     ecx
        jnz     work_thread_increments
        mov     qword ptr [rdi], rax
        jmp     work_thread
