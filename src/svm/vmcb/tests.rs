use super::layout::cached;
use super::*;
use crate::svm::bitmap::MSR_PASS_THROUGH;
use crate::svm::event::Fault;
use crate::svm::unswitched::tests::DirtyCpu;
use crate::svm::wipe;
use crate::vcpu::Exit;
use crate::x86::msr;

const SETUP: Setup = Setup {
    asid: 3,
    io_permissions: HostPhys::new(0x10_0000),
    msr_permissions: HostPhys::new(0x20_0000),
    nested_root: HostPhys::new(0x30_0000),
};

fn started() -> Vmcb {
    let mut block = Vmcb::new();
    block.configure(&SETUP);
    block.start_protected32(GuestPhys::new(0x10_0000));
    block
}

#[test]
fn an_empty_block_is_refused_and_a_started_one_is_not() {
    assert_eq!(Vmcb::new().check(), Err(Inconsistency::AsidZero));
    assert_eq!(started().check(), Ok(()));
    let mut real = started();
    real.start_real(0x9f);
    assert_eq!(real.check(), Ok(()));
    assert_eq!(real.linear_rip(), 0x9_f000);
    assert_eq!(real.code_size(), CodeSize::Bits16);
}

#[test]
fn a_start_in_64_bit_mode_is_what_linux_asks_for() {
    let mut block = started();
    let (root, gdt) = (GuestPhys::new(0x1_1000), GuestPhys::new(0x1_7000));
    block.start_long64(GuestPhys::new(0x100_0200), root, gdt, 32);
    assert_eq!(block.check(), Ok(()));
    assert_eq!((block.code_size(), block.linear_rip(), block.cpl()), (CodeSize::Bits64, 0x100_0200, 0));
    assert_eq!((block.cr0(), block.cr3(), block.cr4()), (0x8000_0011, 0x1_1000, 0x20));
    assert_eq!(block.efer(), efer::SVME | efer::LME | efer::LMA);
    assert_eq!((block.gdtr().base, block.gdtr().limit), (0x1_7000, 31));
    assert_eq!((block.cs().selector, block.cs().limit), (0x10, u32::MAX));
    for segment in [block.ds(), block.es(), block.ss()] {
        assert_eq!((segment.selector, segment.attributes, segment.limit), (0x18, 0xc93, u32::MAX));
    }
    assert_eq!(block.rflags(), 2, "interrupts disabled");
}

#[test]
fn each_rule_is_named() {
    let broken = |change: fn(&mut Vmcb)| {
        let mut block = started();
        change(&mut block);
        block.check().unwrap_err()
    };
    assert_eq!(broken(|b| b.control.asid = 0), Inconsistency::AsidZero);
    assert_eq!(broken(|b| b.control.misc2 = 0), Inconsistency::VmrunNotIntercepted);
    assert_eq!(broken(|b| b.control.msrpm_base += 1), Inconsistency::Misaligned);
    assert_eq!(broken(|b| b.set_efer(0)), Inconsistency::Efer);
    assert_eq!(broken(|b| b.set_efer(efer::SVME | 1 << 63)), Inconsistency::Efer);
    assert_eq!(broken(|b| b.set_cr0(b.cr0() | cr0::NW)), Inconsistency::Cr0);
    assert_eq!(broken(|b| b.set_cr0(b.cr0() | 1 << 32)), Inconsistency::Cr0);
    assert_eq!(broken(|b| b.set_cr4(1 << 32)), Inconsistency::Cr4);
    assert_eq!(broken(|b| b.set_dr7(1 << 32)), Inconsistency::DebugRegister);
    let long = |b: &mut Vmcb| {
        b.set_efer(efer::SVME | efer::LME | efer::LMA);
        b.set_cr0(cr0::PG | cr0::PE | cr0::ET);
    };
    let mut block = started();
    long(&mut block);
    assert_eq!(block.check(), Err(Inconsistency::LongMode), "paging without PAE");
    block.set_cr4(cr4::PAE);
    assert_eq!(block.check(), Ok(()), "compatibility mode");
    let mut code = block.cs();
    code.attributes |= Segment::LONG;
    block.set_cs(code);
    assert_eq!(block.check(), Err(Inconsistency::LongMode), "L and D together");
}

