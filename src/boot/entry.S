# From the loader to Rust: PVH entry on the boot CPU.
#
#   1. find out where the image was loaded (position independent: `delta` = real - linked load address)
#   2. fill three small page tables: identity for 4 GiB, and the image at its high address
#   3. turn on PAE, long mode, NX and paging, SSE for the compiler's own code
#   4. jump high, switch to the boot stack, call lh_main(start_info, delta)
#
# State at entry (Xen's PVH ABI): 32-bit protected mode, paging off, interrupts off, EBX = physical address of
# hvm_start_info. ESP is not defined, so step 1 borrows the first four bytes of that structure as its stack.

.set VIRTUAL_BASE, 0xffffffff80000000
.set PRESENT_WRITE, 0x3
.set LARGE, 0x83

.section .note.pvh, "a", @note
.balign 4
    .long 4                         # name bytes
    .long 4                         # descriptor bytes
    .long 18                        # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long lh_entry32 - VIRTUAL_BASE

.section .text.entry, "ax"
.code32
.global lh_entry32
.type lh_entry32, @function
lh_entry32:
    cld
    mov     ecx, [ebx]              # keep the borrowed word
    lea     esp, [ebx + 4]
    call    1f
1:  pop     ebp
    mov     [ebx], ecx
    .byte   0x81, 0xed              # sub ebp, imm32, which the assembler cannot spell for a symbol
    .long   1b - VIRTUAL_BASE       # ebp = delta

    # PML4: entry 0 (identity) and entry 511 (image).
    lea     edi, [ebp + lh_boot_pml4 - VIRTUAL_BASE]
    lea     eax, [ebp + lh_boot_pdpt_low - VIRTUAL_BASE + PRESENT_WRITE]
    mov     [edi], eax
    lea     eax, [ebp + lh_boot_pdpt_high - VIRTUAL_BASE + PRESENT_WRITE]
    mov     [edi + 511 * 8], eax

    # Identity: 4 directories of 512 large pages.
    lea     edi, [ebp + lh_boot_pdpt_low - VIRTUAL_BASE]
    lea     eax, [ebp + lh_boot_pd_low - VIRTUAL_BASE + PRESENT_WRITE]
    mov     ecx, 4
2:  mov     [edi], eax
    add     eax, 4096
    add     edi, 8
    dec     ecx
    jnz     2b
    lea     edi, [ebp + lh_boot_pd_low - VIRTUAL_BASE]
    mov     eax, LARGE
    mov     ecx, 2048
3:  mov     [edi], eax
    mov     dword ptr [edi + 4], 0
    add     eax, 0x200000
    add     edi, 8
    dec     ecx
    jnz     3b

    # Image: VIRTUAL_BASE + n * 2 MiB -> delta + n * 2 MiB, 16 MiB and the 2 MiB below the link address.
    lea     edi, [ebp + lh_boot_pdpt_high - VIRTUAL_BASE]
    lea     eax, [ebp + lh_boot_pd_high - VIRTUAL_BASE + PRESENT_WRITE]
    mov     [edi + 510 * 8], eax
    lea     edi, [ebp + lh_boot_pd_high - VIRTUAL_BASE]
    lea     eax, [ebp + LARGE]
    mov     ecx, 9
4:  mov     [edi], eax
    add     eax, 0x200000
    add     edi, 8
    dec     ecx
    jnz     4b

    # CR4: PAE, MCE, OSFXSR, OSXMMEXCPT; a machine check without MCE would reset the machine without a word. EFER: LME
    # and NXE alone, whatever firmware had there: with FFXSR the world switch would leave the guest's XMM registers
    # where they are. CR0: PE, MP, NE, WP, PG; EM and TS off.
    lea     eax, [ebp + lh_boot_pml4 - VIRTUAL_BASE]
    mov     cr3, eax
    mov     eax, 0x660
    mov     cr4, eax
    mov     ecx, 0xc0000080
    mov     eax, 0x900
    xor     edx, edx
    wrmsr
    mov     eax, 0x80010023
    mov     cr0, eax

    # A far jump needs an absolute operand: build one on the spot in the boot stack's memory.
    lea     esp, [ebp + lh_boot_stack_top - VIRTUAL_BASE]
    lea     eax, [ebp + lh_boot_gdt - VIRTUAL_BASE]
    push    0
    push    eax
    sub     esp, 2
    mov     word ptr [esp], 23
    lgdt    [esp]
    add     esp, 10
    lea     eax, [ebp + lh_entry64_low - VIRTUAL_BASE]
    push    0x08
    push    eax
    retf
.size lh_entry32, . - lh_entry32

.code64
.type lh_entry64_low, @function
lh_entry64_low:
    movabs  rax, offset lh_entry64_high
    jmp     rax
.size lh_entry64_low, . - lh_entry64_low

.type lh_entry64_high, @function
lh_entry64_high:
    xor     eax, eax
    mov     ds, eax
    mov     es, eax
    mov     ss, eax
    mov     fs, eax
    mov     gs, eax
    lea     rsp, [rip + lh_boot_stack_top]
    mov     edi, ebx
    mov     esi, ebp
    xor     ebp, ebp
    call    lh_main
    ud2
.size lh_entry64_high, . - lh_entry64_high

.section .rodata
.balign 8
lh_boot_gdt:
    .quad 0
    .quad 0x00af9a000000ffff        # 0x08: 64-bit code
    .quad 0x00cf92000000ffff        # 0x10: data

.section .bss
.balign 4096
.global lh_boot_pml4
lh_boot_pml4:      .skip 4096
lh_boot_pdpt_low:  .skip 4096
lh_boot_pdpt_high: .skip 4096
lh_boot_pd_high:   .skip 4096
lh_boot_pd_low:    .skip 4096 * 4
