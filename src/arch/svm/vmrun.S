# One world switch: lh_vmrun(rdi = *mut GuestFrame, rsi = *mut Vmcb). Of the general registers it keeps RBX and RBP alone, which
# inline assembly cannot name among those it changes (vmrun.rs, `enter`): the compiler keeps what it needs of the others.
#
#   1. close GIF, open IF: from here a physical interrupt stays pending until VMRUN and ends it at once
#   2. guest FPU and SSE state, FS/GS/TR/LDTR and system-call MSRs (VMLOAD), general registers, VMRUN, which keeps RAX and RSP
#   3. the same back; the host keeps no SSE value across this call, so it gets a clean FPU, not a saved one
#   4. STGI only when the host's GS base is back: an NMI may follow it immediately
#
# Where STI stands matters: QEMU 7.2 ignores the control block's interrupt shadow and hands the host's own to the guest. So
# STI is the instruction directly before VMRUN exactly when the guest is in a shadow, and an early one otherwise. Other
# CPUs take the shadow from the control block, and the place of STI means nothing to them.
# GuestFrame (vmrun.rs asserts it): general registers at 0x00, RAX and RSP unused (they live in the VMCB); FXSAVE area
# at 0x80; the physical addresses of the guest's VMCB and of the host's at 0x280 and 0x288. XCR0 and the upper halves of
# vector registers are never touched by the host, so they stay the guest's.

.section .rodata
.balign 4
lh_host_mxcsr:
    .long   0x1f80                  # all exceptions masked, to the nearest: what compiled code expects

.section .text
.code64

.balign 16
.global lh_vmrun
.type lh_vmrun, @function
lh_vmrun:
    push    rbx
    push    rbp
    push    rdi
    clgi
    sti
    test    byte ptr [rsi + 0x68], 1    # is the guest in a shadow? Nothing up to the jump changes ZF
    fxrstor64 [rdi + 0x80]
    mov     rax, [rdi + 0x280]
    vmload  rax
    mov     rcx, [rdi + 0x08]
    mov     rdx, [rdi + 0x10]
    mov     rbx, [rdi + 0x18]
    mov     rbp, [rdi + 0x28]
    mov     rsi, [rdi + 0x30]
    mov     r8,  [rdi + 0x40]
    mov     r9,  [rdi + 0x48]
    mov     r10, [rdi + 0x50]
    mov     r11, [rdi + 0x58]
    mov     r12, [rdi + 0x60]
    mov     r13, [rdi + 0x68]
    mov     r14, [rdi + 0x70]
    mov     r15, [rdi + 0x78]
    mov     rdi, [rdi + 0x38]
    jnz     2f
    vmrun   rax
1:  cli
    vmsave  rax
    pop     rax                     # the frame
    mov     [rax + 0x08], rcx
    mov     [rax + 0x10], rdx
    mov     [rax + 0x18], rbx
    mov     [rax + 0x28], rbp
    mov     [rax + 0x30], rsi
    mov     [rax + 0x38], rdi
    mov     [rax + 0x40], r8
    mov     [rax + 0x48], r9
    mov     [rax + 0x50], r10
    mov     [rax + 0x58], r11
    mov     [rax + 0x60], r12
    mov     [rax + 0x68], r13
    mov     [rax + 0x70], r14
    mov     [rax + 0x78], r15
    fxsave64 [rax + 0x80]
    mov     rax, [rax + 0x288]
    vmload  rax
    fninit
    ldmxcsr [rip + lh_host_mxcsr]
    stgi
    pop     rbp
    pop     rbx
    ret
2:  cli
    sti                             # casts a shadow only where IF was clear
    vmrun   rax
    jmp     1b
.size lh_vmrun, . - lh_vmrun