#[test]
fn the_protected_mode_recipe() {
    let block = started();
    assert_eq!(block.cr0(), 0x11);
    assert_eq!((block.cr3(), block.cr4(), block.efer()), (0, 0, efer::SVME));
    assert_eq!(block.cs(), Segment { selector: 0x10, attributes: 0xc9b, limit: u32::MAX, base: 0 });
    for segment in [block.ds(), block.es(), block.ss(), block.fs(), block.gs()] {
        assert_eq!(segment, Segment { selector: 0x18, attributes: 0xc93, limit: u32::MAX, base: 0 });
    }
    assert_eq!(block.tr().attributes, 0x8b);
    assert_eq!(block.rflags(), 2);
    assert_eq!(block.linear_rip(), 0x10_0000);
    assert_eq!(block.code_size(), CodeSize::Bits32);
    assert!(!block.can_take_interrupt());
}

#[test]
fn intercept_words_by_bit() {
    let control = started().control;
    assert_eq!(control.cr_intercepts, 1 << 24);
    assert_eq!(control.exception_intercepts, 1 << 1 | 1 << 17 | 1 << 18);
    // INTR NMI SMI INIT, RDPMC, CPUID RSM, INVD, HLT, INVLPGA IOIO MSR task FERR SHUTDOWN.
    assert_eq!(control.misc1, 0xfd4c_800f);
    // VMRUN..SKINIT, WBINVD MONITOR MWAIT MWAIT-armed, RDPRU.
    assert_eq!(control.misc2, 0x5e7f);
    assert_eq!(control.nested_control, 1);
    assert_eq!(control.int_ctl, 1 << 24);
    for absent in [14, 23] {
        assert_eq!(control.misc1 >> absent & 1, 0, "RDTSC and PAUSE stay with the guest");
    }
    assert_eq!(control.misc2 >> 13 & 1, 0, "XSETBV stays with the guest");
}

#[test]
fn setters_clear_exactly_the_bit_that_covers_them() {
    let check = |change: fn(&mut Vmcb), covers: CleanBits| {
        let mut block = started();
        block.exited();
        assert_eq!(block.clean_bits(), CleanBits::all());
        change(&mut block);
        assert_eq!(block.clean_bits(), CleanBits::all() - covers);
    };
    check(|b| b.set_rip(1), CleanBits::empty());
    check(|b| b.set_cr0(1), CleanBits::CONTROL_REGISTERS);
    check(|b| b.set_cr3(1), CleanBits::CONTROL_REGISTERS);
    check(|b| b.set_cr4(1), CleanBits::CONTROL_REGISTERS);
    check(|b| b.set_efer(1), CleanBits::CONTROL_REGISTERS);
    check(|b| b.set_cr2(1), CleanBits::CR2);
    check(|b| b.set_pat(1), CleanBits::NESTED_PAGING);
    check(|b| b.set_dr6(1), CleanBits::DEBUG_REGISTERS);
    check(|b| b.set_cs(Segment::default()), CleanBits::SEGMENTS);
    check(|b| b.set_idtr(Segment::default()), CleanBits::DESCRIPTOR_TABLES);
    check(|b| b.set_tsc_offset(1), CleanBits::INTERCEPTS);
    check(|b| b.intercept_interrupt_window(true), CleanBits::INTERCEPTS);
    check(|b| b.intercept_iret(true), CleanBits::INTERCEPTS);
    check(|b| b.set_virtual_interrupt(Vector::new(0x51).unwrap()), CleanBits::VIRTUAL_INTERRUPT);
    check(|b| b.clear_virtual_interrupt(), CleanBits::VIRTUAL_INTERRUPT);
    check(|b| b.set_task_priority(5), CleanBits::VIRTUAL_INTERRUPT);
    check(|b| b.set_task_priority(0), CleanBits::empty());
    check(|b| b.permissions_changed(), CleanBits::PERMISSION_MAPS);
    check(|b| b.moved(), CleanBits::all());
    check(|b| b.start_real(0), CleanBits::all());
    check(|b| b.configure(&SETUP), CleanBits::all());
}

#[test]
fn one_shot_requests_end_with_the_exit() {
    let mut block = started();
    assert_eq!(block.control.tlb_control, 1, "the first entry flushes");
    block.inject(Event::Exception(Fault::GENERAL_PROTECTION));
    assert!(block.injection_pending());
    block.exited();
    assert!(!block.injection_pending());
    assert_eq!(block.control.tlb_control, 0);
    assert!(!block.flushes_tlb());
    block.flush_tlb();
    assert_eq!(block.control.tlb_control, 1);
    assert!(block.flushes_tlb());
}

#[test]
fn virtual_interrupts_by_bit() {
    let mut block = started();
    block.set_task_priority(0x35);
    block.set_virtual_interrupt(Vector::new(0xa7).unwrap());
    assert_eq!(block.control.int_ctl, 1 << 24 | 1 << 20 | 1 << 8 | 5);
    assert_eq!(block.control.int_vector, 0xa7);
    block.set_virtual_interrupt(Vector::new(0x31).unwrap());
    assert_eq!(block.control.int_vector, 0x31);
    assert!(block.virtual_interrupt_pending());
    block.clear_virtual_interrupt();
    assert_eq!(block.control.int_ctl, 1 << 24 | 5);
    assert_eq!(block.task_priority(), 5);
}

