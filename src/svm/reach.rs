//! What a guest reaches of its devices without an exit, and what its CPUs are to forget when that changes.
//!
//! A CPU may keep translations of the nested tables in its TLB until an entry flushes it, and the permission maps as long
//! as the control block calls them unchanged (APM2 15.16, 15.15). No emulator shows a forgotten flush, so forgetting is
//! made hard: taking something away from a guest goes through here, and brings along what every CPU that runs it must be told.

use core::ops::RangeInclusive;

use crate::addr::{GuestPhys, HostPhys};

use super::bitmap::IoPermissions;
use super::npt::{MapError, Memory, NestedTables, TableStore, UnmapError};
use super::vmcb::Vmcb;

/// What CPUs may have kept that is not true any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "each CPU that runs the guest is to be told before it enters it again"]
pub struct Stale {
    translations: bool,
    permissions: bool,
}

impl Stale {
    /// Nothing.
    pub const NOTHING: Self = Self { translations: false, permissions: false };
    /// Everything a CPU may keep.
    pub const EVERYTHING: Self = Self { translations: true, permissions: true };

    /// Whether nothing is stale.
    pub const fn is_nothing(self) -> bool {
        !self.translations && !self.permissions
    }

    /// What is stale by either.
    pub const fn and(self, other: Self) -> Self {
        Self {
            translations: self.translations || other.translations,
            permissions: self.permissions || other.permissions,
        }
    }

    /// Has the CPU that enters its guest by `vmcb` forget it with the next entry.
    pub const fn forget(self, vmcb: &mut Vmcb) {
        if self.translations {
            vmcb.flush_tlb();
        }
        if self.permissions {
            vmcb.permissions_changed();
        }
    }
}

/// The reach of one guest, for the moment in which it changes.
#[derive(Debug)]
pub struct Reach<'a, S> {
    tables: &'a NestedTables,
    store: &'a mut S,
    ports: &'a mut IoPermissions,
}

impl<'a, S: TableStore> Reach<'a, S> {
    /// `tables` and `ports` are used by all of the guest's CPUs.
    pub const fn new(tables: &'a NestedTables, store: &'a mut S, ports: &'a mut IoPermissions) -> Self {
        Self { tables, store, ports }
    }

    /// Shows `bytes` of a device's registers at `host` to the guest at `guest`. A translation that was not there cannot
    /// be in a TLB, so nothing is stale (APM2 5.5).
    pub fn open_memory(&mut self, guest: GuestPhys, host: HostPhys, bytes: u64) -> Result<(), MapError> {
        self.tables.map(self.store, guest, host, bytes, Memory::Device)
    }

    /// Takes whatever is mapped in `bytes` from `guest` on away.
    pub fn close_memory(&mut self, guest: GuestPhys, bytes: u64) -> Result<Stale, UnmapError> {
        let translations = self.tables.unmap(self.store, guest, bytes)? != 0;
        Ok(Stale { translations, permissions: false })
    }

    /// Lets the guest reach ports directly.
    pub fn open_ports(&mut self, ports: RangeInclusive<u16>) -> Stale {
        self.ports.allow(ports);
        Stale { translations: false, permissions: true }
    }

