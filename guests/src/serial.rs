//! Text on COM1, and the macro that writes it.
//!
//! The transmitter is polled; the line settings are the usual 115200 8N1.
#![expect(unsafe_code, reason = "port I/O")]

use core::fmt;

use crate::cpu::{in8, out8};

/// COM1's first port; the registers follow (16550: 8.0).
const COM1: u16 = 0x3f8;
const INTERRUPT_ENABLE: u16 = COM1 + 1;
const FIFO_CONTROL: u16 = COM1 + 2;
const LINE_CONTROL: u16 = COM1 + 3;
const MODEM_CONTROL: u16 = COM1 + 4;
const LINE_STATUS: u16 = COM1 + 5;

/// Line Status: the transmit holding register is empty.
const TRANSMITTER_READY: u8 = 1 << 5;

/// How often the transmitter is asked before the byte is sent anyway: text may be lost, time not.
const PATIENCE: u32 = 100_000;

/// Sets the line up.
pub fn init() {
    const DIVISOR_LATCH: u8 = 1 << 7;
    const EIGHT_DATA_BITS: u8 = 3;
    for (port, value) in [
        (INTERRUPT_ENABLE, 0),
        (LINE_CONTROL, DIVISOR_LATCH),
        (COM1, 1),
        (INTERRUPT_ENABLE, 0),
        (LINE_CONTROL, EIGHT_DATA_BITS),
        (FIFO_CONTROL, 1),
        (MODEM_CONTROL, 3),
    ] {
        // SAFETY: a UART reaches no memory.
        unsafe { out8(port, value) };
    }
}

/// The transmitter, as a target of `write!`. Line feeds become carriage return and line feed.
#[derive(Clone, Copy, Debug)]
pub struct Com1;

impl fmt::Write for Com1 {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                send(b'\r');
            }
            send(byte);
        }
        Ok(())
    }
}

fn send(byte: u8) {
    for _ in 0..PATIENCE {
        // SAFETY: a UART reaches no memory.
        if unsafe { in8(LINE_STATUS) } & TRANSMITTER_READY != 0 {
            break;
        }
    }
    // SAFETY: a UART reaches no memory.
    unsafe { out8(COM1, byte) };
}
