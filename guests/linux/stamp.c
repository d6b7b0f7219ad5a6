/*
 * Tells where a Linux guest is in time, for `cargo xtask bench guest`: the time stamp counter, which counts instructions where QEMU
 * does, and for how many nanoseconds the kernel's CPUs have had nothing to do.
 *
 *     stamp NAME
 */
#define PROGRAM "stamp"
#include "interrupts.h"

#include <x86intrin.h>

int main(int count, char **words)
{
    FILE *file = fopen("/proc/timer_list", "r");
    if (!file)
        give_up("/proc/timer_list: %s", strerror(errno));
    char line[512];
    unsigned long long idle = 0, one, found = 0;
    while (fgets(line, sizeof line, file)) {
        if (sscanf(line, " .idle_sleeptime : %llu nsecs", &one) == 1) {
            idle += one;
            found++;
        }
    }
    fclose(file);
    if (!found)
        give_up("/proc/timer_list does not say how long CPUs slept");
    printf("stamp: %s tsc=%llu idle_ns=%llu\n", count > 1 ? words[1] : "", (unsigned long long)__rdtsc(), idle);
    return 0;
}
