/*
 * A kernel in the form of Linux's bzImage that checks what the boot protocol promises it at its 64-bit entry: the mode,
 * the segments and their descriptors, the page tables, and the zero page with command line, memory map and initial RAM
 * disk, which is this file itself (boot.rst, "64-bit Boot Protocol"). It prints on COM1 and ends by port 0xf4, or, where its
 * command line ends so, by powering itself `off` or by a `reset`.
 */
#include <stdint.h>

#define SETUP_BYTES 0x400

/* What is loaded, to and from where. */
extern const uint8_t kernel_start[], kernel_end[];

/* What the entry code found, before anything was touched. */
struct entry {
    uint64_t cr0, cr4, flags, efer;
    uint64_t code, data, extra, stack;
};

__asm__(".pushsection .entry, \"ax\"\n"
        "mov %cr0, %rax; mov %rax, entry\n"
        "mov %cr4, %rax; mov %rax, entry + 8\n"
        "mov $stack_top, %esp\n"
        "pushf; pop %rax; mov %rax, entry + 16\n"
        "mov $0xc0000080, %ecx; rdmsr; mov %eax, entry + 24\n"
        "mov %cs, %ax; mov %ax, entry + 32\n"
        "mov %ds, %ax; mov %ax, entry + 40\n"
        "mov %es, %ax; mov %ax, entry + 48\n"
        "mov %ss, %ax; mov %ax, entry + 56\n"
        /* The descriptors behind the selectors are used for the first time here. */
        "mov $0x18, %eax; mov %eax, %ds; mov %eax, %es; mov %eax, %ss\n"
        "pushq $0x10; pushq $reloaded; lretq\n"
        "reloaded: mov %rsi, %rdi\n"
        "call kernel\n"
        "stop: cli; hlt; jmp stop\n"
        ".popsection\n"
        ".lcomm stack, 4096\n"
        ".set stack_top, stack + 4096\n");

extern volatile struct entry entry;
volatile struct entry entry;
/* In the zeros behind what is loaded. */
static volatile uint8_t zeros[4096];

static void out8(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }

static void print(const char *text)
{
    for (; *text; text++)
        out8(0x3f8, (uint8_t)*text);
}

static void end(uint8_t code)
{
    for (;;)
        out8(0xf4, code);
}

static void demand(int holds, const char *what)
{
    if (holds)
        return;
    print("bzimage: FAIL ");
    print(what);
    print("\n");
    end(1);
}

static uint32_t word(const uint8_t *at) { return *(const volatile uint32_t *)at; }
static uint64_t quad(const uint8_t *at) { return *(const volatile uint64_t *)at; }

static int begins(const uint8_t *at, const char *text)
{
    for (; *text; at++, text++)
        if (*at != (uint8_t)*text)
            return 0;
    return 1;
}

static int equal(const uint8_t *at, const char *text)
{
    for (; *text; at++, text++)
        if (*at != (uint8_t)*text)
            return 0;
    return *at == 0;
}

void kernel(const uint8_t *zero_page)
{
    demand((entry.cr0 & 0x80000001) == 0x80000001, "protection and paging are on");
    demand((entry.cr4 & 0x20) && (entry.efer & 0x500) == 0x500, "long mode is active");
    demand(!(entry.flags & 0x200), "interrupts are disabled");
    demand(entry.code == 0x10 && entry.data == 0x18 && entry.extra == 0x18 && entry.stack == 0x18, "selectors");
    for (unsigned i = 0; i < sizeof zeros; i++)
        demand(zeros[i] == 0, "zeros follow what is loaded");
    for (uint64_t at = 0; at < 32u << 20; at += 2u << 20)
        (void)*(volatile uint8_t *)at;

    demand(word(zero_page + 0x202) == 0x53726448 && word(zero_page + 0x260) == 1u << 20, "the setup header");
    demand(zero_page[0x210] != 0, "type_of_loader");
    demand(zero_page[0x1ef] == 0, "the sentinel");
    const uint8_t *line = (const uint8_t *)(uint64_t)word(zero_page + 0x228);
    const uint8_t *end_of_line = line;
    while (*end_of_line)
        end_of_line++;
    demand(begins(line, "tsc_early_khz="), "the rate of the time stamp counter");
    while (!begins(line, "one ") && line < end_of_line)
        line++;
    demand(begins(line, "one two"), "the command line");
    demand(begins((const uint8_t *)(uint64_t)word(zero_page + 0x70), "RSD PTR "), "the ACPI tables");

    uint64_t memory = 0;
    for (unsigned i = 0; i < zero_page[0x1e8]; i++) {
        const uint8_t *region = zero_page + 0x2d0 + 20 * i;
        if (word(region + 16) == 1)
            memory += quad(region + 8);
    }
    demand(memory == (32u << 20) - 0x60000, "the memory map");

    const uint8_t *disk = (const uint8_t *)(uint64_t)word(zero_page + 0x218);
    uint32_t bytes = word(zero_page + 0x21c);
    demand(((uint64_t)disk & 0xfff) == 0 && bytes == SETUP_BYTES + (uint32_t)(kernel_end - kernel_start),
           "where the initial RAM disk is");
    demand(word(disk + 0x202) == 0x53726448, "the start of the initial RAM disk");
    for (uint32_t i = 0x200; kernel_start + i < (const uint8_t *)&entry; i++)
        demand(disk[SETUP_BYTES + i] == kernel_start[i], "the rest of the initial RAM disk");
    print("bzimage: PASS\n");
    if (equal(end_of_line - 4, " off"))
        out8(0x600, 5 << 2 | 1 << 5);
    if (equal(end_of_line - 6, " reset"))
        out8(0xcf9, 6);
    end(0x10);
}
