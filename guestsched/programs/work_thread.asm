# work_thread: notes when it began, then increments a counter of its own, for ever (the working thread of the 2010
# benchmark).
#
# Registers:
#   rdi  in   the thread's own page; its first word shows the counter, for whoever looks at memory, its second word the
#             guest time in ns at which the thread began
#   r8   io   the counter: exact whenever the thread is stopped
#   rax, rcx  tmp
#
# Position-independent; no stack. The counter is stored once in 4096 increments, so that the page stays in use.

work_thread:
        mov     eax, 228                        # clock_gettime
        syscall
        mov     qword ptr [rdi + 8], rax
work_thread_count:
        mov     ecx, 16
work_thread_increments:
        .rept   256
        add     r8, 1
        .endr
        dec     ecx
        jnz     work_thread_increments
        mov     qword ptr [rdi], r8
        jmp     work_thread_count
