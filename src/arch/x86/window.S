# The one place where host interrupts are open. Both functions are entered and left with IF = 0 and return the vector that
# has arrived, or 0. Not more than one arrives: its stub puts it into EAX and leaves IF clear in the flags it returns with
# (stubs.S). Whatever else waits does so in the local APIC, until the next window.

.section .text
.code64

.balign 16
.global lh_window_open
.type lh_window_open, @function
lh_window_open:
    xor     eax, eax
    sti
    nop                             # the shadow of sti ends behind this one
    cli
    ret
.size lh_window_open, . - lh_window_open

.balign 16
.global lh_window_idle
.type lh_window_idle, @function
lh_window_idle:
    xor     eax, eax
    sti
    hlt                             # in sti's shadow: an interrupt that is already pending still wakes it
    cli
    ret
.size lh_window_idle, . - lh_window_idle
