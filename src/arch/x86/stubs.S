# Interrupt and exception entry: 256 stubs of 32 bytes each, so that stub n is at lh_stubs + 32 * n.
#
# Vectors 32 to 255 are what window.S returns: their stubs put the number into EAX, which is nobody's there, and close the
# window: no Rust, no SSE register, no red zone of interest (interrupts are open at one program point only, inside
# window.S). Exceptions are the hypervisor's own fault and do not return: they build a frame and report. An NMI is counted.
#
# GS base points to this CPU's PerCpu structure (cpu.rs asserts the offsets).

.set PERCPU_NMI_COUNT, 0
.set RFLAGS_IF, 1 << 9

.section .text
.code64
.balign 32
.global lh_stubs
.type lh_stubs, @function
lh_stubs:
.set vector, 0
.rept 256
    .balign 32
    .if vector == 2
        inc     qword ptr gs:[PERCPU_NMI_COUNT]
        iretq
    .elseif vector < 32
        .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
            push    0               # no error code from the CPU
        .endif
        push    vector
        jmp     lh_exception_entry
    .else
        mov     eax, vector
        and     qword ptr [rsp + 16], ~RFLAGS_IF
        iretq
    .endif
    .set vector, vector + 1
.endr
.size lh_stubs, . - lh_stubs

.balign 32
.type lh_exception_entry, @function
lh_exception_entry:                 # stack: vector, error code, RIP, CS, RFLAGS, RSP, SS
    push    r15
    push    r14
    push    r13
    push    r12
    push    r11
    push    r10
    push    r9
    push    r8
    push    rdi
    push    rsi
    push    rbp
    push    rbx
    push    rdx
    push    rcx
    push    rax
    cld
    mov     rdi, rsp
    and     rsp, -16
    call    lh_exception
    ud2
.size lh_exception_entry, . - lh_exception_entry
