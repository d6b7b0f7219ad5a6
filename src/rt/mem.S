# The five memory routines and strlen that compiled Rust calls by name and that no libc provides here.
# String instructions: Rust loops with these names would be compiled into calls to themselves.

.section .text
.code64

.macro FUNCTION name
.balign 16
.global \name
.type \name, @function
\name:
.endm

FUNCTION memcpy
    mov     rax, rdi
    mov     rcx, rdx
    rep movsb
    ret
.size memcpy, . - memcpy

FUNCTION memmove
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
.size memmove, . - memmove

FUNCTION memset
    mov     r8, rdi
    mov     eax, esi
    mov     rcx, rdx
    rep stosb
    mov     rax, r8
    ret
.size memset, . - memset

FUNCTION memcmp
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
.size memcmp, . - memcmp

FUNCTION bcmp
    jmp     memcmp
.size bcmp, . - bcmp

FUNCTION strlen
    xor     eax, eax
1:  cmp     byte ptr [rdi + rax], 0
    je      2f
    inc     rax
    jmp     1b
2:  ret
.size strlen, . - strlen
