//! A 16550 (PC16550D data sheet, section 8): a guest's console.
//!
//! Bytes the guest transmits come out as values, at once, so that the transmitter is always empty. Bytes for it wait in
//! the receiver until it reads them. There is no baud rate and no time: what a chip tells after four characters of
//! silence, this one tells at once.

use super::fifo::Fifo;

/// How many consecutive ports the chip answers at.
pub const UART_PORTS: u16 = 8;

const FIFO_BYTES: usize = 16;

const LCR_DIVISOR_ACCESS: u8 = 1 << 7;
const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOPBACK: u8 = 1 << 4;
const MCR_WRITABLE: u8 = 0x1f;
const IER_RECEIVED: u8 = 1 << 0;
const IER_TRANSMITTER_EMPTY: u8 = 1 << 1;
const IER_LINE_STATUS: u8 = 1 << 2;
const IER_MODEM_STATUS: u8 = 1 << 3;
const IER_WRITABLE: u8 = 0x0f;
const FCR_ENABLE: u8 = 1 << 0;
const FCR_RESET_RECEIVER: u8 = 1 << 1;
const IIR_NONE_PENDING: u8 = 1 << 0;
const IIR_MODEM_STATUS: u8 = 0x00;
const IIR_TRANSMITTER_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_LINE_STATUS: u8 = 0x06;
const IIR_TIMEOUT: u8 = 0x0c;
const IIR_FIFOS_ENABLED: u8 = 0b11 << 6;
const LSR_DATA_READY: u8 = 1 << 0;
const LSR_OVERRUN: u8 = 1 << 1;
/// Transmitter holding register and shift register empty.
const LSR_IDLE: u8 = 1 << 5 | 1 << 6;
/// Carrier, data set ready and clear to send: somebody listens.
const MSR_CONNECTED: u8 = 1 << 7 | 1 << 5 | 1 << 4;
/// The ring indicator, whose change is told when it ends.
const MSR_RING: u8 = 1 << 6;

/// One UART.
#[derive(Clone, Debug)]
pub struct Uart {
    divisor: u16,
    interrupt_enable: u8,
    fifo_control: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    /// One byte, or as many as there is room for with FIFOs on.
    received: Fifo<FIFO_BYTES>,
    overrun: bool,
    /// The transmitter became empty, and nobody has read of it.
    emptied: bool,
    /// The lower half of the modem status: which inputs changed.
    modem_changes: u8,
    output: Output,
    /// What was said of the output last.
    told: bool,
}

/// What has become of the interrupt output since somebody looked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// It is high.
    pub high: bool,
    /// It was low in between.
    pub fell: bool,
}

impl Uart {
    /// The chip after reset.
    pub const fn new() -> Self {
        Self {
            divisor: 0,
            interrupt_enable: 0,
            fifo_control: 0,
            line_control: 0,
            modem_control: 0,
            scratch: 0,
            received: Fifo::EMPTY,
            overrun: false,
            emptied: false,
            modem_changes: 0,
            output: Output { high: false, fell: false },
            told: false,
        }
    }

    const fn divisor_access(&self) -> bool {
        self.line_control & LCR_DIVISOR_ACCESS != 0
    }

    const fn loopback(&self) -> bool {
        self.modem_control & MCR_LOOPBACK != 0
    }

    const fn fifos_enabled(&self) -> bool {
        self.fifo_control & FCR_ENABLE != 0
    }

    /// The guest reads the byte at `offset` from the first port. Past the last port nothing answers:
    /// all-ones.
    pub fn read(&mut self, offset: u16) -> u8 {
        let [divisor_low, divisor_high] = self.divisor.to_le_bytes();
        match offset {
            0 if self.divisor_access() => divisor_low,
            0 => {
                let byte = self.received.pop().unwrap_or(0);
                self.update();
                byte
            }
            1 if self.divisor_access() => divisor_high,
            1 => self.interrupt_enable,
            2 => self.identify(),
            3 => self.line_control,
            4 => self.modem_control,
            5 => {
                let overrun = if core::mem::take(&mut self.overrun) { LSR_OVERRUN } else { 0 };
                let ready = if !self.received.is_empty() { LSR_DATA_READY } else { 0 };
                self.update();
                LSR_IDLE | ready | overrun
            }
            6 => {
                let changes = core::mem::take(&mut self.modem_changes);
                self.update();
                self.modem_inputs() | changes
            }
            7 => self.scratch,
            _ => u8::MAX,
        }
    }

