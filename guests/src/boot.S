// From the loader's 32-bit protected mode to Rust in long mode.
//
//  1. Remember which loader came (EDI) and where its information block is (ESI).
//  2. Map the first 4 GiB one to one with 2 MiB pages, open to user mode for the one guest that goes there.
//  3. Enter long mode, with SSE on: precompiled `core` uses it.
//  4. Load flat segments and a stack, and call `guest_start(protocol, information)`.

// The note that makes this file a PVH image: name "Xen", type 18 (XEN_ELFNOTE_PHYS32_ENTRY), the entry address.
.section .note.pvh, "a", @note
.balign 4
    .long 4
    .long 8
    .long 18
    .asciz "Xen"
    .quad pvh_entry

// Multiboot 0.6.96, 3.1: flag bit 16 says that the address fields are valid, without which a 64-bit ELF file
// is refused.
.set MULTIBOOT_MAGIC, 0x1badb002
.set MULTIBOOT_FLAGS, 1 << 16

.section .multiboot, "a", @progbits
.balign 4
.globl multiboot_header
multiboot_header:
    .long MULTIBOOT_MAGIC
    .long MULTIBOOT_FLAGS
    .long -(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS)
    .long multiboot_header
    .long image_start
    .long image_file_end
    .long image_end
    .long multiboot_entry

.section .text.boot, "ax", @progbits
.code32
.globl pvh_entry
pvh_entry:
    xor edi, edi
    jmp boot_enter_long_mode

.globl multiboot_entry
multiboot_entry:
    mov edi, 1

boot_enter_long_mode:
    cli
    cld
    mov esi, ebx
    mov esp, offset boot_stack_top

    // Present, writable, user.
    mov eax, offset boot_pdpt
    or eax, 7
    mov [boot_pml4], eax
    mov eax, offset boot_page_directories
    or eax, 7
    xor ecx, ecx
.Lboot_next_directory:
    mov [boot_pdpt + ecx * 8], eax
    add eax, 0x1000
    inc ecx
    cmp ecx, 4
    jne .Lboot_next_directory

    // The same and "page size": 2 MiB.
    xor ecx, ecx
.Lboot_next_page:
    mov eax, ecx
    shl eax, 21
    or eax, 0x87
    mov [boot_page_directories + ecx * 8], eax
    inc ecx
    cmp ecx, 2048
    jne .Lboot_next_page

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
    // CR0: PG, WP, NE, MP, PE; EM and TS clear.
    mov eax, 0x80010033
    mov cr0, eax

    lgdt [boot_gdt_pointer]
    push 0x08
    mov eax, offset boot_long_mode
    push eax
    retf

.code64
boot_long_mode:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    lea rsp, [rip + boot_stack_top]
    // The switch leaves the upper halves undefined.
    mov edi, edi
    mov esi, esi
    xor ebp, ebp
    call guest_start
    ud2

.section .data.boot, "aw", @progbits
.balign 16
// The selectors are repeated in interrupts.rs. The last two words are the task state segment's, filled there.
.globl boot_gdt
boot_gdt:
    .quad 0
    .quad 0x00af9a000000ffff    // 0x08 kernel code, 64-bit
    .quad 0x00cf92000000ffff    // 0x10 kernel data
    .quad 0x00cff2000000ffff    // 0x18 user data
    .quad 0x00affa000000ffff    // 0x20 user code, 64-bit
    .quad 0, 0                  // 0x28 task state segment
boot_gdt_end:

.balign 8
boot_gdt_pointer:
    .word boot_gdt_end - boot_gdt - 1
    .quad boot_gdt

.section .bss.boot, "aw", @nobits
.balign 4096
.globl boot_pml4
boot_pml4:
    .skip 0x1000
boot_pdpt:
    .skip 0x1000
boot_page_directories:
    .skip 0x4000
boot_stack:
    .skip 0x10000
boot_stack_top:
