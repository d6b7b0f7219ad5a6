// One stub per vector, 16 bytes apart, and the common path to `interrupt_dispatch(&mut Frame)`.
//
// The frame's layout is `interrupts::Frame`. Rust code uses SSE registers, so the interrupted ones are kept.

.section .text.interrupts, "ax", @progbits
.code64
.balign 16
.globl interrupt_stubs
interrupt_stubs:
.set vector, 0
.rept 256
.balign 16
    // Vectors 8, 10-14, 17, 21, 29 and 30 push an error code themselves (APM2 8.2).
.if vector < 32
.if ((0x60227d00 >> vector) & 1) == 0
    push 0
.endif
.else
    push 0
.endif
    push vector
    jmp interrupt_common
.set vector, vector + 1
.endr

interrupt_common:
    push rax
    push rcx
    push rdx
    push rbx
    push rbp
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    cld
    mov rdi, rsp
    // Five words by the CPU, two by the stub, fifteen here: the stack is 16-byte aligned.
    sub rsp, 512
    fxsave64 [rsp]
    call interrupt_dispatch
    fxrstor64 [rsp]
    add rsp, 512
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rbp
    pop rbx
    pop rdx
    pop rcx
    pop rax
    add rsp, 16
    iretq
