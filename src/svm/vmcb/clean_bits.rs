//! A CPU that caches every field as long as the clean bits let it (APM2 15.15) must still run with what the block says.

use proptest::prelude::*;

use super::layout::cached::{self, Field};
use super::*;
use crate::svm::event::Fault;

/// What the CPU kept of the block at the last exit.
#[derive(Default)]
struct CachingCpu {
    kept: Option<Vec<Field>>,
}

fn fields(block: &Vmcb) -> Vec<Field> {
    let mut all = cached::control(&block.control);
    all.extend(cached::save(&block.save));
    all
}

impl CachingCpu {
    /// VMRUN: the fields it runs with.
    fn enter(&self, block: &Vmcb) -> Vec<Field> {
        let clean = block.clean_bits();
        let said = fields(block);
        let Some(kept) = &self.kept else { return said };
        let choose = |(said, kept): (Field, &Field)| {
            let (_, _, bit) = said;
            if !bit.is_empty() && clean.contains(bit) { *kept } else { said }
        };
        said.into_iter().zip(kept).map(choose).collect()
    }

    /// #VMEXIT: the guest changed its registers, and the block and the cache both have them.
    fn exit(&mut self, block: &mut Vmcb, seed: u64) {
        let Save { cr0, cr2, cr3, cr4, efer, dr6, dr7, rflags, rip, rsp, rax, .. } = &mut block.save;
        for (register, n) in [cr0, cr2, cr3, cr4, efer, dr6, dr7, rflags, rip, rsp, rax].into_iter().zip(1..)
        {
            *register = seed.wrapping_mul(n);
        }
        let Save { cs, ss, ds, es, gdtr, idtr, .. } = &mut block.save;
        for segment in [cs, ss, ds, es, gdtr, idtr] {
            segment.base = seed;
        }
        block.save.cpl = (seed & 3) as u8;
        block.control.int_ctl ^= V_IRQ;
        block.control.int_state = seed & 1;
        self.kept = Some(fields(block));
        block.exited();
    }
}

type Change = (&'static str, fn(&mut Vmcb, u64));

fn some_segment(value: u64) -> Segment {
    Segment { selector: value as u16, attributes: (value >> 16) as u16, limit: value as u32, base: value }
}

fn some_vector(value: u64) -> Vector {
    Vector::new(value as u8 | 0x20).unwrap()
}

/// Everything that may be done to a block between an exit and the next entry.
const CHANGES: [Change; 41] = [
    ("configure", |b, v| {
        let at = HostPhys::new(v << 12);
        let setup = Setup { asid: v as u32, io_permissions: at, msr_permissions: at, nested_root: at };
        b.configure(&setup);
    }),
    ("start_protected32", |b, v| b.start_protected32(GuestPhys::new(v))),
    ("start_long64", |b, v| {
        let at = GuestPhys::new(v);
        b.start_long64(at, at, at, v as u16);
    }),
    ("start_real", |b, v| b.start_real(v as u8)),
    ("exited", |_, _| {}),
    ("moved", |b, _| b.moved()),
    ("flush_tlb", |b, _| b.flush_tlb()),
    ("permissions_changed", |b, v| {
        b.permissions_changed();
        b.control.iopm_base = v << 12;
    }),
    ("store_from", |b, v| {
        let mut regs = GuestRegs::new();
        regs[Gpr::Rax] = v;
        regs[Gpr::Rsp] = v;
        b.store_from(&regs);
    }),
    ("inject", |b, _| b.inject(Event::Exception(Fault::GENERAL_PROTECTION))),
    ("set_virtual_interrupt", |b, v| b.set_virtual_interrupt(some_vector(v))),
    ("clear_virtual_interrupt", |b, _| b.clear_virtual_interrupt()),
    ("set_task_priority", |b, v| b.set_task_priority(v as u8)),
    ("intercept_iret", |b, v| b.intercept_iret(v & 1 != 0)),
    ("intercept_every_exception", |b, v| b.intercept_every_exception(v & 1 != 0)),
    ("intercept_interrupt_window", |b, v| b.intercept_interrupt_window(v & 1 != 0)),
    ("set_tsc_offset", |b, v| b.set_tsc_offset(v)),
    ("retire", |b, v| b.retire(v as u8)),
    ("continue_at", |b, v| b.continue_at(v)),
    ("set_cpl", |b, v| b.set_cpl((v & 3) as u8)),
    ("set_rip", |b, v| b.set_rip(v)),
    ("set_rflags", |b, v| b.set_rflags(v)),
    ("set_rsp", |b, v| b.set_rsp(v)),
    ("set_rax", |b, v| b.set_rax(v)),
    ("set_cr0", |b, v| b.set_cr0(v)),
    ("set_cr2", |b, v| b.set_cr2(v)),
    ("set_cr3", |b, v| b.set_cr3(v)),
    ("set_cr4", |b, v| b.set_cr4(v)),
    ("set_efer", |b, v| b.set_efer(v)),
    ("set_pat", |b, v| b.set_pat(v)),
    ("set_dr6", |b, v| b.set_dr6(v)),
    ("set_dr7", |b, v| b.set_dr7(v)),
    ("set_cs", |b, v| b.set_cs(some_segment(v))),
    ("set_ss", |b, v| b.set_ss(some_segment(v))),
    ("set_ds", |b, v| b.set_ds(some_segment(v))),
    ("set_es", |b, v| b.set_es(some_segment(v))),
    ("set_fs", |b, v| b.set_fs(some_segment(v))),
    ("set_gs", |b, v| b.set_gs(some_segment(v))),
    ("set_gdtr", |b, v| b.set_gdtr(some_segment(v))),
    ("set_idtr", |b, v| b.set_idtr(some_segment(v))),
    ("set_tr", |b, v| b.set_tr(some_segment(v))),
];

/// The names after `marker` in the source of the block.
fn declared(marker: &str, end: char) -> Vec<&'static str> {
    let source = include_str!("../vmcb.rs");
    source
        .lines()
        .filter_map(|line| line.trim().split_once(marker)?.1.split_once(end))
        .map(|(name, _)| name)
        .collect()
}

#[test]
fn everything_that_changes_the_block_is_among_the_changes() {
    let source = include_str!("../vmcb.rs");
    let mut methods: Vec<&str> = Vec::new();
    for line in source.lines().map(str::trim) {
        let Some((name, rest)) = line.split_once("fn ").and_then(|(_, rest)| rest.split_once('(')) else {
            continue;
        };
        if rest.starts_with("&mut self")
            && !["$set", "touch", "reset_save_area", "resume_or_trap"].contains(&name)
        {
            methods.push(name);
        }
    }
    methods.extend(declared(", set_", ':'));
    let tried: Vec<&str> = CHANGES.iter().map(|(name, _)| name.trim_start_matches("set_")).collect();
    for method in &methods {
        assert!(tried.contains(&method.trim_start_matches("set_")), "{method} is not tried");
    }
    assert!(methods.len() >= CHANGES.len(), "found {} methods", methods.len());
}

proptest! {
    #[test]
    fn a_cpu_that_caches_all_it_may_runs_with_what_the_block_says(
        rounds in prop::collection::vec(
            (prop::collection::vec((0..CHANGES.len(), any::<u64>()), 0..4), any::<u64>()),
            1..12,
        ),
    ) {
        let mut block = Vmcb::new();
        let mut cpu = CachingCpu::default();
        for (changes, seed) in rounds {
            let mut names = Vec::new();
            for (index, value) in changes {
                let (name, change) = CHANGES[index];
                change(&mut block, value);
                names.push(name);
            }
            for (used, said) in cpu.enter(&block).into_iter().zip(fields(&block)) {
                prop_assert_eq!(used, said, "after {:?}", names);
            }
            cpu.exit(&mut block, seed);
        }
    }
}
