//! The serial console (COM1) and `log`'s way to it.
//!
//! Polled 16550 transmitter, used at boot, for guests' console output and for records; never on the interrupt path. The
//! receiver interrupts, for the few words that the hypervisor understands (`levelhead::command`) and for the guest whose
//! terminal the console is.
#![expect(unsafe_code, reason = "port I/O to the one UART this module owns")]

use core::fmt::{self, Write};

use levelhead::command::{Command, Keyboard, Typed};
use levelhead::device::Fifo;
use levelhead::sync::Lock;
use log::{LevelFilter, Log, Metadata, Record};
use x86_64::instructions::port::Port;

const COM1: u16 = 0x3f8;
/// Received and sent bytes, and the registers of control (16550 data sheet 8.0), as offsets from there.
const DATA: u16 = 0;
const IER: u16 = 1;
const MCR: u16 = 4;
const LSR: u16 = 5;
const LSR_DATA_READY: u8 = 1 << 0;
const LSR_THR_EMPTY: u8 = 1 << 5;
/// The receiver interrupts.
const IER_RECEIVED: u8 = 1 << 0;
/// DTR, RTS, and the gate of the interrupt on a PC.
const MCR_LISTEN: u8 = 0x0b;
/// Bytes that are taken at one interrupt: far more than a FIFO holds.
const MOST_AT_ONCE: u32 = 64;
/// What is typed for a guest and waits for it: more than anybody types or pastes while a guest looks away.
const TYPED_BYTES: usize = 4096;
/// A UART that never becomes ready (absent: reads all-ones, so ready) must not stop the machine.
const READY_POLLS: u32 = 100_000;

static LINE: Lock<Uart> = Lock::new(Uart { unfinished: false });
static KEYBOARD: Lock<Keyboard> = Lock::new(Keyboard::new());
static TYPED: Lock<Fifo<TYPED_BYTES>> = Lock::new(Fifo::EMPTY);
static LOGGER: Logger = Logger;

struct Uart {
    /// A terminal's line has no end yet.
    unfinished: bool,
}

impl Uart {
    fn initialise() {
        // 115200 baud, 8 data bits, no parity, one stop bit, FIFO on (16550 data sheet 8.0).
        for (offset, value) in [(1, 0x00), (3, 0x80), (0, 0x01), (1, 0x00), (3, 0x03), (2, 0x07), (4, 0x03)] {
            Self::set(offset, value);
        }
    }

    fn put(byte: u8) {
        for _ in 0..READY_POLLS {
            if Self::read(LSR) & LSR_THR_EMPTY != 0 {
                break;
            }
            core::hint::spin_loop();
        }
        Self::set(DATA, byte);
    }

    /// A byte that was received.
    fn get() -> Option<u8> {
        let status = Self::read(LSR);
        // A UART that is absent reads all-ones.
        (status & LSR_DATA_READY != 0 && status != u8::MAX).then(|| Self::read(DATA))
    }

    fn read(register: u16) -> u8 {
        // SAFETY: COM1's registers belong to this module alone; reading one reaches no memory.
        unsafe { Port::<u8>::new(COM1 + register).read() }
    }

    fn set(register: u16, value: u8) {
        // SAFETY: COM1's registers belong to this module alone and cause no DMA or memory access.
        unsafe { Port::<u8>::new(COM1 + register).write(value) };
    }
}

impl Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                Self::put(b'\r');
            }
            Self::put(byte);
        }
        Ok(())
    }
}

struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        // The acpi crate narrates at info; its lines are ours only when somebody asks for detail.
        let foreign = !record.target().starts_with("levelhead");
        if foreign && record.level() >= log::Level::Info && log::max_level() < LevelFilter::Debug {
            return;
        }
        let target = record.target().strip_prefix("levelhead::").unwrap_or(record.target());
        print(format_args!("{:<5} {target}: {}\n", record.level(), record.args()));
    }

    fn flush(&self) {}
}

/// Sets the UART up and makes it `log`'s output. Called once, first of all.
pub(crate) fn initialise() {
    Uart::initialise();
    // It fails only when a logger was set before, and this is called once.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(LevelFilter::Info);
}

/// Has the receiver interrupt. The line's entry leads to the boot CPU already.
pub(crate) fn listen() {
    Uart::set(MCR, MCR_LISTEN);
    Uart::set(IER, IER_RECEIVED);
}

/// Makes the console a guest's terminal, or nobody's again. What was typed before is forgotten.
pub(crate) fn give_terminal(to_a_guest: bool) {
    KEYBOARD.with(|keyboard| keyboard.give(to_a_guest));
    TYPED.with(|typed| *typed = Fifo::EMPTY);
}

/// Whether something was typed for the guest whose terminal this is.
pub(crate) fn is_typed() -> bool {
    TYPED.with(|typed| !typed.is_empty())
}

/// Takes the next byte that was typed for the guest.
pub(crate) fn take_typed() -> Option<u8> {
    TYPED.with(Fifo::pop)
}

/// Takes what was received: the commands that were given. The rest waits for the guest; what there is no room for is lost, as on
/// any serial line. The interrupt is an edge, so the receiver is left empty, or interrupts anew.
pub(crate) fn commands() -> impl Iterator<Item = Command> {
    let mut left = MOST_AT_ONCE;
    core::iter::from_fn(move || {
        loop {
            left = left.checked_sub(1).or_else(|| {
                // Off and on is an edge if there is more.
                Uart::set(IER, 0);
                Uart::set(IER, IER_RECEIVED);
                None
            })?;
            let byte = Uart::get()?;
            match KEYBOARD.with(|keyboard| keyboard.push(byte)) {
                Some(Typed::Command(command)) => return Some(command),
                Some(Typed::Byte(byte)) => {
                    TYPED.with(|typed| typed.push(byte, TYPED_BYTES));
                }
                None => {}
            }
        }
    })
}

/// Prints without a level or prefix, on lines of its own.
pub(crate) fn print(args: fmt::Arguments<'_>) {
    LINE.with(|uart| {
        if core::mem::take(&mut uart.unfinished) {
            let _ = uart.write_str("\n");
        }
        // The transmitter cannot fail; see Uart::write_str.
        let _ = uart.write_fmt(args);
    });
}

/// Prints a byte of the guest whose terminal this is.
pub(crate) fn put(byte: u8) {
    LINE.with(|uart| {
        Uart::put(byte);
        uart.unfinished = byte != b'\n';
    });
}

/// Prints although the lock may be held by the code that is being reported on. Only for a machine that ends.
pub(crate) fn print_at_the_end(args: fmt::Arguments<'_>) {
    let _ = Uart { unfinished: false }.write_fmt(args);
}