#[test]
fn iret_is_intercepted_on_demand() {
    let mut block = started();
    let before = block.control.misc1;
    block.intercept_iret(true);
    assert_eq!(block.control.misc1, before | 1 << 20);
    block.intercept_iret(false);
    assert_eq!(block.control.misc1, before);
}

#[test]
fn an_interrupted_delivery_is_told_by_the_valid_bit() {
    let mut block = started();
    for (info, expected) in
        [(0, false), (0xb0e, false), (0x8000_0b0e, true), (0x8000_0480, true), (1 << 63, false)]
    {
        block.control.exit_int_info = info;
        assert_eq!(block.interrupted_a_delivery(), expected, "{info:#x}");
    }
}

#[test]
fn retiring_an_instruction_ends_its_shadow() {
    let mut block = started();
    block.control.int_state = 3;
    block.set_rflags(rflags::IF | rflags::RF | 2);
    assert!(!block.can_take_interrupt());
    block.set_rip(0xffff_ffff);
    block.retire(2);
    assert_eq!(block.rip(), 1, "EIP wraps at 32 bits");
    assert_eq!(block.control.int_state, 2);
    assert_eq!(block.rflags(), rflags::IF | 2);
    assert!(block.can_take_interrupt());
}

#[test]
fn a_guest_that_single_steps_traps_behind_an_emulated_instruction() {
    for (flags, traps) in
        [(0, false), (rflags::RF, false), (rflags::TF, true), (rflags::TF | rflags::RF, true)]
    {
        let mut block = started();
        block.exited();
        block.set_rflags(flags | rflags::ALWAYS_ONE);
        block.set_dr6(0xffff_0ff1);
        block.retire(2);
        assert_eq!(block.control.event_inject, if traps { 0x8000_0301 } else { 0 });
        assert_eq!(block.dr6(), 0xffff_0ff1 | if traps { dr6::BS } else { 0 }, "what it found before stays");
        assert_eq!(block.rflags(), flags & !rflags::RF | rflags::ALWAYS_ONE);

        // The trap flag is the hypervisor's: the CPU traps for it.
        block.exited();
        block.set_dr6(0xffff_0ff0);
        block.intercept_every_exception(true);
        block.retire(2);
        assert!(!block.injection_pending());
        assert_eq!(block.dr6(), 0xffff_0ff0);
    }
}

#[test]
fn code_sizes() {
    let mut block = started();
    for (attributes, lma, size) in [
        (0xa9b, efer::LMA, CodeSize::Bits64),
        (0xa9b, 0, CodeSize::Bits16),
        (0xc9b, efer::LMA, CodeSize::Bits32),
        (0x09b, efer::LMA, CodeSize::Bits16),
    ] {
        block.set_cs(Segment { selector: 8, attributes, limit: 0, base: 0xffff_0000 });
        block.set_efer(efer::SVME | lma);
        assert_eq!(block.code_size(), size);
        block.set_rip(0x1_0010);
        let linear = if size == CodeSize::Bits64 { 0x1_0010 } else { 0x10 };
        assert_eq!(block.linear_rip(), linear);
    }
}

#[test]
fn registers_move_both_ways() {
    let mut block = started();
    let mut regs = GuestRegs::new();
    block.set_rax(7);
    block.set_rsp(8);
    block.load_into(&mut regs);
    assert_eq!((regs[Gpr::Rax], regs[Gpr::Rsp]), (7, 8));
    regs[Gpr::Rax] = 9;
    regs[Gpr::Rsp] = 10;
    block.store_from(&regs);
    assert_eq!((block.rax(), block.rsp()), (9, 10));
}

#[test]
fn decode_assists_are_used_only_when_there() {
    let mut block = started();
    assert_eq!(block.next_rip(), None);
    assert!(block.fetched_bytes().is_empty());
    block.control.next_rip = 0x1002;
    block.control.fetched = [0x0f; 15];
    block.control.fetched_count = 2;
    assert_eq!(block.next_rip(), Some(0x1002));
    assert_eq!(block.fetched_bytes(), [0x0f, 0x0f]);
    block.control.fetched_count = 200;
    assert!(block.fetched_bytes().is_empty());
}

