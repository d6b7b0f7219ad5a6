/*
 * Counts the interrupts of QEMU's `edu` in a Linux guest, through the kernel's own uio_pci_generic, of as many as there are. In
 * a round each raises one, which is waited for, and what the device says is checked; only when all have done so are they
 * acknowledged and their functions unmasked, so that devices on one line are pending together. What was raised, what
 * uio told and what /proc/interrupts counts must be the same number, and silence must follow.
 *
 * On a line with several, uio tells of each interrupt as many times as devices are pending then; what it told is at least what
 * was raised there. The count of the line is exact with one CPU.
 *
 *     edu ROUNDS
 *
 * It ends with 0 if all is well, after one line that begins with `edu: PASS`.
 */
#define PROGRAM "edu"
#include "interrupts.h"

#include <stdbool.h>
#include <sys/mman.h>
#include <time.h>

#define EDU_STATUS 0x24
#define EDU_RAISE 0x60
#define EDU_ACKNOWLEDGE 0x64
#define PCI_COMMAND 4
#define PCI_COMMAND_INTX_DISABLE 0x400
#define MOST_DEVICES 32

struct device {
    volatile uint32_t *registers;
    int events, config;
    unsigned long irq;
    /* Whether no other device is on its line. */
    bool alone;
    /* What uio told last, and how much that is since the beginning. */
    uint32_t event;
    unsigned long told;
    /* What /proc/interrupts counted on its line before. */
    unsigned long before;
};

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

/* The device of that number. Whether there is one. */
static bool find(struct device *device, unsigned number)
{
    char node[32], folder[64];
    snprintf(node, sizeof node, "uio%u", number);
    snprintf(folder, sizeof folder, "/sys/class/uio/uio%u", number);
    device->events = open_in("/dev", node, O_RDWR);
    if (device->events < 0 && errno == ENOENT)
        return false;
    if (device->events < 0)
        give_up("/dev/%s: %s", node, strerror(errno));
    device->config = open_or_give_up(folder, "device/config", O_RDWR);
    device->irq = number_in(folder, "device/irq");
    device->event = (uint32_t)number_in(folder, "event");
    int memory = open_or_give_up(folder, "device/resource0", O_RDWR);
    device->registers = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    if (device->registers == MAP_FAILED)
        give_up("mapping BAR 0: %s", strerror(errno));
    device->before = counted(device->irq);
    return true;
}

static uint16_t command(const struct device *device)
{
    uint16_t command;
    if (pread(device->config, &command, sizeof command, PCI_COMMAND) != sizeof command)
        give_up("reading Command: %s", strerror(errno));
    return command;
}

/* Raises an interrupt and waits until the kernel has disabled INTx for it. */
static void raise_one(struct device *device, uint32_t bit, unsigned long round)
{
    device->registers[EDU_RAISE / 4] = bit;
    do {
        struct pollfd waiting = { .fd = device->events, .events = POLLIN };
        uint32_t event;
        if (poll(&waiting, 1, PATIENCE_MS) != 1)
            give_up("no interrupt in round %lu: /proc/interrupts counts %lu", round,
                    counted(device->irq) - device->before);
        if (read(device->events, &event, sizeof event) != sizeof event)
            give_up("reading what uio tells: %s", strerror(errno));
        device->told += event - device->event;
        device->event = event;
        if (device->alone && device->told != round + 1)
            give_up("uio tells of %lu interrupts in round %lu", device->told, round);
        if (device->alone && !(command(device) & PCI_COMMAND_INTX_DISABLE))
            give_up("Command is %#x in round %lu: the interrupt did not disable INTx", command(device), round);
    } while (!(command(device) & PCI_COMMAND_INTX_DISABLE));
    if (device->registers[EDU_STATUS / 4] != bit)
        give_up("the device's status is %#x in round %lu", device->registers[EDU_STATUS / 4], round);
}

static void acknowledge(const struct device *device, uint32_t bit)
{
    device->registers[EDU_ACKNOWLEDGE / 4] = bit;
    uint16_t enabled = command(device) & (uint16_t)~PCI_COMMAND_INTX_DISABLE;
    if (pwrite(device->config, &enabled, sizeof enabled, PCI_COMMAND) != sizeof enabled)
        give_up("writing Command: %s", strerror(errno));
}

int main(int count, char **words)
{
    unsigned long rounds = count > 1 ? strtoul(words[1], NULL, 10) : 1000;
    if (rounds == 0)
        give_up("the number of rounds is no number");
    struct device all[MOST_DEVICES];
    unsigned devices = 0;
    while (devices < MOST_DEVICES && find(memset(&all[devices], 0, sizeof *all), devices))
        devices++;
    if (devices == 0)
        give_up("there is no device");
    for (struct device *one = all; one < all + devices; one++) {
        one->alone = true;
        for (struct device *other = all; other < all + devices; other++)
            one->alone &= other == one || other->irq != one->irq;
    }
    uint64_t *took = calloc(rounds, sizeof *took);
    if (!took)
        give_up("no memory for %lu times", rounds);

    for (unsigned long round = 0; round < rounds; round++) {
        uint32_t bit = 1u << round % 32;
        uint64_t start = now_ns();
        for (struct device *one = all; one < all + devices; one++)
            raise_one(one, bit, round);
        for (struct device *one = all; one < all + devices; one++)
            acknowledge(one, bit);
        took[round] = now_ns() - start;
    }
    usleep(SILENCE_MS * 1000);
    unsigned long told = 0, interrupts = 0;
    for (struct device *one = all; one < all + devices; one++) {
        struct pollfd silent = { .fd = one->events, .events = POLLIN };
        if (one->alone && poll(&silent, 1, 0) != 0)
            give_up("an interrupt that nobody raised");
        told += one->told;
        struct device *first = all;
        while (first->irq != one->irq)
            first++;
        if (first == one)
            interrupts += counted(one->irq) - one->before;
    }
    unsigned long raised = rounds * devices;
    if (interrupts != raised)
        give_up("%lu raised, /proc/interrupts counts %lu", raised, interrupts);
    qsort(took, rounds, sizeof *took, ascending);
    printf("edu: PASS raised %lu, uio told %lu, /proc/interrupts counted %lu; a round took %lu us (median), %lu us (least)\n",
           raised, told, interrupts, (unsigned long)(took[rounds / 2] / 1000), (unsigned long)(took[0] / 1000));
    return 0;
}