    /// The guest writes the byte at `offset` from the first port. Returns the byte that leaves the
    /// transmitter.
    #[must_use = "the byte is gone otherwise"]
    pub fn write(&mut self, offset: u16, value: u8) -> Option<u8> {
        let mut transmitted = None;
        match offset {
            0 if self.divisor_access() => self.divisor = self.divisor & 0xff00 | u16::from(value),
            0 => {
                self.emptied = false;
                self.update();
                if self.loopback() {
                    self.receive(value);
                } else {
                    transmitted = Some(value);
                }
                self.emptied = true;
            }
            1 if self.divisor_access() => self.divisor = self.divisor & 0x00ff | u16::from(value) << 8,
            1 => {
                let before = core::mem::replace(&mut self.interrupt_enable, value & IER_WRITABLE);
                // The transmitter is empty: whoever asks to be told is told.
                self.emptied |= value & !before & IER_TRANSMITTER_EMPTY != 0;
            }
            2 => {
                let before = core::mem::replace(&mut self.fifo_control, value);
                if value & FCR_RESET_RECEIVER != 0 || (before ^ value) & FCR_ENABLE != 0 {
                    self.received = Fifo::EMPTY;
                }
            }
            3 => self.line_control = value,
            4 => {
                let before = self.modem_inputs();
                self.modem_control = value & MCR_WRITABLE;
                let after = self.modem_inputs();
                let changed = (before ^ after) & !MSR_RING | before & !after & MSR_RING;
                self.modem_changes |= changed >> 4;
            }
            // Status registers are read-only.
            7 => self.scratch = value,
            _ => {}
        }
        self.update();
        transmitted
    }

    /// A byte arrives. Without room for it, it is lost and the guest told so.
    pub fn receive(&mut self, byte: u8) {
        let most = if self.fifos_enabled() { FIFO_BYTES } else { 1 };
        self.overrun |= !self.received.push(byte, most);
        self.update();
    }

    /// Whether a byte that arrives now would be lost.
    pub const fn is_full(&self) -> bool {
        self.received.len() >= if self.fifos_enabled() { FIFO_BYTES } else { 1 }
    }

    /// What has become of the interrupt output since this was asked last; `None` for nothing.
    pub fn take_output(&mut self) -> Option<Output> {
        let Output { high, fell } = self.output;
        self.output.fell = false;
        let told = core::mem::replace(&mut self.told, high);
        (fell || high != told).then_some(Output { high, fell })
    }

    /// The interrupt of the highest priority, as the identification register has it.
    const fn pending(&self) -> u8 {
        let enabled = self.interrupt_enable;
        if enabled & IER_LINE_STATUS != 0 && self.overrun {
            IIR_LINE_STATUS
        } else if enabled & IER_RECEIVED != 0 && !self.received.is_empty() {
            let trigger = match self.fifo_control >> 6 {
                _ if !self.fifos_enabled() => 1,
                0 => 1,
                1 => 4,
                2 => 8,
                _ => 14,
            };
            if self.received.len() >= trigger { IIR_RECEIVED } else { IIR_TIMEOUT }
        } else if enabled & IER_TRANSMITTER_EMPTY != 0 && self.emptied {
            IIR_TRANSMITTER_EMPTY
        } else if enabled & IER_MODEM_STATUS != 0 && self.modem_changes != 0 {
            IIR_MODEM_STATUS
        } else {
            IIR_NONE_PENDING
        }
    }

    /// A read of the identification register, which is all that an empty transmitter asks for.
    fn identify(&mut self) -> u8 {
        let pending = self.pending();
        if pending == IIR_TRANSMITTER_EMPTY {
            self.emptied = false;
            self.update();
        }
        pending | if self.fifos_enabled() { IIR_FIFOS_ENABLED } else { 0 }
    }

    /// Follows with the output what the registers say. On a PC it reaches the interrupt controller through OUT2, which is
    /// off in loopback.
    const fn update(&mut self) {
        let connected = self.modem_control & (MCR_OUT2 | MCR_LOOPBACK) == MCR_OUT2;
        let high = connected && self.pending() != IIR_NONE_PENDING;
        if self.output.high && !high {
            self.output.fell = true;
        }
        self.output.high = high;
    }

