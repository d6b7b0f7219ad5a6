// Where another CPU of the guest starts: real mode, CS:IP = page:0, as the start-up message says.
//
// `smp.rs` copies this below 1 MiB. From real to long mode by one write to CR0, on the tables that `boot.S` made; then
// `guest_cpu(index)` on a stack of the CPU's own. CPUs are started one after the other, so one stack pointer serves all.

.section .text.smp, "ax", @progbits
.code16
.balign 16
.globl smp_trampoline
smp_trampoline:
    cli
    cld
    mov ax, cs
    mov ds, ax
    // CR4: PAE, OSFXSR, OSXMMEXCPT.
    mov eax, 0x620
    mov cr4, eax
    mov eax, offset boot_pml4
    mov cr3, eax
    // EFER.LME
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    .byte 0x66, 0x0f, 0x01, 0x16    // lgdt m16:32
    .word smp_gdt_pointer - smp_trampoline
    // CR0: PG, WP, NE, MP, PE; EM and TS clear.
    mov eax, 0x80010033
    mov cr0, eax
    .byte 0x66, 0xea                // jmp far 16:32
    .long smp_long_mode
    .word 0x08
.balign 4
smp_gdt_pointer:
    .word 7 * 8 - 1
    .long boot_gdt
.globl smp_trampoline_end
smp_trampoline_end:

.code64
smp_long_mode:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov rsp, [rip + smp_stack]
    mov edi, [rip + smp_index]
    xor ebp, ebp
    call guest_cpu
    ud2

.section .data.smp, "aw", @progbits
.balign 8
.globl smp_stack
smp_stack:
    .quad 0
.globl smp_index
smp_index:
    .quad 0
