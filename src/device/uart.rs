//! The transmitting half of a 16550 (PC16550D data sheet, section 8): a guest's console.
//!
//! Bytes the guest transmits come out as values, at once, so that the transmitter is always empty. Nothing is
//! ever received, and no interrupt is raised: the identification register always reads "none pending".

/// How many consecutive ports the chip answers at.
pub const UART_PORTS: u16 = 8;

const LCR_DIVISOR_ACCESS: u8 = 1 << 7;
const MCR_LOOPBACK: u8 = 1 << 4;
const MCR_WRITABLE: u8 = 0x1f;
const IER_WRITABLE: u8 = 0x0f;
const FCR_ENABLE: u8 = 1 << 0;
const IIR_NONE_PENDING: u8 = 1 << 0;
const IIR_FIFOS_ENABLED: u8 = 0b11 << 6;
/// Transmitter holding register and shift register empty.
const LSR_IDLE: u8 = 1 << 5 | 1 << 6;
/// Carrier, data set ready and clear to send: somebody listens.
const MSR_CONNECTED: u8 = 1 << 7 | 1 << 5 | 1 << 4;

/// One UART.
#[derive(Clone, Debug)]
pub struct Uart {
    divisor: u16,
    interrupt_enable: u8,
    fifos_enabled: bool,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
}

impl Uart {
    /// The chip after reset.
    pub const fn new() -> Self {
        Self {
            divisor: 0,
            interrupt_enable: 0,
            fifos_enabled: false,
            line_control: 0,
            modem_control: 0,
            scratch: 0,
        }
    }

    const fn divisor_access(&self) -> bool {
        self.line_control & LCR_DIVISOR_ACCESS != 0
    }

    /// The guest reads the byte at `offset` from the first port. Past the last port nothing answers:
    /// all-ones.
    pub fn read(&self, offset: u16) -> u8 {
        let [divisor_low, divisor_high] = self.divisor.to_le_bytes();
        match offset {
            0 if self.divisor_access() => divisor_low,
            // The receiver holds nothing.
            0 => 0,
            1 if self.divisor_access() => divisor_high,
            1 => self.interrupt_enable,
            2 => IIR_NONE_PENDING | if self.fifos_enabled { IIR_FIFOS_ENABLED } else { 0 },
            3 => self.line_control,
            4 => self.modem_control,
            5 => LSR_IDLE,
            6 => self.modem_status(),
            7 => self.scratch,
            _ => u8::MAX,
        }
    }

    /// The guest writes the byte at `offset` from the first port. Returns the byte that leaves the
    /// transmitter.
    #[must_use = "the byte is gone otherwise"]
    pub fn write(&mut self, offset: u16, value: u8) -> Option<u8> {
        match offset {
            0 if self.divisor_access() => self.divisor = self.divisor & 0xff00 | u16::from(value),
            // In loopback the transmitter feeds the receiver, which holds nothing.
            0 if self.modem_control & MCR_LOOPBACK != 0 => {}
            0 => return Some(value),
            1 if self.divisor_access() => self.divisor = self.divisor & 0x00ff | u16::from(value) << 8,
            1 => self.interrupt_enable = value & IER_WRITABLE,
            2 => self.fifos_enabled = value & FCR_ENABLE != 0,
            3 => self.line_control = value,
            4 => self.modem_control = value & MCR_WRITABLE,
            // Status registers are read-only.
            7 => self.scratch = value,
            _ => {}
        }
        None
    }

    /// In loopback the four modem outputs come back as the four inputs; drivers look for that to find the
    /// chip.
    const fn modem_status(&self) -> u8 {
        let control = self.modem_control;
        if control & MCR_LOOPBACK == 0 {
            return MSR_CONNECTED;
        }
        let (dtr, rts, outputs) = (control & 1, control >> 1 & 1, control >> 2 & 0b11);
        rts << 4 | dtr << 5 | outputs << 6
    }
}

impl Default for Uart {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIVISOR_ACCESS: u8 = 0x80;

    #[test]
    fn every_byte_is_transmitted_at_once() {
        let mut uart = Uart::new();
        for byte in 0..=u8::MAX {
            assert_eq!(uart.read(5), 0x60);
            assert_eq!(uart.write(0, byte), Some(byte));
        }
        assert_eq!(uart.read(0), 0);
        assert_eq!(uart.read(2), 0x01);
    }

    #[test]
    fn the_divisor_hides_behind_the_line_control_register() {
        let mut uart = Uart::new();
        assert_eq!(uart.write(1, 0xff), None);
        assert_eq!(uart.write(3, DIVISOR_ACCESS | 3), None);
        assert_eq!((uart.write(0, 0x0c), uart.write(1, 0x01)), (None, None));
        assert_eq!((uart.read(0), uart.read(1), uart.read(3)), (0x0c, 0x01, 0x83));
        assert_eq!(uart.write(3, 3), None);
        assert_eq!((uart.read(0), uart.read(1)), (0, 0x0f), "interrupt enable has four bits");
        assert_eq!(uart.write(0, b'x'), Some(b'x'));
    }

    #[test]
    fn a_driver_finds_a_16550_with_fifos() {
        let mut uart = Uart::new();
        assert_eq!(uart.write(2, 1), None);
        assert_eq!(uart.read(2), 0xc1);
        assert_eq!(uart.write(2, 0), None);
        assert_eq!(uart.read(2), 0x01);
        assert_eq!(uart.write(7, 0xa5), None);
        assert_eq!(uart.read(7), 0xa5);
        assert_eq!(uart.read(6), 0xb0);
    }

    #[test]
    fn loopback_returns_the_modem_outputs_and_transmits_nothing() {
        let mut uart = Uart::new();
        for (output, input) in [(0x01, 0x20), (0x02, 0x10), (0x04, 0x40), (0x08, 0x80), (0x0a, 0x90)] {
            assert_eq!(uart.write(4, 0x10 | output), None);
            assert_eq!(uart.read(6), input);
            assert_eq!(uart.write(0, b'x'), None);
        }
        assert_eq!(uart.write(4, 0xff), None);
        assert_eq!(uart.read(4), 0x1f);
    }

    #[test]
    fn no_access_is_out_of_range() {
        let mut uart = Uart::new();
        for offset in 0..=u16::MAX {
            let transmitted = uart.write(offset, 0x55);
            assert_eq!(transmitted.is_some(), offset == 0);
            // Leave the registers that change what the others mean.
            for control in [3, 4] {
                assert_eq!(uart.write(control, 0), None);
            }
            assert!(offset < UART_PORTS || uart.read(offset) == u8::MAX);
        }
    }
}
