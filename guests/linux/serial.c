/*
 * Has bytes echoed by a serial port of PCI in a Linux guest, through the kernel's own 8250 driver: puts the port into loopback, sends
 * and receives a text of another length in each round, and compares. Every byte must come back, and interrupts must have brought them.
 *
 *     serial TTY ROUNDS
 *
 * It ends with 0 if all is well, after one line that begins with `serial: PASS` and tells how often the kernel has counted the
 * port's line since it started. Each time it opens a port the driver makes it interrupt while the kernel has the line disabled
 * (Linux 6.1, serial8250_do_startup), which is one that /proc/interrupts never counts, so the line tells of openings too.
 */
#define PROGRAM "serial"
#include "interrupts.h"

#include <sys/ioctl.h>
#include <termios.h>

/* Four times what the transmitter holds at once. */
#define LONGEST 64
/* The kernel's, which the C library does not name. */
#ifndef TIOCM_LOOP
#define TIOCM_LOOP 0x8000
#endif

int main(int count, char **words)
{
    if (count < 2)
        give_up("no port is named");
    const char *name = words[1];
    unsigned long rounds = count > 2 ? strtoul(words[2], NULL, 10) : 1000;
    if (rounds == 0)
        give_up("the number of rounds is no number");
    char folder[64];
    if ((size_t)snprintf(folder, sizeof folder, "/sys/class/tty/%s", name) >= sizeof folder)
        give_up("%s is no port", name);
    unsigned long irq = number_in(folder, "irq");
    int port = open_or_give_up("/dev", name, O_RDWR | O_NOCTTY | O_NONBLOCK);
    struct termios raw;
    if (tcgetattr(port, &raw) != 0)
        give_up("%s: %s", name, strerror(errno));
    cfmakeraw(&raw);
    raw.c_cflag |= CLOCAL | CREAD;
    cfsetspeed(&raw, B115200);
    int loop = TIOCM_LOOP;
    if (tcsetattr(port, TCSANOW, &raw) != 0 || ioctl(port, TIOCMBIS, &loop) != 0 || tcflush(port, TCIOFLUSH) != 0)
        give_up("%s: %s", name, strerror(errno));

    unsigned long bytes = 0, before = counted(irq);
    for (unsigned long round = 0; round < rounds; round++) {
        unsigned char sent[LONGEST], back[LONGEST];
        size_t length = 1 + round % LONGEST, have = 0;
        for (size_t i = 0; i < length; i++)
            sent[i] = (unsigned char)(round * 31 + i * 7);
        if (write(port, sent, length) != (ssize_t)length)
            give_up("%s does not take %zu bytes in round %lu", name, length, round);
        while (have < length) {
            struct pollfd waiting = { .fd = port, .events = POLLIN };
            if (poll(&waiting, 1, PATIENCE_MS) != 1)
                give_up("%zu of %zu bytes came back in round %lu; /proc/interrupts counts %lu", have, length, round,
                        counted(irq) - before);
            ssize_t more = read(port, back + have, length - have);
            if (more < 0)
                give_up("%s: %s", name, strerror(errno));
            have += (size_t)more;
        }
        if (memcmp(sent, back, length) != 0)
            give_up("other bytes came back than were sent in round %lu", round);
        bytes += length;
    }
    usleep(SILENCE_MS * 1000);
    unsigned char surplus;
    if (read(port, &surplus, 1) >= 0)
        give_up("more bytes came back than were sent");
    /* At the least one for each round: none of its bytes can be seen without. */
    unsigned long interrupts = counted(irq);
    if (interrupts - before < rounds)
        give_up("%lu rounds, but /proc/interrupts counts %lu", rounds, interrupts - before);
    printf("serial: PASS %lu bytes sent to %s came back, opened 1 time, /proc/interrupts counted %lu\n", bytes, name,
           interrupts);
    return 0;
}