#[test]
fn every_intercept_that_is_set_has_a_known_exit() {
    let mut block = started();
    let exit = |block: &mut Vmcb, code: u64, info1: u64| {
        block.control.exit_code = code;
        block.control.exit_info1 = info1;
        block.exit()
    };
    // FERR_FREEZE (bit 30) alone stays unknown: it ends the partition.
    for bit in (0..32).filter(|bit| Misc1::GUEST.bits() >> bit & 1 != 0 && *bit != 30) {
        let found = exit(&mut block, 0x60 + bit, 0x10);
        assert!(!matches!(found, Exit::Unknown(_)), "exit {:#x}", 0x60 + bit);
    }
    for bit in (0..16).filter(|bit| Misc2::GUEST.bits() >> bit & 1 != 0) {
        assert!(!matches!(exit(&mut block, 0x80 + bit, 0), Exit::Unknown(_)), "exit {:#x}", 0x80 + bit);
    }
    assert_eq!(exit(&mut block, 0x7c, 0), Exit::ReadMsr);
    assert_eq!(exit(&mut block, 0x7c, 1), Exit::WriteMsr);
    assert_eq!(exit(&mut block, 0x74, 0), Exit::Iret);
    assert_eq!(exit(&mut block, 0x18, 0), Exit::WriteCr8);
    assert_eq!(exit(&mut block, 0x51, 0), Exit::Exception { vector: 17, error_code: Some(0) });
    assert_eq!(exit(&mut block, u64::from(u32::MAX), 0), Exit::Invalid);
    assert_eq!(exit(&mut block, 0x6e, 0), Exit::Unknown(0x6e));
    assert_eq!(exit(&mut block, 0x7b, 0), Exit::Unknown(0x7b), "a port access without a size");
}

/// All that a guest can read without an exit, dirty, and then given its first state as an entry gives it: by VMRUN and
/// VMLOAD from the block, by the world switch from the frame, and by the wipe.
#[test]
fn a_guests_first_registers_are_those_of_the_manual_and_nobody_elses() {
    // What VMLOAD exchanges (APM2 15.5.2), by the MSRs that name it.
    const EXCHANGED: [(u32, &str); 10] = [
        (msr::FS_BASE, "fs"),
        (msr::GS_BASE, "gs"),
        (msr::KERNEL_GS_BASE, "kernel_gs_base"),
        (msr::STAR, "star"),
        (msr::LSTAR, "lstar"),
        (msr::CSTAR, "cstar"),
        (msr::SFMASK, "sfmask"),
        (msr::SYSENTER_CS, "sysenter_cs"),
        (msr::SYSENTER_ESP, "sysenter_esp"),
        (msr::SYSENTER_EIP, "sysenter_eip"),
    ];
    let mut block = started();
    // What the guest before left behind in the same block.
    block.save.lstar = 0xdead;
    block.save.cr2 = 0xdead;
    block.start_protected32(GuestPhys::new(0x10_0000));
    let fields = cached::save(&block.save);
    let value = |name: &str| fields.iter().find(|(field, ..)| *field == name).map(|(_, value, _)| *value);
    let expected = |name: &str| match name {
        "cs" | "ds" | "es" | "ss" | "fs" | "gs" | "gdtr" | "idtr" | "ldtr" | "tr" => None,
        "cr0" => Some(0x11),
        "efer" => Some(efer::SVME),
        "dr6" => Some(0xffff_0ff0),
        "dr7" => Some(0x400),
        "rflags" => Some(2),
        "rip" => Some(0x10_0000),
        "pat" => Some(PAT_RESET),
        _ => Some(0),
    };
    for (name, [found, base], _) in &fields {
        assert_eq!(*base, 0, "{name}: a segment's base");
        if let Some(expected) = expected(name) {
            assert_eq!(*found, expected, "{name}");
        }
    }
    let mut cpu = DirtyCpu::new(0x2e7, true);
    wipe(&mut cpu);
    for number in MSR_PASS_THROUGH {
        let exchanged = EXCHANGED.iter().find(|(msr, _)| *msr == number).and_then(|(_, name)| value(name));
        let wiped = (number == msr::TSC_AUX).then_some(cpu.tsc_aux == Some(0));
        assert!(exchanged.is_some() || wiped == Some(true), "MSR {number:#x} keeps what it held");
    }
    // Debug registers do not exit: VMRUN gives two of them, the wipe the rest.
    assert_eq!(block.control.dr_intercepts, 0);
    assert_eq!(cpu.debug_addresses, [0; 4]);
    assert!(cpu.state[2..].iter().zip(2..64).all(|(state, n)| *state == 0 || 0x2e7_u64 >> n & 1 == 0));
    for register in Gpr::ALL {
        assert_eq!(GuestRegs::new()[register], 0, "the frame's {register:?}");
    }
}
