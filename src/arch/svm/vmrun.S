# One world switch: lh_vmrun(rdi = *mut GuestFrame, rsi = guest VMCB (physical), rdx = host save VMCB (physical),
#                            ecx = whether the guest is in an interrupt shadow)
#
#   1. save what the C ABI makes ours, close GIF, open IF: from here a physical interrupt stays pending until VMRUN
#      and ends it at once
#   2. guest FPU and SSE state, FS/GS/TR/LDTR and system-call MSRs (VMLOAD), general registers, VMRUN
#   3. the same back; the host keeps no SSE value across this call, so it gets a clean FPU, not a saved one
#   4. STGI only when the host's GS base is back: an NMI may follow it immediately
#
# Where STI stands matters: QEMU 7.2 ignores the control block's interrupt shadow and hands the host's own to the guest. So
# STI is the instruction directly before VMRUN exactly when the guest is in a shadow, and an early one otherwise. Other
# CPUs take the shadow from the control block, and the place of STI means nothing to them.
# GuestFrame (vmrun.rs asserts it): general registers at 0x00, RAX and RSP unused (they live in the VMCB); FXSAVE area
# at 0x80. XCR0 and the upper halves of vector registers are never touched by the host, so they stay the guest's.

.section .text
.code64

.balign 16
.global lh_vmrun
.type lh_vmrun, @function
lh_vmrun:
    push    rbp
    push    rbx
    push    r12
    push    r13
    push    r14
    push    r15
    push    rdx
    push    rdi
    sub     rsp, 8                  # [rsp + 4]: the host's MXCSR
    stmxcsr [rsp + 4]
    clgi
    test    ecx, ecx                # nothing up to the jump before VMRUN changes ZF
    jnz     1f
    sti
1:  fxrstor64 [rdi + 0x80]
    mov     rax, rsi
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
    jmp     3f
2:  sti
    vmrun   rax
3:  cli
    vmsave  rax
    mov     rax, [rsp + 8]
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
    mov     rax, [rsp + 16]
    vmload  rax
    fninit
    ldmxcsr [rsp + 4]
    stgi
    add     rsp, 24
    pop     r15
    pop     r14
    pop     r13
    pop     r12
    pop     rbx
    pop     rbp
    ret
.size lh_vmrun, . - lh_vmrun
