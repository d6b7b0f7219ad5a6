# The one place where host interrupts are open. Both functions are entered and left with IF = 0; what arrives in
# between sets bits in the pending set and nothing else. Two vectors may arrive before IF falls again, which is why
# the stubs keep a set and not "the last vector".

.section .text
.code64

.balign 16
.global lh_window_open
.type lh_window_open, @function
lh_window_open:
    sti
    nop                             # the shadow of sti ends behind this one
    nop
    cli
    ret
.size lh_window_open, . - lh_window_open

.balign 16
.global lh_window_idle
.type lh_window_idle, @function
lh_window_idle:
    sti
    hlt                             # in sti's shadow: an interrupt that is already pending still wakes it
    cli
    ret
.size lh_window_idle, . - lh_window_idle
