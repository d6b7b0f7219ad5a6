//! From the delivery of a non-maskable interrupt to the end of its handler, when no other one is delivered (APM2 8.2.3).
//!
//! VMRUN delivers an injected one but does not keep the next one out. The handler's IRET is intercepted instead, and
//! the intercept strikes before the instruction: it must run without, and the handler has ended as soon as the guest
//! is seen anywhere else. An IRET that raises an exception ends the handler too.

/// Whether the guest takes a non-maskable interrupt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NmiMask {
    /// It does.
    #[default]
    Open,
    /// It runs the handler of one. IRET is intercepted.
    InHandler,
    /// It is about to execute, or has executed, the IRET it was stopped at. IRET is not intercepted.
    Returning {
        /// RIP of the IRET.
        rip: u64,
        /// RSP before it: an IRET to itself pops.
        rsp: u64,
    },
}

impl NmiMask {
    /// The guest stands at `rip` with `rsp` and will be entered there: an IRET it left behind has ended the handler.
    /// Returns whether another one has to wait.
    #[inline]
    pub fn blocks(&mut self, rip: u64, rsp: u64) -> bool {
        match *self {
            Self::Open => return false,
            Self::Returning { rip: at, rsp: with } if (at, with) != (rip, rsp) => *self = Self::Open,
            Self::InHandler | Self::Returning { .. } => {}
        }
        *self != Self::Open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_ends_when_its_iret_is_left_behind() {
        let mut mask = NmiMask::default();
        assert!(!mask.blocks(0x1000, 0x8000));
        mask = NmiMask::InHandler;
        assert!(mask.blocks(0x1000, 0x8000) && mask.blocks(0x2000, 0x9000));
        mask = NmiMask::Returning { rip: 0x2000, rsp: 0x9000 };
        assert!(mask.blocks(0x2000, 0x9000), "it has not run yet");
        assert!(mask.blocks(0x2000, 0x9000));
        assert!(!mask.blocks(0x1000, 0x9028));
        assert_eq!(mask, NmiMask::Open);
        assert!(!mask.blocks(0x2000, 0x9000), "the same IRET later means nothing");
    }

    #[test]
    fn an_iret_to_itself_is_noticed_by_its_stack() {
        let mut mask = NmiMask::Returning { rip: 0x2000, rsp: 0x9000 };
        assert!(!mask.blocks(0x2000, 0x9028));
    }
}
