//! The registers of a function as they were at one moment: what a guest reads of a function that is another's for now, and
//! that may be in a reset meanwhile.

use super::config::command_status;
use super::{Bdf, ConfigSpace, Offset, Status};

/// The conventional 256 bytes of one function. Any other function, and all beyond them, reads all-ones; writes are dropped.
#[derive(Clone, Debug)]
pub struct Snapshot {
    bdf: Bdf,
    dwords: [u32; 64],
}

impl Snapshot {
    /// Reads it all, dword by dword, but for an interrupt that was pending.
    pub fn take(space: &impl ConfigSpace, bdf: Bdf) -> Self {
        let mut dwords = [u32::MAX; 64];
        for (at, dword) in (0..=u8::MAX).step_by(4).zip(&mut dwords) {
            *dword = space.read32(bdf, Offset::conventional(at));
        }
        let pending = u32::from(Status::INTX.bits()) << 16;
        if let Some(dword) = dwords.get_mut(usize::from(Offset::COMMAND.get() / 4))
            && command_status(*dword).is_some()
        {
            *dword &= !pending;
        }
        Self { bdf, dwords }
    }
}

impl ConfigSpace for Snapshot {
    fn read8(&self, bdf: Bdf, offset: Offset) -> u8 {
        (self.read32(bdf, offset) >> (offset.get() % 4 * 8)) as u8
    }

    fn read16(&self, bdf: Bdf, offset: Offset) -> u16 {
        (self.read32(bdf, offset) >> (offset.get() % 4 / 2 * 16)) as u16
    }

    fn read32(&self, bdf: Bdf, offset: Offset) -> u32 {
        let dword = self.dwords.get(usize::from(offset.get() / 4)).filter(|_| bdf == self.bdf);
        dword.copied().unwrap_or(u32::MAX)
    }

    fn write8(&self, _: Bdf, _: Offset, _: u8) {}

    fn write16(&self, _: Bdf, _: Offset, _: u16) {}

    fn write32(&self, _: Bdf, _: Offset, _: u32) {}
}

#[cfg(test)]
mod tests {
    use super::super::fake::{FakeFunction, Machine, bdf};
    use super::*;

    #[test]
    fn it_reads_as_the_function_did_in_every_width_but_for_a_pending_interrupt() {
        let at = bdf("00:03.0");
        let machine = Machine::with([("00:03.0", FakeFunction::edu())]);
        let snapshot = Snapshot::take(&machine, at);
        for raw in 0..256 {
            let Some(offset) = Offset::new(raw) else { continue };
            assert_eq!(snapshot.read8(at, offset), machine.read8(at, offset), "{raw:#x}");
            if raw % 2 == 0 {
                assert_eq!(snapshot.read16(at, offset), machine.read16(at, offset), "{raw:#x}");
            }
            if raw % 4 == 0 {
                assert_eq!(snapshot.read32(at, offset), machine.read32(at, offset), "{raw:#x}");
            }
        }
        let asserting = Machine::with([("00:03.0", FakeFunction::edu().bytes(0x06, &[0x08]))]);
        let before = asserting.read32(at, Offset::COMMAND);
        assert_ne!(before & 8 << 16, 0);
        assert_eq!(Snapshot::take(&asserting, at).read32(at, Offset::COMMAND), before & !(8 << 16));
    }

    #[test]
    fn it_outlives_the_function_and_is_no_other() {
        let at = bdf("00:03.0");
        let machine = Machine::with([("00:03.0", FakeFunction::edu())]);
        let snapshot = Snapshot::take(&machine, at);
        machine.remove(at);
        assert_eq!(snapshot.read32(at, Offset::VENDOR_ID), 0x11e8_1234);
        assert_eq!(snapshot.read32(bdf("00:04.0"), Offset::VENDOR_ID), u32::MAX);
        assert_eq!(Offset::new(0x100).map(|beyond| snapshot.read32(at, beyond)), Some(u32::MAX));
        assert_eq!(
            Snapshot::take(&machine, at).read32(at, Offset::COMMAND),
            u32::MAX,
            "absent then, absent now"
        );
    }
}
