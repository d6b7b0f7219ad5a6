//! Devices the hypervisor itself plays for a guest. Each is a register file that turns accesses into values;
//! none touches a port, a line or a console.

pub mod cmos;
mod fifo;
mod line_buffer;
pub mod power;
mod print_budget;
mod test_device;
mod uart;

pub use self::fifo::Fifo;
pub use self::line_buffer::LineBuffer;
pub use self::print_budget::{Dropped, Permission, PrintBudget};
pub use self::test_device::TestRegister;
pub use self::uart::{Output, UART_PORTS, Uart};
