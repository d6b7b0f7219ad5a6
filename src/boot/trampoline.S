# Where an application processor starts: real mode, CS:IP = page:0 after the second SIPI.
#
# smp.rs copies this page below 1 MiB and fills the words at its end. Straight from real to long mode: paging and
# protection are switched on by one write to CR0, then a far jump loads a 64-bit code segment.

.section .rodata
.code16
.balign 16
.global lh_trampoline
lh_trampoline:
    cli
    cld
    mov     ax, cs
    mov     ds, ax
    mov     eax, 0x660              # CR4: PAE, MCE, OSFXSR, OSXMMEXCPT
    mov     cr4, eax
    mov     eax, dword ptr [T_CR3]
    mov     cr3, eax
    mov     ecx, 0xc0000080         # EFER: LME and NXE alone, as in entry.S
    mov     eax, 0x900
    xor     edx, edx
    wrmsr
    .byte 0x66, 0x0f, 0x01, 0x16    # lgdt m16:32
    .word T_GDTR
    mov     eax, 0x80010023         # CR0: PE, MP, NE, WP, PG
    mov     cr0, eax
    .byte 0x66, 0xff, 0x2e          # jmp far m16:32
    .word T_FAR
.code64
lh_trampoline_64:
    xor     eax, eax
    mov     ds, eax
    mov     es, eax
    mov     ss, eax
    mov     fs, eax
    mov     gs, eax
    mov     rsp, [rip + lh_t_stack]
    mov     rdi, [rip + lh_t_argument]
    mov     rax, [rip + lh_t_entry]
    xor     ebp, ebp
    call    rax
    ud2
.balign 8
lh_t_gdt:
    .quad 0
    .quad 0x00af9a000000ffff
    .quad 0x00cf92000000ffff
.global lh_trampoline_words
lh_trampoline_words:                # smp.rs: struct Words
lh_t_gdtr:      .word 23
                .long 0             # linear address of lh_t_gdt
                .word 0
lh_t_far:       .long 0             # linear address of lh_trampoline_64
                .word 0x08
                .word 0
lh_t_cr3:       .quad 0
lh_t_stack:     .quad 0
lh_t_argument:  .quad 0
lh_t_entry:     .quad 0
.global lh_trampoline_end
lh_trampoline_end:

.set T_GDTR, lh_t_gdtr - lh_trampoline
.set T_FAR, lh_t_far - lh_trampoline
.set T_CR3, lh_t_cr3 - lh_trampoline
.global lh_trampoline_gdt_offset
.set lh_trampoline_gdt_offset, lh_t_gdt - lh_trampoline
.global lh_trampoline_64_offset
.set lh_trampoline_64_offset, lh_trampoline_64 - lh_trampoline
.code64
