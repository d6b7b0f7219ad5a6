/*
 * A kernel that knows nothing of Levelhead: 32-bit, Multiboot 1 without address fields, no paging. It sets up the
 * machine as such kernels do (its own GDT and IDT, the 8259s silenced, local APIC and IO-APIC by memory, PCI by
 * CF8/CFC), counts the interrupts of every `edu` it finds, prints on COM1 and port 0xe9, and ends by port 0xf4.
 *
 * Words of its command line: `pin=N` names the IO-APIC pin where the q35 rule (20 + slot % 4) does not hold,
 * `lines=1` plays with the lines of the test device and with the 8259s, `paging=pse` and `paging=pae` turn paging on, `exit=N` is what it ends with instead of 16.
 */
#include <stdint.h>

#define LOCAL_APIC 0xfee00000u
#define IO_APIC 0xfec00000u
#define EDU 0x11e81234u
#define DEVICE_VECTOR 0x31
#define TIMER_VECTOR 0x40
#define IPI_VECTOR 0x41
#define EDGE_VECTOR 0x51
#define LEVEL_VECTOR 0x61
#define PIC_VECTOR 0x2b
#define PIC_IRQ 11u
#define EDGE_PIN 13u
#define LEVEL_PIN 14u
#define RTE_LEVEL 0x8000u
#define RTE_MASKED 0x10000u
#define ROUNDS 200u

struct multiboot {
    uint32_t flags, memory_low, memory_high, boot_device, command_line;
};

__asm__(".pushsection .multiboot, \"a\"\n"
        ".balign 4\n"
        ".long 0x1badb002, 0, -0x1badb002\n"
        ".popsection\n"
        ".globl _start\n"
        "_start: cli\n"
        "mov $stack_top, %esp\n"
        "push %ebx\n"
        "push %eax\n"
        "call kernel\n"
        "stop: cli\n"
        "hlt\n"
        "jmp stop\n"
        ".macro entry name, function\n"
        ".globl \\name\n"
        "\\name: pusha\n"
        "cld\n"
        "call \\function\n"
        "popa\n"
        "iret\n"
        ".endm\n"
        "entry device_entry, device_interrupt\n"
        "entry timer_entry, timer_interrupt\n"
        "entry ipi_entry, ipi_interrupt\n"
        "entry edge_entry, edge_interrupt\n"
        "entry pic_entry, pic_interrupt\n"
        "entry level_entry, level_interrupt\n"
        "entry other_entry, other_interrupt\n"
        ".lcomm stack, 16384\n"
        ".set stack_top, stack + 16384\n");

void device_entry(void), timer_entry(void), ipi_entry(void), edge_entry(void), level_entry(void), pic_entry(void), other_entry(void);

static volatile uint32_t interrupts, spurious, ticks, ipis, edges, levels, pics;
/* What the next handlers of the level do before the EOI: leave the line high, or lower and raise it. */
static volatile uint32_t leave, retrigger;
static uint32_t edu;

static uint32_t load(uint32_t at) { return *(volatile uint32_t *)at; }
static void store(uint32_t at, uint32_t value) { *(volatile uint32_t *)at = value; }

static void out8(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }
static void out16(uint16_t port, uint16_t value) { __asm__ volatile("outw %0, %1" ::"a"(value), "Nd"(port)); }
static void out32(uint16_t port, uint32_t value) { __asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port)); }

