# The memory routines and strlen that compiled Rust calls by name and that no libc provides here, under names of their own:
# mod.rs gives them the real ones, tests/memory_routines.rs runs them on the host.
#
# String instructions: Rust loops with these names would be compiled into calls to themselves.

.section .text
.code64

# From so many bytes on eight at a time pay: whole images, and the memory of guests. The number is less than what the tests go through.
.set LARGE, 256

.macro FUNCTION name
.balign 16
.global \name
.type \name, @function
\name:
.endm

FUNCTION lh_memcpy
    mov     rax, rdi
    mov     rcx, rdx
    cmp     rdx, LARGE
    jae     1f
    rep movsb
    ret
1:  shr     rcx, 3
    rep movsq
    mov     ecx, edx
    and     ecx, 7
    rep movsb
    ret
.size lh_memcpy, . - lh_memcpy

FUNCTION lh_memmove
    mov     rax, rdi
    mov     rcx, rdx
    mov     r8, rdi
    sub     r8, rsi
    cmp     r8, rdx                 # unsigned: destination inside [source, source + n)
    jb      1f
    rep movsb
    ret
1:  lea     rdi, [rdi + rdx - 1]
    lea     rsi, [rsi + rdx - 1]
    std
    rep movsb
    cld
    ret
.size lh_memmove, . - lh_memmove

FUNCTION lh_memset
    mov     r8, rdi
    mov     eax, esi
    mov     rcx, rdx
    cmp     rdx, LARGE
    jae     1f
    rep stosb
    mov     rax, r8
    ret
1:  movzx   eax, al
    mov     r9, 0x0101010101010101
    imul    rax, r9
    shr     rcx, 3
    rep stosq
    mov     ecx, edx
    and     ecx, 7
    rep stosb
    mov     rax, r8
    ret
.size lh_memset, . - lh_memset

FUNCTION lh_memcmp
    xor     eax, eax
    mov     rcx, rdx
    test    rcx, rcx
    jz      1f
    repe cmpsb
    je      1f
    movzx   eax, byte ptr [rdi - 1] # rdi walks the first argument
    movzx   ecx, byte ptr [rsi - 1]
    sub     eax, ecx
1:  ret
.size lh_memcmp, . - lh_memcmp

FUNCTION lh_strlen
    xor     eax, eax
1:  cmp     byte ptr [rdi + rax], 0
    je      2f
    inc     rax
    jmp     1b
2:  ret
.size lh_strlen, . - lh_strlen