    /// Takes ports away from the guest again.
    pub fn close_ports(&mut self, ports: RangeInclusive<u16>) -> Stale {
        self.ports.deny(ports);
        Stale { translations: false, permissions: true }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::addr::PAGE_BYTES;
    use crate::svm::npt::tests::Store;
    use crate::svm::vmcb::{CleanBits, Setup};

    /// A CPU that keeps whatever it is allowed to keep, for as long as it is allowed to.
    #[derive(Default)]
    struct GreedyCpu {
        tlb: BTreeMap<u64, HostPhys>,
        ports: Option<Vec<bool>>,
    }

    const FIRST_PORT: u16 = 0xc000;
    const PORTS: u16 = 16;
    /// Pages on both sides of a large-page boundary.
    const FIRST_PAGE: u64 = 0xe_0000 - 520;
    const PAGES: u64 = 1040;

    fn page(number: u64) -> GuestPhys {
        GuestPhys::new((FIRST_PAGE + number) * PAGE_BYTES)
    }

    impl GreedyCpu {
        /// VMRUN, the guest touching everything it can, and #VMEXIT. `Err` tells what it reached that it should not have,
        /// or did not reach.
        fn run(
            &mut self,
            tables: &NestedTables,
            store: &Store,
            io: &IoPermissions,
            vmcb: &mut Vmcb,
        ) -> Result<(), String> {
            if vmcb.flushes_tlb() {
                self.tlb.clear();
            }
            if !vmcb.clean_bits().contains(CleanBits::PERMISSION_MAPS) {
                self.ports = None;
            }
            let open = |port| !io.intercepts(port);
            let kept = self.ports.get_or_insert_with(|| (FIRST_PORT..FIRST_PORT + PORTS).map(open).collect());
            for (port, kept) in (FIRST_PORT..).zip(kept.iter()) {
                if *kept != open(port) {
                    return Err(format!("port {port:#x} is open: {kept}"));
                }
            }
            for number in 0..PAGES {
                let now = tables.translate(store, page(number)).map(|found| found.address);
                if let (None, Some(address)) = (self.tlb.get(&number), now) {
                    self.tlb.insert(number, address);
                }
                let used = self.tlb.get(&number).copied();
                if used != now {
                    return Err(format!("page {number} leads to {used:?}, its tables to {now:?}"));
                }
            }
            vmcb.exited();
            Ok(())
        }
    }

    #[derive(Clone, Debug)]
    enum Change {
        OpenMemory { page: u64, frame: u64, count: u64 },
        CloseMemory { page: u64, count: u64 },
        OpenPorts { first: u16, count: u16 },
        ClosePorts { first: u16, count: u16 },
        Run { which: usize },
    }

    fn change() -> impl Strategy<Value = Change> {
        let number = prop_oneof![0..PAGES, Just(8), Just(520)];
        let count = prop_oneof![1..4u64, Just(512), Just(513)];
        let ports = || (0..PORTS, 1..PORTS);
        prop_oneof![
            1 => (number.clone(), 0..4096u64, count.clone())
                .prop_map(|(page, frame, count)| Change::OpenMemory { page, frame, count }),
            1 => (number, count).prop_map(|(page, count)| Change::CloseMemory { page, count }),
            1 => ports().prop_map(|(first, count)| Change::OpenPorts { first, count }),
            1 => ports().prop_map(|(first, count)| Change::ClosePorts { first, count }),
            3 => (0..2usize).prop_map(|which| Change::Run { which }),
        ]
    }

    fn started(root: HostPhys) -> Vmcb {
        let mut vmcb = Vmcb::new();
        let map = HostPhys::new(0x1000);
        vmcb.configure(&Setup { asid: 1, io_permissions: map, msr_permissions: map, nested_root: root });
        vmcb
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn a_cpu_that_keeps_all_it_may_never_uses_what_was_taken_away(
            changes in prop::collection::vec(change(), 1..40),
            frames in 4usize..12,
        ) {
            let mut store = Store::new(frames);
            let tables = NestedTables::new(&mut store).unwrap();
            let mut io = IoPermissions::deny_all();
            // Two CPUs, each with a control block of its own, that enter when they like.
            let mut cpus = [(); 2].map(|()| (GreedyCpu::default(), started(tables.root())));
            for change in changes {
                let mut reach = Reach::new(&tables, &mut store, &mut io);
                let ports = |first: u16, count: u16| FIRST_PORT + first..=FIRST_PORT + (first + count).min(PORTS - 1);
                let stale = match change {
                    // A refusal changes nothing, which the next run sees.
                    Change::OpenMemory { page: at, frame, count } => {
                        let _ = reach.open_memory(page(at), HostPhys::new(frame << 12), count * PAGE_BYTES);
                        Stale::NOTHING
                    }
                    Change::CloseMemory { page: at, count } => {
                        reach.close_memory(page(at), count * PAGE_BYTES).unwrap_or(Stale::NOTHING)
                    }
                    Change::OpenPorts { first, count } => reach.open_ports(ports(first, count)),
                    Change::ClosePorts { first, count } => reach.close_ports(ports(first, count)),
                    Change::Run { which } => {
                        let (cpu, vmcb) = &mut cpus[which];
                        prop_assert_eq!(cpu.run(&tables, &store, &io, vmcb), Ok(()));
                        Stale::NOTHING
                    }
                };
                cpus.iter_mut().for_each(|(_, vmcb)| stale.forget(vmcb));
            }
        }
    }

    #[test]
    fn a_bar_that_moves_between_two_entries_is_gone_from_its_old_place() {
        let mut store = Store::new(8);
        let tables = NestedTables::new(&mut store).unwrap();
        let mut io = IoPermissions::deny_all();
        let mut vmcb = started(tables.root());
        let mut cpu = GreedyCpu::default();
        let registers = HostPhys::new(0xfea0_0000);
        Reach::new(&tables, &mut store, &mut io).open_memory(page(0), registers, 4 * PAGE_BYTES).unwrap();
        assert_eq!(cpu.run(&tables, &store, &io, &mut vmcb), Ok(()));
        assert!(!vmcb.flushes_tlb(), "an exit withdraws the request");
        let mut reach = Reach::new(&tables, &mut store, &mut io);
        reach.close_memory(page(0), 4 * PAGE_BYTES).unwrap().forget(&mut vmcb);
        reach.open_memory(page(2), registers, 4 * PAGE_BYTES).unwrap();
        assert!(vmcb.flushes_tlb());
        assert_eq!(cpu.run(&tables, &store, &io, &mut vmcb), Ok(()));
        assert_eq!((cpu.tlb.get(&0), cpu.tlb.get(&2)), (None, Some(&registers)));
        let stale = Reach::new(&tables, &mut store, &mut io).close_memory(page(900), PAGE_BYTES).unwrap();
        assert!(stale.is_nothing(), "nothing was mapped there");
    }
}
