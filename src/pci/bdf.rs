//! The name of a function on the bus: bus, device, function. Nothing here touches hardware.

use core::fmt;
use core::str::FromStr;

/// A function's place within segment group 0: bus 0 to 255, device 0 to 31, function 0 to 7 (PCI 3.0 3.2.2.3).
///
/// It says where a function would be, not that one is there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bdf(u16);

impl Bdf {
    /// The function, or `None` when `device` is above 31 or `function` above 7.
    pub const fn new(bus: u8, device: u8, function: u8) -> Option<Self> {
        if device > 31 || function > 7 {
            return None;
        }
        Some(Self((bus as u16) << 8 | (device as u16) << 3 | function as u16))
    }

    /// From the 16 bits that travel with a function's requests (PCIe 4.0 2.2.6.2); every value is legal.
    pub const fn from_requester_id(raw: u16) -> Self {
        Self(raw)
    }

    /// Bus in bits 15 to 8, device in bits 7 to 3, function in bits 2 to 0.
    pub const fn requester_id(self) -> u16 {
        self.0
    }

    /// The bus, 0 to 255.
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// The device on its bus, 0 to 31.
    pub const fn device(self) -> u8 {
        (self.0 >> 3 & 31) as u8
    }

    /// The function within its device, 0 to 7.
    pub const fn function(self) -> u8 {
        (self.0 & 7) as u8
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus(), self.device(), self.function())
    }
}

impl fmt::Debug for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not of the form `bb:dd.f`: two hexadecimal digits each for the bus and the device (00 to 1f), one
/// digit for the function (0 to 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseBdfError;

impl fmt::Display for ParseBdfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a PCI function is written bb:dd.f in hexadecimal, like 00:1f.2")
    }
}

impl core::error::Error for ParseBdfError {}

impl FromStr for Bdf {
    type Err = ParseBdfError;

    fn from_str(text: &str) -> Result<Self, ParseBdfError> {
        fn hex(digit: u8) -> Option<u8> {
            // At most 15, so the cast keeps it.
            char::from(digit).to_digit(16).map(|value| value as u8)
        }
        let &[bus_high, bus_low, b':', device_high, device_low, b'.', function] = text.as_bytes() else {
            return Err(ParseBdfError);
        };
        let byte = |high, low| Some(hex(high)? << 4 | hex(low)?);
        let bdf = || Self::new(byte(bus_high, bus_low)?, byte(device_high, device_low)?, hex(function)?);
        bdf().ok_or(ParseBdfError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bus_device_function_is_accepted_or_refused_by_its_range() {
        for bus in 0..=u8::MAX {
            for device in 0..=u8::MAX {
                for function in 0..=u8::MAX {
                    let bdf = Bdf::new(bus, device, function);
                    assert_eq!(bdf.is_some(), device < 32 && function < 8);
                    if let Some(bdf) = bdf {
                        assert_eq!((bdf.bus(), bdf.device(), bdf.function()), (bus, device, function));
                    }
                }
            }
        }
    }

    #[test]
    fn every_requester_id_survives_text_and_back() {
        for raw in 0..=u16::MAX {
            let bdf = Bdf::from_requester_id(raw);
            assert_eq!(bdf.requester_id(), raw);
            assert_eq!(Bdf::new(bdf.bus(), bdf.device(), bdf.function()), Some(bdf));
            assert_eq!(bdf.to_string().parse(), Ok(bdf));
        }
    }

    #[test]
    fn text_has_one_form() {
        let bdf = Bdf::new(0, 0x1f, 2).unwrap();
        assert_eq!(bdf.to_string(), "00:1f.2");
        assert_eq!(bdf.requester_id(), 0xfa);
        assert_eq!("00:1F.2".parse(), Ok(bdf));
        assert_eq!("ff:1f.7".parse(), Ok(Bdf::from_requester_id(0xffff)));
        let refused = [
            "",
            "00:1f",
            "0:1f.2",
            "00:20.0",
            "00:1f.8",
            "00:1f.2 ",
            " 00:1f.2",
            "0000:00:1f.2",
            "00-1f.2",
            "00:1f:2",
            "+0:1f.2",
            "00:+f.2",
            "00:1f.+",
            "0g:1f.2",
            "00:1f.\u{e9}",
            "\u{e9}:1f.2",
        ];
        for text in refused {
            assert_eq!(text.parse::<Bdf>(), Err(ParseBdfError), "{text:?}");
        }
    }
}
