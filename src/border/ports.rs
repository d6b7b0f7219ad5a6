//! The ports of a guest's platform. BARs are not here: a guest reaches theirs without an exit.

use crate::config::{CMOS_PORTS, POWER_PORTS, RESET_PORT, TEST_LINE_PORTS, TEST_REGISTER_PORTS, TIMER_PORTS};
use crate::device::cmos::{Cmos, WallClock};
use crate::device::power::{powers_off, resets};
use crate::device::{Output, TestRegister, UART_PORTS, Uart};
use crate::irq::Pin;
use crate::pci::config_ports;
use crate::pci::{Access, Bdf, ConfigPorts, Width as ConfigWidth};
use crate::vcpu::Width;
use crate::virq::Pics;

const COM1: u16 = 0x3f8;
const COM1_LAST: u16 = COM1 + UART_PORTS - 1;
const CMOS: u16 = *CMOS_PORTS.start();
const CMOS_LAST: u16 = *CMOS_PORTS.end();
const SLEEP_CONTROL: u16 = *POWER_PORTS.start();
/// What the debug port reads as, whatever its number: that of its usual place. By this a guest tells that it is there.
const DEBUG_PORT_PRESENT: u32 = 0xe9;

/// What a guest's read of a port amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortRead {
    /// The answer itself.
    Value(u32),
    /// The answer is what this access of this function's virtual configuration space returns, or all-ones when the
    /// guest has no such function.
    Register(Bdf, Access),
    /// The answer is the 8259 pair's.
    Pic(u16),
}

impl From<config_ports::PortRead> for PortRead {
    fn from(read: config_ports::PortRead) -> Self {
        match read {
            config_ports::PortRead::Value(value) => Self::Value(value),
            config_ports::PortRead::Register(bdf, access) => Self::Register(bdf, access),
        }
    }
}

/// What a guest's write to a port amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortWrite {
    /// Nothing, or nothing that is seen outside.
    Nothing,
    /// A byte for the console.
    Text(u8),
    /// This write to a register of this function's virtual configuration space, if the guest has the function.
    Register(Bdf, Access, u32),
    /// The test device's line to this pin is high from now on, or low.
    Line {
        /// The pin.
        pin: Pin,
        /// Whether the line is high.
        high: bool,
    },
    /// This byte goes to the 8259 pair.
    Pic {
        /// Which of its ports.
        port: u16,
        /// The byte.
        value: u8,
    },
    /// The guest ends with this value.
    Exit(u32),
    /// The guest powers itself off.
    PowerOff,
    /// The guest resets itself.
    Reset,
}

/// What one guest finds behind its ports.
#[derive(Clone, Debug)]
pub struct Ports {
    debug: Option<u16>,
    exit: Option<u16>,
    test: Option<TestRegister>,
    uart: Uart,
    cmos: Cmos,
    config: ConfigPorts,
}

impl Ports {
    /// The platform after reset, with the ports that the configuration gave it, those of the test device if `test`, and the time
    /// if that is known.
    pub const fn new(debug: Option<u16>, exit: Option<u16>, test: bool, clock: Option<WallClock>) -> Self {
        let test = if test { Some(TestRegister::new()) } else { None };
        Self { debug, exit, test, uart: Uart::new(), cmos: Cmos::new(clock), config: ConfigPorts::RESET }
    }

    /// Puts the platform back to its reset.
    pub const fn reset(&mut self) {
        if let Some(register) = &mut self.test {
            *register = TestRegister::new();
        }
        self.uart = Uart::new();
        self.cmos.reset();
        self.config = ConfigPorts::RESET;
    }

