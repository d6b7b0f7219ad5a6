// The memory functions that compiled Rust calls and this target does not bring along (System V ABI).
//
// Written in assembly because the compiler may turn a Rust loop that copies into a call of the copy function.

.section .text.mem, "ax", @progbits
.code64

.globl memcpy
memcpy:
    mov rax, rdi
    mov rcx, rdx
    rep movsb
    ret

.globl memmove
memmove:
    mov rax, rdi
    mov rcx, rdx
    // Copying upwards is right unless the destination starts inside the source.
    mov r8, rdi
    sub r8, rsi
    cmp r8, rdx
    jb .Lmem_downwards
    rep movsb
    ret
.Lmem_downwards:
    lea rsi, [rsi + rdx - 1]
    lea rdi, [rdi + rdx - 1]
    std
    rep movsb
    cld
    ret

.globl memset
memset:
    mov r8, rdi
    mov eax, esi
    mov rcx, rdx
    rep stosb
    mov rax, r8
    ret

.globl memcmp
.globl bcmp
memcmp:
bcmp:
    xor ecx, ecx
.Lmem_compare:
    cmp rcx, rdx
    je .Lmem_equal
    movzx eax, byte ptr [rdi + rcx]
    movzx r8d, byte ptr [rsi + rcx]
    inc rcx
    sub eax, r8d
    je .Lmem_compare
    ret
.Lmem_equal:
    xor eax, eax
    ret

.globl strlen
strlen:
    xor eax, eax
.Lmem_count:
    cmp byte ptr [rdi + rax], 0
    je .Lmem_end
    inc rax
    jmp .Lmem_count
.Lmem_end:
    ret