    /// In loopback the four modem outputs come back as the four inputs; drivers look for that to find the
    /// chip.
    const fn modem_inputs(&self) -> u8 {
        let control = self.modem_control;
        if !self.loopback() {
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
    const OUT2: u8 = 0x08;
    const HIGH: Option<Output> = Some(Output { high: true, fell: false });
    const FELL: Option<Output> = Some(Output { high: false, fell: true });
    const AGAIN: Option<Output> = Some(Output { high: true, fell: true });

    /// With OUT2 on and these interrupts enabled, as a driver has it that is about to work.
    fn enabled(interrupts: u8) -> Uart {
        let mut uart = Uart::new();
        assert_eq!((uart.write(4, OUT2), uart.write(1, interrupts)), (None, None));
        uart
    }

    #[test]
    fn an_empty_transmitter_is_told_once_and_again_after_each_byte() {
        let mut uart = enabled(0);
        assert_eq!(uart.take_output(), None);
        assert_eq!(uart.write(1, 2), None);
        assert_eq!(uart.take_output(), HIGH);
        assert_eq!(uart.read(2), 0x02);
        assert_eq!(uart.take_output(), FELL);
        assert_eq!((uart.read(2), uart.take_output()), (0x01, None));
        assert_eq!(uart.write(0, b'x'), Some(b'x'));
        assert_eq!(uart.take_output(), HIGH);
        // An edge for each byte, also for a guest that does not look at the register between them.
        assert_eq!(uart.write(0, b'y'), Some(b'y'));
        assert_eq!(uart.take_output(), AGAIN);
        // Off and on again asks anew.
        assert_eq!(uart.read(2), 0x02);
        assert_eq!((uart.write(1, 0), uart.write(1, 2)), (None, None));
        assert_eq!(uart.read(2), 0x02);
    }

    #[test]
    fn without_out2_or_in_loopback_nothing_is_raised() {
        let mut uart = enabled(3);
        assert_eq!(uart.take_output(), HIGH);
        assert_eq!(uart.write(4, 0), None);
        assert_eq!(uart.take_output(), FELL);
        assert_eq!(uart.write(4, OUT2 | 0x10), None);
        uart.receive(1);
        assert_eq!((uart.take_output(), uart.read(2)), (None, 0x04), "pending all the same");
        assert_eq!(uart.write(4, OUT2), None);
        assert_eq!(uart.take_output(), HIGH);
    }

    #[test]
    fn received_bytes_are_told_until_they_are_read() {
        let mut uart = enabled(1);
        uart.receive(b'a');
        assert_eq!(uart.take_output(), HIGH);
        assert_eq!((uart.read(2), uart.read(5)), (0x04, 0x61));
        assert_eq!(uart.read(0), b'a');
        assert_eq!(uart.take_output(), FELL);
        assert_eq!((uart.read(2), uart.read(5), uart.read(0)), (0x01, 0x60, 0));
    }

    #[test]
    fn the_fifo_holds_sixteen_bytes_in_order_and_tells_of_the_one_too_many() {
        let mut uart = enabled(5);
        assert_eq!(uart.write(2, 0x81), None);
        for round in 0..3 {
            for byte in 0..16 {
                assert!(!uart.is_full());
                uart.receive(byte + round);
                let expected = if byte < 7 { 0xcc } else { 0xc4 };
                assert_eq!(uart.read(2), expected, "below the trigger it is a time-out");
            }
            assert!(uart.is_full());
            uart.receive(99);
            assert_eq!(uart.read(2), 0xc6);
            assert_eq!((uart.read(5), uart.read(5)), (0x63, 0x61), "read once");
            for byte in 0..16 {
                assert_eq!(uart.read(0), byte + round);
            }
            assert_eq!(uart.read(2), 0xc1);
        }
        // A reset of the receiver, and switching FIFOs off, drop what is there; one byte is all there is room for then.
        uart.receive(1);
        assert_eq!((uart.write(2, 0x83), uart.read(5)), (None, 0x60));
        uart.receive(1);
        assert_eq!((uart.write(2, 0), uart.read(5)), (None, 0x60));
        uart.receive(1);
        uart.receive(2);
        assert_eq!((uart.read(5), uart.read(0), uart.read(5)), (0x63, 1, 0x60));
    }

    #[test]
    fn causes_are_told_in_the_order_of_the_data_sheet() {
        let mut uart = enabled(0x0f);
        uart.receive(1);
        uart.receive(2);
        for control in [0x11, 0x08] {
            assert_eq!(uart.write(4, control), None);
        }
        assert_eq!((uart.read(2), uart.read(5)), (0x06, 0x63));
        assert_eq!((uart.read(2), uart.read(0)), (0x04, 1));
        assert_eq!(uart.read(2), 0x02);
        assert_eq!(uart.read(2), 0x00);
        assert_ne!(uart.read(6) & 0x0f, 0);
        assert_eq!((uart.read(2), uart.read(6)), (0x01, 0xb0));
    }

    #[test]
    fn changes_of_the_modem_inputs_are_told_once() {
        let mut uart = Uart::new();
        assert_eq!((uart.write(4, 0x10), uart.read(6)), (None, 0x0b), "carrier, DSR and CTS went");
        assert_eq!((uart.write(4, 0x14), uart.read(6)), (None, 0x40), "a ring that begins is no change");
        assert_eq!((uart.write(4, 0x10), uart.read(6)), (None, 0x04), "its end is");
        assert_eq!(uart.read(6), 0);
    }

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
            assert_eq!(uart.read(6) & 0xf0, input);
            assert_eq!(uart.write(0, b'x'), None);
            assert_eq!(uart.read(0), b'x', "the receiver gets it");
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