    /// A read of `width` at `port` when the time stamp is `now_tsc`: the value in the low bits, or the register that holds it.
    /// Where nobody answers, ones.
    pub fn read(&mut self, port: u16, width: Width, now_tsc: u64) -> PortRead {
        if let Some(register) = self.test
            && let Some(read) = read_for_tests(register, port, width)
        {
            return read;
        }
        let value = match port {
            COM1..=COM1_LAST if width == Width::Byte => u32::from(self.uart.read(port - COM1)),
            CMOS..=CMOS_LAST if width == Width::Byte => u32::from(self.cmos.read(port - CMOS, now_tsc)),
            // All-ones would look like a count that begins: Linux waits 100,000 reads for such a timer to go on.
            _ if TIMER_PORTS.contains(&port) && width == Width::Byte => 0,
            _ if Some(port) == self.debug && width == Width::Byte => DEBUG_PORT_PRESENT,
            // Nothing is ever to be told: no sleep but the last one was offered.
            _ if POWER_PORTS.contains(&port) && width == Width::Byte => 0,
            _ if ConfigPorts::contains(port) => match config_width(width) {
                Some(width) => return self.config.read(port, width).into(),
                None => u32::MAX,
            },
            _ => width.mask() as u32,
        };
        PortRead::Value(value)
    }

    /// Whether COM1 has room for a byte.
    pub const fn com1_has_room(&self) -> bool {
        !self.uart.is_full()
    }

    /// A byte arrives at COM1.
    pub fn com1_receive(&mut self, byte: u8) {
        self.uart.receive(byte);
    }

    /// What has become of COM1's interrupt since this was asked last; `None` for nothing.
    pub fn com1_output(&mut self) -> Option<Output> {
        self.uart.take_output()
    }

    /// A write of the low bits of `value`. Where nobody listens it is gone.
    pub fn write(&mut self, port: u16, width: Width, value: u32) -> PortWrite {
        let value = value & width.mask() as u32;
        if Some(port) == self.exit {
            return PortWrite::Exit(value);
        }
        if Some(port) == self.debug && width == Width::Byte {
            return PortWrite::Text(value as u8);
        }
        if let Some(register) = &mut self.test {
            if TEST_REGISTER_PORTS.contains(&port) {
                register.write(port - TEST_REGISTER_PORTS.start(), width, value);
                return PortWrite::Nothing;
            }
            if TEST_LINE_PORTS.contains(&port) {
                // As many ports as there are pins.
                let pin = Pin((port - TEST_LINE_PORTS.start()) as u8);
                return PortWrite::Line { pin, high: value != 0 };
            }
            if Pics::contains(port) && width == Width::Byte {
                return PortWrite::Pic { port, value: value as u8 };
            }
        }
        match port {
            COM1..=COM1_LAST if width == Width::Byte => {
                self.uart.write(port - COM1, value as u8).map_or(PortWrite::Nothing, PortWrite::Text)
            }
            CMOS..=CMOS_LAST if width == Width::Byte => {
                self.cmos.write(port - CMOS, value as u8);
                PortWrite::Nothing
            }
            SLEEP_CONTROL if width == Width::Byte && powers_off(value as u8) => PortWrite::PowerOff,
            RESET_PORT if width == Width::Byte && resets(value as u8) => PortWrite::Reset,
            _ if ConfigPorts::contains(port) => {
                let register = config_width(width).and_then(|width| self.config.write(port, width, value));
                register.map_or(PortWrite::Nothing, |(bdf, access)| PortWrite::Register(bdf, access, value))
            }
            _ => PortWrite::Nothing,
        }
    }
}

/// A read of what tests alone have.
fn read_for_tests(register: TestRegister, port: u16, width: Width) -> Option<PortRead> {
    if TEST_REGISTER_PORTS.contains(&port) {
        return Some(PortRead::Value(register.read(port - TEST_REGISTER_PORTS.start(), width)));
    }
    (Pics::contains(port) && width == Width::Byte).then_some(PortRead::Pic(port))
}

/// The width in terms of configuration space, which has no eight-byte accesses.
const fn config_width(width: Width) -> Option<ConfigWidth> {
    match width {
        Width::Byte => Some(ConfigWidth::Byte),
        Width::Word => Some(ConfigWidth::Word),
        Width::Dword => Some(ConfigWidth::Dword),
        Width::Qword => None,
    }
}
