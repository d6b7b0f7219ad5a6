/*
 * Counts the interrupts of QEMU's `edu` in a Linux guest, through the kernel's own uio_pci_generic: each round raises one,
 * waits for it, checks what the device says, acknowledges it and unmasks the function. What was raised, what uio told
 * and what /proc/interrupts counts must be the same number, and silence must follow.
 *
 *     edu ROUNDS
 *
 * It ends with 0 if all is well, after one line that begins with `edu: PASS`.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define EDU_STATUS 0x24
#define EDU_RAISE 0x60
#define EDU_ACKNOWLEDGE 0x64
#define PCI_COMMAND 4
#define PCI_COMMAND_INTX_DISABLE 0x400
#define PATIENCE_MS 20000
#define SILENCE_MS 200

static void give_up(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    printf("edu: FAIL ");
    vprintf(format, arguments);
    printf("\n");
    va_end(arguments);
    exit(1);
}

static int open_or_give_up(const char *path, int flags)
{
    int file = open(path, flags);
    if (file < 0)
        give_up("%s: %s", path, strerror(errno));
    return file;
}

/* The sum over all CPUs in the line of /proc/interrupts that names `uio_pci_generic`. */
static unsigned long counted(void)
{
    FILE *file = fopen("/proc/interrupts", "r");
    if (!file)
        give_up("/proc/interrupts: %s", strerror(errno));
    char line[4096];
    unsigned long sum = 0, lines = 0;
    while (fgets(line, sizeof line, file)) {
        if (!strstr(line, "uio_pci_generic"))
            continue;
        lines++;
        char *at = strchr(line, ':') + 1, *end;
        for (unsigned long value; value = strtoul(at, &end, 10), end != at; at = end)
            sum += value;
    }
    fclose(file);
    if (lines != 1)
        give_up("%lu lines of /proc/interrupts name uio_pci_generic", lines);
    return sum;
}

static uint64_t now_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static int ascending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

int main(int count, char **words)
{
    unsigned long rounds = count > 1 ? strtoul(words[1], NULL, 10) : 1000;
    if (rounds == 0)
        give_up("the number of rounds is no number");
    int events = open_or_give_up("/dev/uio0", O_RDWR);
    int config = open_or_give_up("/sys/class/uio/uio0/device/config", O_RDWR);
    int memory = open_or_give_up("/sys/class/uio/uio0/device/resource0", O_RDWR);
    volatile uint32_t *edu = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    if (edu == MAP_FAILED)
        give_up("mapping BAR 0: %s", strerror(errno));
    uint64_t *took = calloc(rounds, sizeof *took);
    if (!took)
        give_up("no memory for %lu times", rounds);

    unsigned long before = counted();
    uint32_t first = 0;
    for (unsigned long round = 0; round < rounds; round++) {
        uint32_t bit = 1u << round % 32, event;
        uint64_t start = now_ns();
        edu[EDU_RAISE / 4] = bit;
        struct pollfd waiting = { .fd = events, .events = POLLIN };
        if (poll(&waiting, 1, PATIENCE_MS) != 1)
            give_up("no interrupt in round %lu: /proc/interrupts counts %lu", round, counted() - before);
        if (read(events, &event, sizeof event) != sizeof event)
            give_up("reading /dev/uio0: %s", strerror(errno));
        if (round == 0)
            first = event;
        else if (event - first != round)
            give_up("uio tells of %u interrupts in round %lu", event - first + 1, round);
        if (edu[EDU_STATUS / 4] != bit)
            give_up("the device's status is %#x in round %lu", edu[EDU_STATUS / 4], round);
        edu[EDU_ACKNOWLEDGE / 4] = bit;
        uint16_t command;
        if (pread(config, &command, sizeof command, PCI_COMMAND) != sizeof command)
            give_up("reading Command: %s", strerror(errno));
        if (!(command & PCI_COMMAND_INTX_DISABLE))
            give_up("Command is %#x in round %lu: the interrupt did not disable INTx", command, round);
        command &= (uint16_t)~PCI_COMMAND_INTX_DISABLE;
        if (pwrite(config, &command, sizeof command, PCI_COMMAND) != sizeof command)
            give_up("writing Command: %s", strerror(errno));
        took[round] = now_ns() - start;
    }
    struct pollfd silent = { .fd = events, .events = POLLIN };
    if (poll(&silent, 1, SILENCE_MS) != 0)
        give_up("an interrupt that nobody raised");
    unsigned long interrupts = counted() - before;
    if (interrupts != rounds)
        give_up("%lu raised, /proc/interrupts counts %lu", rounds, interrupts);
    qsort(took, rounds, sizeof *took, ascending);
    printf("edu: PASS raised %lu, uio told %lu, /proc/interrupts counted %lu; a round took %lu us (median), %lu us (least)\n",
           rounds, rounds, interrupts, (unsigned long)(took[rounds / 2] / 1000), (unsigned long)(took[0] / 1000));
    return 0;
}