static uint8_t in8(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static uint16_t in16(uint16_t port)
{
    uint16_t value;
    __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static uint32_t in32(uint16_t port)
{
    uint32_t value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static void put(char c)
{
    while (!(in8(0x3fd) & 0x20))
        ;
    out8(0x3f8, (uint8_t)c);
}

static void print(const char *text)
{
    for (; *text; text++)
        put(*text);
}

static void print_number(const char *name, uint32_t value)
{
    print(name);
    print(" 0x");
    for (int shift = 28; shift >= 0; shift -= 4)
        put("0123456789abcdef"[value >> shift & 15]);
    put('\n');
}

static void print_string_io(uint16_t port, const char *text)
{
    uint32_t length = 0;
    while (text[length])
        length++;
    __asm__ volatile("rep outsb" : "+S"(text), "+c"(length) : "d"(port) : "memory");
}

static void demand(int holds, const char *what)
{
    if (holds)
        return;
    print("foreign: FAIL ");
    print(what);
    put('\n');
    for (;;)
        out8(0xf4, 1);
}

static void end_of_interrupt(void) { store(LOCAL_APIC + 0xb0, 0); }

void device_interrupt(void)
{
    uint32_t status = load(edu + 0x24);
    if (status) {
        store(edu + 0x64, status);
        interrupts++;
    } else {
        spurious++;
    }
    end_of_interrupt();
}

void timer_interrupt(void)
{
    ticks++;
    end_of_interrupt();
}

void ipi_interrupt(void)
{
    ipis++;
    end_of_interrupt();
}

/* The 8259s' interrupt ends at both of them, and not at the local APIC. */
void pic_interrupt(void)
{
    pics++;
    out8(0xa0, 0x20);
    out8(0x20, 0x20);
}

/* The test device's line to a pin. */
static void set_line(uint32_t pin, uint8_t high) { out8((uint16_t)(0x2000 + pin), high); }

void edge_interrupt(void)
{
    edges++;
    end_of_interrupt();
}

void level_interrupt(void)
{
    levels++;
    if (leave) {
        leave--;
    } else {
        set_line(LEVEL_PIN, 0);
        if (retrigger) {
            retrigger--;
            set_line(LEVEL_PIN, 1);
        }
    }
    end_of_interrupt();
}

void other_interrupt(void) { demand(0, "an exception or an unknown vector"); }

/* The number behind `key` on the command line, or `otherwise`. */
static uint32_t option(const char *line, const char *key, uint32_t otherwise)
{
    for (; *line; line++) {
        const char *at = line, *wanted = key;
        while (*wanted && *at == *wanted)
            at++, wanted++;
        if (*wanted)
            continue;
        uint32_t number = 0;
        for (; *at >= '0' && *at <= '9'; at++)
            number = number * 10 + (uint32_t)(*at - '0');
        return number;
    }
    return otherwise;
}

struct __attribute__((packed)) table_pointer {
    uint16_t limit;
    uint32_t base;
};

static void set_up_tables(void)
{
    static const uint64_t segments[] = {0, 0x00cf9b000000ffff, 0x00cf93000000ffff};
    static uint64_t gates[256];
    for (int vector = 0; vector < 256; vector++) {
        void (*target)(void) = vector == DEVICE_VECTOR  ? device_entry
                               : vector == TIMER_VECTOR ? timer_entry
                               : vector == IPI_VECTOR   ? ipi_entry
                               : vector == EDGE_VECTOR  ? edge_entry
                               : vector == LEVEL_VECTOR ? level_entry
                               : vector == PIC_VECTOR   ? pic_entry
                                                        : other_entry;
        uint32_t at = (uint32_t)target;
        gates[vector] = (uint64_t)(at >> 16) << 48 | 0x8e00ull << 32 | 8 << 16 | (at & 0xffff);
    }
    struct table_pointer gdt = {sizeof segments - 1, (uint32_t)segments};
    struct table_pointer idt = {sizeof gates - 1, (uint32_t)gates};
    __asm__ volatile("lgdt %0\n"
                     "ljmp $8, $1f\n"
                     "1: mov %2, %%ds\n mov %2, %%es\n mov %2, %%fs\n mov %2, %%gs\n mov %2, %%ss\n"
                     "lidt %1"
                     :
                     : "m"(gdt), "m"(idt), "r"(16)
                     : "memory");
}

/* Identity maps of 4 GiB by large pages: 4 MiB in two levels, 2 MiB in three. */
static void turn_paging_on(int pae)
{
    static uint64_t directories[4 * 512] __attribute__((aligned(4096)));
    static uint64_t top[4] __attribute__((aligned(32)));
    uint32_t root, features;
    if (pae) {
        for (uint32_t n = 0; n < 4 * 512; n++)
            directories[n] = (uint64_t)n << 21 | 0x83;
        for (uint32_t n = 0; n < 4; n++)
            top[n] = (uint32_t)&directories[n * 512] | 1;
        root = (uint32_t)top, features = 0x20;
    } else {
        for (uint32_t n = 0; n < 1024; n++)
            ((uint32_t *)directories)[n] = n << 22 | 0x83;
        root = (uint32_t)directories, features = 0x10;
    }
    uint32_t cr4, cr0;
    __asm__ volatile("mov %%cr4, %0" : "=r"(cr4));
    __asm__ volatile("mov %0, %%cr4\n mov %1, %%cr3" ::"r"(cr4 | features), "r"(root) : "memory");
    __asm__ volatile("mov %%cr0, %0" : "=r"(cr0));
    __asm__ volatile("mov %0, %%cr0" ::"r"(cr0 | 0x80010000) : "memory");
}

static void silence_8259s(void)
{
    static const uint8_t words[][2] = {{0x20, 0x11}, {0xa0, 0x11}, {0x21, 0x20}, {0xa1, 0x28}, {0x21, 4},
                                       {0xa1, 2},    {0x21, 1},    {0xa1, 1},    {0x21, 0xff}, {0xa1, 0xff}};
    for (unsigned n = 0; n < sizeof words / sizeof words[0]; n++)
        out8(words[n][0], words[n][1]);
}

static void set_up_local_apic(void)
{
    uint32_t low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(0x1b));
    demand((low & 0xfffff000) == LOCAL_APIC, "the local APIC is elsewhere");
    __asm__ volatile("wrmsr" ::"a"(low | 0x800), "d"(high), "c"(0x1b));
    store(LOCAL_APIC + 0xe0, 0xffffffff);
    store(LOCAL_APIC + 0xd0, 1u << 24);
    for (uint32_t entry = 0x320; entry <= 0x370; entry += 16)
        store(LOCAL_APIC + entry, 1u << 16);
    store(LOCAL_APIC + 0x80, 0);
    store(LOCAL_APIC + 0xf0, 0x1ff);
}

static uint32_t io_apic(uint32_t index)
{
    store(IO_APIC, index);
    return load(IO_APIC + 0x10);
}

static void set_io_apic(uint32_t index, uint32_t value)
{
    store(IO_APIC, index);
    store(IO_APIC + 0x10, value);
}

static void mask_all_pins(void)
{
    uint32_t pins = (io_apic(1) >> 16 & 0xff) + 1;
    print_number("foreign: IO-APIC pins", pins);
    for (uint32_t pin = 0; pin < pins; pin++) {
        set_io_apic(0x10 + 2 * pin, 1u << 16);
        set_io_apic(0x11 + 2 * pin, 0);
    }
}

/* Level-triggered, active low. Kernels write the halves in either order. */
static void open_pin(uint32_t pin, int high_half_first)
{
    uint32_t low = 0xa000 | DEVICE_VECTOR, high = load(LOCAL_APIC + 0x20) & 0xff000000;
    if (high_half_first)
        set_io_apic(0x11 + 2 * pin, high);
    set_io_apic(0x10 + 2 * pin, low);
    if (!high_half_first)
        set_io_apic(0x11 + 2 * pin, high);
    demand((io_apic(0x10 + 2 * pin) & ~0x5000u) == low, "a redirection entry reads otherwise");
}

static void select(uint32_t slot, uint32_t function, uint32_t at)
{
    out32(0xcf8, 1u << 31 | slot << 11 | function << 8 | at);
}

static uint32_t config(uint32_t slot, uint32_t function, uint32_t at)
{
    select(slot, function, at);
    return in32(0xcfc);
}

static void size_bars(uint32_t slot, uint32_t function)
{
    for (uint32_t at = 0x10; at < 0x28; at += 4) {
        uint32_t before = config(slot, function, at);
        out32(0xcfc, 0xffffffff);
        uint32_t size = in32(0xcfc);
        out32(0xcfc, before);
        demand(in32(0xcfc) == before, "a BAR does not take its address back");
        if (before)
            print_number("foreign:   BAR of size", ~(size & (before & 1 ? ~3u : ~15u)) + 1);
    }
}

static void raise(uint32_t how)
{
    uint32_t before = interrupts;
    store(edu + 0x60, how);
    while (interrupts == before)
        __asm__ volatile("pause");
}

static void raise_and_halt(uint32_t how)
{
    uint32_t before = interrupts;
    __asm__ volatile("cli");
    store(edu + 0x60, how);
    while (interrupts == before)
        __asm__ volatile("sti\n hlt\n cli");
    __asm__ volatile("sti");
}

static void use_edu(uint32_t slot, uint32_t pin)
{
    edu = config(slot, 0, 0x10) & ~15u;
    select(slot, 0, 4);
    out16(0xcfc, (in16(0xcfc) | 6) & 0xfbff);
    print_number("foreign: edu in slot", slot);
    demand((load(edu) & 0xff) == 0xed, "edu does not know itself");
    store(edu + 4, 0x12345678);
    demand(load(edu + 4) == ~0x12345678u, "edu is not alive");

    interrupts = spurious = 0;
    open_pin(pin, 1);
    for (uint32_t round = 1; round <= ROUNDS; round++)
        raise(round);
    for (uint32_t round = 1; round <= ROUNDS; round++)
        raise_and_halt(round);
    set_io_apic(0x10 + 2 * pin, 1u << 16 | 0xa000);
    store(edu + 0x60, 1);
    open_pin(pin, 0);
    while (interrupts == 2 * ROUNDS)
        __asm__ volatile("pause");
    store(edu + 0x20, 0x80);
    store(edu + 8, 5);
    while (interrupts == 2 * ROUNDS + 1)
        __asm__ volatile("pause");
    demand(load(edu + 8) == 120, "5! is not 120");
    demand(interrupts == 2 * ROUNDS + 2 && spurious == 0, "not as many interrupts as were raised");
    print_number("foreign: interrupts", interrupts);
}

static void write_entry(uint32_t pin, uint32_t low)
{
    set_io_apic(0x11 + 2 * pin, load(LOCAL_APIC + 0x20) & 0xff000000);
    set_io_apic(0x10 + 2 * pin, low);
}

/* After what was just done no more interrupts have come than these. Waiting is for those that would be too many. */
static void demand_counts(uint32_t edges_wanted, uint32_t levels_wanted, const char *what)
{
    for (int n = 0; n < 1000; n++)
        __asm__ volatile("pause");
    demand(edges == edges_wanted && levels == levels_wanted, what);
}

static void demand_pics(uint32_t wanted, const char *what)
{
    for (int n = 0; n < 1000; n++)
        __asm__ volatile("pause");
    demand(pics == wanted, what);
}

static void pulse_pic(void)
{
    set_line(PIC_IRQ, 1);
    set_line(PIC_IRQ, 0);
}

/* The test device's lines are inputs of the 8259s too, whose output goes through the local APIC's LINT0. */
static void play_with_8259s(void)
{
    out8(0x4d0, 0), out8(0x4d1, 0); /* Edges. */
    pulse_pic();
    demand_pics(0, "an interrupt that the 8259s mask");
    out8(0x21, 0xfb), out8(0xa1, 0xff & ~(1 << (PIC_IRQ - 8)));
    demand_pics(0, "an interrupt that LINT0 masks");
    store(LOCAL_APIC + 0x350, 0x700);
    demand_pics(1, "an edge that was kept behind both masks");
    pulse_pic();
    demand_pics(2, "an edge");

    __asm__ volatile("cli");
    pulse_pic();
    store(LOCAL_APIC + 0x310, 0);
    store(LOCAL_APIC + 0x300, 1u << 18 | 1u << 14 | IPI_VECTOR);
    demand_pics(2, "interrupts are off");
    __asm__ volatile("sti");
    demand_pics(3, "both controllers at once");
    demand(ipis == 1, "both controllers at once, and the local APIC's is lost");
    ipis = 0;

    __asm__ volatile("cli");
    pulse_pic();
    __asm__ volatile("sti\n hlt");
    demand_pics(4, "an interrupt that ends a halt");

    out8(0x20, 0x0b);
    demand(in8(0x20) == 0 && in8(0x21) == 0xfb, "what the 8259s say");
    store(LOCAL_APIC + 0x350, 1u << 16);
    silence_8259s();
    pulse_pic();
    demand_pics(4, "an interrupt of silenced 8259s");
    print("foreign: the pair of 8259s\n");
}

static void play_with_lines(void)
{
    write_entry(EDGE_PIN, EDGE_VECTOR);
    write_entry(LEVEL_PIN, RTE_LEVEL | LEVEL_VECTOR);
    demand_counts(0, 0, "an interrupt of a line that is low");

    set_line(EDGE_PIN, 1);
    demand_counts(1, 0, "a rising edge");
    set_line(EDGE_PIN, 1);
    demand_counts(1, 0, "no edge, as it was high");
    set_line(EDGE_PIN, 0);
    set_line(EDGE_PIN, 1);
    demand_counts(2, 0, "another edge");
    set_line(EDGE_PIN, 0);
    write_entry(EDGE_PIN, RTE_MASKED | EDGE_VECTOR);
    set_line(EDGE_PIN, 1);
    write_entry(EDGE_PIN, EDGE_VECTOR);
    demand_counts(2, 0, "an edge that was masked is lost");
    set_line(EDGE_PIN, 0);

    set_line(LEVEL_PIN, 1);
    demand_counts(2, 1, "a level, lowered by its handler");
    retrigger = 1;
    set_line(LEVEL_PIN, 1);
    demand_counts(2, 3, "a level, lowered and raised before the EOI");
    leave = 2;
    set_line(LEVEL_PIN, 1);
    demand_counts(2, 6, "a level that is left high by two handlers");
    write_entry(LEVEL_PIN, RTE_MASKED | RTE_LEVEL | LEVEL_VECTOR);
    set_line(LEVEL_PIN, 1);
    demand_counts(2, 6, "a level that is masked");
    write_entry(LEVEL_PIN, RTE_LEVEL | LEVEL_VECTOR);
    demand_counts(2, 7, "a level that was masked");
    write_entry(LEVEL_PIN, RTE_MASKED | RTE_LEVEL | LEVEL_VECTOR);
    set_line(LEVEL_PIN, 1);
    set_line(LEVEL_PIN, 0);
    write_entry(LEVEL_PIN, RTE_LEVEL | LEVEL_VECTOR);
    demand_counts(2, 7, "a level that came and went while masked");

    __asm__ volatile("cli");
    set_line(EDGE_PIN, 1);
    set_line(LEVEL_PIN, 1);
    demand_counts(2, 7, "interrupts are off");
    __asm__ volatile("sti");
    demand_counts(3, 8, "both at once");
    set_line(EDGE_PIN, 0);

    out32(0xe0, 0x44332211);
    out8(0xe1, 0xaa);
    out32(0xe4, 0);
    demand(in32(0xe0) == 0x4433aa11 && in16(0xe2) == 0x4433 && in8(0xe1) == 0xaa, "the register at 0xe0");
    print("foreign: lines of the test device, edge and level\n");
}

/* Read-modify-write and string instructions on a register, as compilers make them. */
static void touch_registers_oddly(void)
{
    volatile uint32_t *priority = (volatile uint32_t *)(LOCAL_APIC + 0x80);
    uint32_t other = 0x40;
    *priority = 0x20;
    __asm__ volatile("lock orl $0x10, %0" : "+m"(*priority));
    demand(*priority == 0x30, "OR to a register");
    __asm__ volatile("xchg %1, %0" : "+m"(*priority), "+r"(other));
    demand(*priority == 0x40 && other == 0x30, "XCHG with a register");
    __asm__ volatile("andl $0, %0" : "+m"(*priority));
    const void *from = (const void *)(LOCAL_APIC + 0x30);
    uint32_t version;
    __asm__ volatile("lodsl" : "=a"(version), "+S"(from) : : "memory");
    demand(version == load(LOCAL_APIC + 0x30), "LODS from a register");
}

void kernel(uint32_t magic, const struct multiboot *info)
{
    out8(0x3f9, 0), out8(0x3fb, 0x80), out8(0x3f8, 1), out8(0x3f9, 0), out8(0x3fb, 3), out8(0x3fa, 7);
    demand(magic == 0x2badb002, "the loader's magic number");
    demand((info->flags & 5) == 5, "no memory size or no command line");
    const char *line = (const char *)info->command_line;
    print("foreign: started as ");
    print(line);
    put('\n');
    print_number("foreign: KiB above 1 MiB", info->memory_high);

    set_up_tables();
    silence_8259s();
    for (const char *at = line; *at; at++)
        if (at[0] == 'p' && at[1] == 'a' && at[2] == 'g' && at[3] == 'i')
            turn_paging_on(at[8] == 'a');
    set_up_local_apic();
    mask_all_pins();
    __asm__ volatile("sti");

    if (option(line, "lines=", 0)) {
        play_with_lines();
        play_with_8259s();
    }
    uint32_t devices = 0;
    for (uint32_t slot = 0; slot < 32; slot++) {
        uint32_t id = config(slot, 0, 0);
        if ((id & 0xffff) == 0xffff)
            continue;
        select(slot, 0, 0xc);
        print_number("foreign: PCI function", id);
        demand((in8(0xcfe) & 0x7f) <= 1, "an unknown header type");
        if (id != EDU)
            continue;
        size_bars(slot, 0);
        use_edu(slot, option(line, "pin=", 20 + slot % 4));
        devices++;
    }
    demand(devices > 0, "no edu");

    touch_registers_oddly();
    store(LOCAL_APIC + 0x3e0, 11);
    store(LOCAL_APIC + 0x320, 1u << 17 | TIMER_VECTOR);
    store(LOCAL_APIC + 0x380, 1000000);
    while (ticks < 10)
        __asm__ volatile("hlt");
    store(LOCAL_APIC + 0x320, 1u << 16);
    store(LOCAL_APIC + 0x310, 0);
    store(LOCAL_APIC + 0x300, 1u << 18 | 1u << 14 | IPI_VECTOR);
    while (!ipis)
        __asm__ volatile("pause");

    print_string_io(0xe9, "foreign: port 0xe9 speaks\n");
    print_string_io(0x3f8, "foreign: PASS\n");
    out8(0xf4, (uint8_t)option(line, "exit=", 16));
    demand(0, "lived on behind the exit port");
}
