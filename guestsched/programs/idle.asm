# idle: sleeps for ever, an hour at a time.
#
# Registers: rax, rcx, rdi, r11  tmp
#
# Position-independent; no stack.

idle:
        mov     eax, 35
        movabs  rdi, 3600000000000
        syscall
        jmp     idle
