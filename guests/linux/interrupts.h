/*
 * What the programs of a Linux guest share: how they end, how they read the kernel's files, and what its count of a line is.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* How long an interrupt may take. */
#define PATIENCE_MS 20000
/* How long it has to be silent at the end. */
#define SILENCE_MS 200

__attribute__((format(printf, 1, 2), noreturn)) static void give_up(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    printf(PROGRAM ": FAIL ");
    vprintf(format, arguments);
    printf("\n");
    va_end(arguments);
    exit(1);
}

/* The file of that name in a folder, or -1 with `errno`. */
__attribute__((unused)) static int open_in(const char *folder, const char *name, int flags)
{
    char path[256];
    if ((size_t)snprintf(path, sizeof path, "%s/%s", folder, name) >= sizeof path)
        give_up("%s/%s is too long", folder, name);
    return open(path, flags);
}

__attribute__((unused)) static int open_or_give_up(const char *folder, const char *name, int flags)
{
    int file = open_in(folder, name, flags);
    if (file < 0)
        give_up("%s/%s: %s", folder, name, strerror(errno));
    return file;
}

/* The number in that file of a folder. */
__attribute__((unused)) static unsigned long number_in(const char *folder, const char *name)
{
    char text[32], *end;
    int file = open_or_give_up(folder, name, O_RDONLY);
    ssize_t length = read(file, text, sizeof text - 1);
    close(file);
    text[length < 0 ? 0 : length] = 0;
    unsigned long number = strtoul(text, &end, 10);
    if (end == text)
        give_up("%s/%s holds no number", folder, name);
    return number;
}

/* The sum over all CPUs in the line of /proc/interrupts of that interrupt. */
__attribute__((unused)) static unsigned long counted(unsigned long irq)
{
    FILE *file = fopen("/proc/interrupts", "r");
    if (!file)
        give_up("/proc/interrupts: %s", strerror(errno));
    char line[4096], *end;
    unsigned long sum = 0, lines = 0;
    while (fgets(line, sizeof line, file)) {
        unsigned long number = strtoul(line, &end, 10);
        if (end == line || *end != ':' || number != irq)
            continue;
        lines++;
        char *at = end + 1;
        for (unsigned long value; value = strtoul(at, &end, 10), end != at; at = end)
            sum += value;
    }
    fclose(file);
    if (lines != 1)
        give_up("%lu lines of /proc/interrupts are about interrupt %lu", lines, irq);
    return sum;
}
