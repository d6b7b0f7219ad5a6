//! What a virtual CPU sees: messages from others, what its entries carry, its timer.

use super::*;
use crate::virq::Windows;

#[test]
fn shorthands_and_broadcasts_reach_whom_they_name() {
    for (command, expected) in
        [(0x4_0051, vec![1]), (0x8_0051, vec![0, 1, 2]), (0xc_0051, vec![0, 2]), (0x0_0051, vec![2])]
    {
        let mut machine = Machine::<3>::new(only_eoi);
        machine.lapic(Vcpu(1), 0x310, 2 << 24);
        machine.lapic(Vcpu(1), 0x300, command);
        machine.run();
        assert_eq!(machine.taken.iter().map(|&(vcpu, _)| vcpu).collect::<Vec<_>>(), expected, "{command:#x}");
    }
    let mut machine = Machine::<3>::new(only_eoi);
    machine.lapic(BOOT, 0x310, 0xff << 24);
    machine.lapic(BOOT, 0x300, 0x51);
    machine.run();
    assert_eq!(machine.taken.len(), 3);
}

#[test]
fn init_and_startup_reach_the_others() {
    let mut machine = Machine::<3>::new(only_eoi);
    let chips = &mut machine.chips;
    assert!(!chips.awaits_startup(BOOT) && chips.awaits_startup(Vcpu(2)));
    let others = chips.lapic_write(BOOT, 0x300, 4, 0xc_4500, 0).kicked;
    assert!(!others.contains(BOOT) && others.contains(Vcpu(1)) && others.contains(Vcpu(2)));
    assert_eq!(chips.lapic_write(BOOT, 0x300, 4, 0xc_4600, 0).kicked, others);
    for vcpu in [Vcpu(1), Vcpu(2)] {
        assert!(chips.take_init(vcpu));
        assert_eq!(chips.take_startup(vcpu), Some(0));
        assert!(!chips.awaits_startup(vcpu));
    }
    assert!(!chips.take_init(BOOT));
}

/// The boot CPU starts `vcpu`.
fn start(chips: &mut VirtualChips, vcpu: Vcpu) {
    let _ = chips.lapic_write(BOOT, 0x310, 4, u64::from(vcpu.0) << 24, 0);
    for command in [0x4500, 0x4605] {
        let _ = chips.lapic_write(BOOT, 0x300, 4, command, 0);
    }
    assert!(chips.take_init(vcpu));
    assert_eq!(chips.take_startup(vcpu), Some(5));
}

#[test]
fn who_waits_for_a_start_up_message_sleeps_through_all_else() {
    let mut machine = Machine::<2>::new(only_eoi);
    let (chips, vcpu) = (&mut machine.chips, Vcpu(1));
    let _ = chips.lapic_write(BOOT, 0x310, 4, 1 << 24, 0);
    for command in [0x400, 0x51] {
        let _ = chips.lapic_write(BOOT, 0x300, 4, command, 0);
        assert_eq!(chips.rest(vcpu, true), Rest::Sleeps, "{command:#x}");
        assert!(
            chips
                .before_entry(vcpu, || Interruptibility { nmi_blocked: true, ..Default::default() })
                .special
                .unwrap_or_default()
                .reset
        );
    }
    let _ = chips.lapic_write(BOOT, 0x300, 4, 0x4601, 0);
    assert_eq!(chips.rest(vcpu, true), Rest::Wakes);
    assert_eq!(chips.take_startup(vcpu), Some(1));
    assert!(!chips.before_entry(vcpu, Interruptibility::default).special.unwrap_or_default().reset);
}

#[test]
fn all_at_rest_is_for_ever_unless_one_was_roused() {
    let mut machine = Machine::<3>::new(only_eoi);
    let chips = &mut machine.chips;
    start(chips, Vcpu(2));
    assert_eq!(chips.rest(Vcpu(1), true), Rest::Sleeps, "it waits to be started");
    assert_eq!(chips.rest(Vcpu(2), false), Rest::Sleeps, "CPU 0 runs and may rouse it");
    // CPU 0 rouses CPU 2, which has not noticed yet, and halts.
    let _ = chips.lapic_write(BOOT, 0x310, 4, 2 << 24, 0);
    let _ = chips.lapic_write(BOOT, 0x300, 4, 0x400, 0);
    assert_eq!(chips.rest(BOOT, false), Rest::Sleeps);
    assert_eq!(chips.rest(Vcpu(2), false), Rest::Wakes);
    assert_eq!(chips.rest(BOOT, false), Rest::Sleeps, "CPU 2 is up");
    assert_eq!(
        chips.before_entry(Vcpu(2), Interruptibility::default).special.unwrap_or_default().event,
        Some(Event::Nmi)
    );
    assert_eq!(chips.rest(Vcpu(2), true), Rest::Sleeps, "a halt that an interrupt ends is no rest for ever");
    assert_eq!(chips.rest(Vcpu(1), true), Rest::Sleeps);
    assert_eq!(chips.rest(Vcpu(2), false), Rest::ForEver);
}

#[test]
fn a_self_ipi_and_a_self_nmi_arrive() {
    let mut machine = Machine::<1>::new(only_eoi);
    machine.lapic(BOOT, 0x300, 0x4_00f1);
    machine.lapic(BOOT, 0x300, 0x400);
    machine.run();
    assert_eq!((machine.taken.as_slice(), machine.nmis), ([(0, 0xf1)].as_slice(), 1));
}

/// Who sends a message to a CPU that has just taken the one before, without an exit that would tell, is heard: what the handler that
/// runs already has seen may be older than the message.
#[test]
fn a_message_that_comes_after_its_vector_was_taken_is_taken_once_more() {
    for short in [false, true] {
        let mut machine = Machine::<2>::new(only_eoi);
        let chips = &mut machine.chips;
        let _ = chips.lapic_write(Vcpu(1), 0x310, 4, 0, 0);
        let send = |chips: &mut VirtualChips| {
            assert!(chips.lapic_write(Vcpu(1), 0x300, 4, 0x51, 0).kicked.contains(BOOT));
        };
        send(chips);
        assert_eq!(chips.before_entry(BOOT, Interruptibility::default).offer, Vector::new(0x51));
        // Whether the guest took it before this or after it only its exit tells; here it did, and is kicked.
        send(chips);
        if short {
            assert!(chips.eoi_page(BOOT, 4, true).is_some());
        } else {
            chips.after_exit(BOOT, Exited::default());
            assert_eq!(chips.before_entry(BOOT, Interruptibility::default).offer, None, "it is in service");
            assert!(chips.eoi_page(BOOT, 4, false).is_some());
        }
        machine.run();
        assert_eq!(machine.taken, [(0, 0x51)], "beside the one before");
    }
}

/// What was foreseen is not in IRR, so whatever comes before the entry it was foreseen for has to put it back there.
#[test]
fn what_was_foreseen_waits_again_if_another_entry_a_rest_or_an_exit_comes_of_it() {
    let offered = || {
        let mut machine = Machine::<2>::new(only_eoi);
        machine.redirect_low(PIN, LEVEL | 0x51);
        assert_eq!(machine.chips.offer_from_pin(BOOT, PIN, LINE), Vector::new(0x51));
        machine
    };

    let mut machine = offered();
    let _ = machine.chips.lapic_write(Vcpu(1), 0x300, 4, 0x400, 0);
    let entry = machine.chips.before_entry(BOOT, Interruptibility::default);
    assert_eq!(entry.special.unwrap().event, Some(Event::Nmi));
    assert_eq!(entry.offer, Vector::new(0x51), "beside a non-maskable interrupt");

    let mut machine = offered();
    assert_eq!(machine.chips.rest(BOOT, true), Rest::Wakes);
    machine.run();
    assert_eq!(machine.taken, [(0, 0x51)], "by a CPU that was about to sleep");

    // Some implementations report a standing offer as interrupted on its way too; it is not to be delivered twice.
    for interrupted in [None, Vector::new(0x51)] {
        let chips = &mut offered().chips;
        chips.after_exit(BOOT, Exited { offer_stands: true, interrupted });
        let irr = chips.lapic_read(BOOT, 0x200 + (0x51 >> 5 << 4), 4, 0);
        assert_eq!(irr, 1 << (0x51 % 32), "the guest reads that it waits");
        let entry = chips.before_entry(BOOT, Interruptibility::default);
        assert_eq!((entry.offer, entry.special), (Vector::new(0x51), None));
    }
}

#[test]
fn a_raised_task_priority_withdraws_and_a_lowered_one_releases() {
    let mut machine = Machine::<1>::new(only_eoi);
    machine.interrupts_enabled = false;
    machine.lapic(BOOT, 0x300, 0x4_0051);
    machine.run();
    machine.chips.set_cr8(BOOT, 5).unwrap();
    machine.interrupts_enabled = true;
    machine.run();
    assert_eq!(machine.taken, []);
    assert_eq!(machine.chips.rest(BOOT, true), Rest::Sleeps);
    machine.chips.set_cr8(BOOT, 4).unwrap();
    assert_eq!(machine.chips.rest(BOOT, true), Rest::Wakes);
    assert_eq!(machine.chips.rest(BOOT, false), Rest::ForEver);
    machine.run();
    assert_eq!(machine.taken, [(0, 0x51)]);
}

#[test]
fn an_interrupted_delivery_goes_through_isr_once() {
    let mut machine = Machine::<1>::new(only_eoi);
    machine.lapic(BOOT, 0x300, 0x4_0051);
    let chips = &mut machine.chips;
    let vector = Vector::new(0x51).unwrap();
    assert_eq!(chips.before_entry(BOOT, Interruptibility::default).offer, Some(vector));
    let interrupted = Exited { offer_stands: false, interrupted: Some(vector) };
    assert_eq!(chips.after_exit(BOOT, interrupted), PinSet::EMPTY);
    assert_eq!(chips.lapic_read(BOOT, 0x120, 4, 0), 1 << 0x11);
    let injection = chips.before_entry(BOOT, Interruptibility::default);
    assert_eq!(
        (injection.special.unwrap_or_default().event, injection.offer),
        (Some(Event::Interrupt(vector)), None)
    );
    assert_eq!(chips.after_exit(BOOT, Exited::default()), PinSet::EMPTY);
    assert_eq!(chips.before_entry(BOOT, Interruptibility::default), Injection::default());
}

#[test]
fn i44_init_forgets_what_was_on_its_way() {
    let mut machine = Machine::<2>::new(only_eoi);
    let chips = &mut machine.chips;
    start(chips, Vcpu(1));
    let vector = Vector::new(0x51).unwrap();
    let _ = chips.lapic_write(Vcpu(1), 0xf0, 4, 0x1ff, 0);
    let _ = chips.lapic_write(Vcpu(1), 0x300, 4, 0x4_0051, 0);
    chips.before_entry(Vcpu(1), Interruptibility::default);
    chips.after_exit(Vcpu(1), Exited { offer_stands: false, interrupted: Some(vector) });
    let _ = chips.lapic_write(BOOT, 0x300, 4, 0xc_4500, 0);
    assert!(chips.take_init(Vcpu(1)));
    let nothing = Injection { offer: None, special: Some(Special { reset: true, ..Special::default() }) };
    assert_eq!(chips.before_entry(Vcpu(1), Interruptibility::default), nothing);
}

#[test]
fn ten_nmis_during_one_are_one() {
    let mut machine = Machine::<1>::new(only_eoi);
    let chips = &mut machine.chips;
    let nmi =
        |chips: &mut VirtualChips| assert!(!chips.lapic_write(BOOT, 0x300, 4, 0x400, 0).kicked.is_empty());
    let blocked = Interruptibility { nmi_blocked: true, ..Interruptibility::default() };
    nmi(chips);
    assert_eq!(
        chips.before_entry(BOOT, Interruptibility::default).special.unwrap_or_default().event,
        Some(Event::Nmi)
    );
    for _ in 0..10 {
        nmi(chips);
        assert_eq!(chips.before_entry(BOOT, || blocked).special.unwrap_or_default().event, None);
    }
    assert_eq!(
        chips.before_entry(BOOT, Interruptibility::default).special.unwrap_or_default().event,
        Some(Event::Nmi)
    );
    assert_eq!(chips.before_entry(BOOT, Interruptibility::default).special.unwrap_or_default().event, None);
}

#[test]
fn the_timer_wakes_its_cpu() {
    let mut machine = Machine::<2>::new(only_eoi);
    let vcpu = Vcpu(1);
    start(&mut machine.chips, vcpu);
    machine.lapic(vcpu, 0xf0, 0x1ff);
    for (offset, value) in [(0x320, 0xee), (0x3e0, 0xb), (0x380, 0x10000)] {
        assert!(machine.chips.lapic_write(vcpu, offset, 4, value, 0).timer_changed);
    }
    assert_eq!((machine.chips.deadline(vcpu), machine.chips.deadline(BOOT)), (Some(0x10000), None));
    assert!(!machine.chips.advance_timer(vcpu, 0xffff));
    assert!(machine.chips.advance_timer(vcpu, 0x10000));
    assert_eq!((machine.chips.rest(vcpu, true), machine.chips.rest(BOOT, true)), (Rest::Wakes, Rest::Sleeps));
    machine.run();
    assert_eq!(machine.taken, [(1, 0xee)]);
}

#[test]
fn a_cpu_the_partition_does_not_have_answers_nothing() {
    let mut machine = Machine::<1>::new(only_eoi);
    let chips = &mut machine.chips;
    for absent in (1..=u8::MAX).map(Vcpu) {
        assert_eq!(chips.lapic_read(absent, 0x30, 4, 0), u64::MAX);
        assert_eq!(chips.lapic_write(absent, 0xf0, 4, 0x1ff, 0), Outcome::default());
        assert_eq!(chips.read_msr(absent, 0x1b, 0), Err(GeneralProtection));
        assert_eq!(chips.write_msr(absent, 0x1b, 0, 0), Err(GeneralProtection));
        assert_eq!(chips.set_cr8(absent, 0), Err(GeneralProtection));
        assert_eq!(chips.before_entry(absent, Interruptibility::default), Injection::default());
        assert_eq!(chips.after_exit(absent, Exited::default()), PinSet::EMPTY);
        assert!(!chips.take_init(absent) && !chips.lapic_enabled(absent));
        assert_eq!(chips.rest(absent, true), Rest::ForEver);
        assert_eq!((chips.deadline(absent), chips.take_startup(absent)), (None, None));
    }
}

/// A CPU that takes interrupts.
const OPEN: Interruptibility =
    Interruptibility { nmi_blocked: false, shadow: false, interrupts_enabled: true, event_taken: false };

fn external(chips: &mut VirtualChips, cpu: Interruptibility) -> (Option<Event>, bool) {
    let special = chips.before_entry(BOOT, || cpu).special.unwrap_or_default();
    (special.event, special.windows == Windows::INTERRUPTS)
}

#[test]
fn an_8259_pair_interrupts_the_boot_cpu_as_firmware_left_it() {
    let mut machine = Machine::<2>::new(only_eoi);
    let chips = &mut machine.chips;
    assert!(chips.drive_irq(11, true).is_empty(), "there is none");
    assert_eq!(chips.pic_read(0x21).0, u8::MAX);
    for _ in 0..2 {
        chips.add_pics();
        assert_eq!(chips.rest(BOOT, true), Rest::Sleeps);
        assert_eq!(chips.drive_irq(11, true).only(), Some(BOOT));
        let _ = chips.drive_irq(11, false);
        assert_eq!(chips.rest(BOOT, false), Rest::Sleeps);
        assert_eq!(chips.rest(BOOT, true), Rest::Wakes);
        let closed = Interruptibility { interrupts_enabled: false, ..OPEN };
        assert_eq!(external(chips, closed), (None, true));
        let other = chips.before_entry(Vcpu(1), || OPEN).special.unwrap_or_default();
        assert_eq!((other.event, other.windows), (None, Windows::empty()), "it is the boot CPU's alone");
        assert_eq!(external(chips, OPEN), (Some(Event::External(0x73)), false));
        assert_eq!(external(chips, OPEN), (None, false), "once");
        assert!(chips.pic_write(0xa0, 0x20).is_empty());
        chips.renew();
        assert_eq!(chips.pic_read(0xa1).0, 0);
    }
}

#[test]
fn an_8259_pair_is_let_through_by_lint0_or_by_a_local_apic_that_is_out_of_the_way() {
    let mut machine = Machine::<1>::new(only_eoi);
    let chips = &mut machine.chips;
    chips.add_pics();
    let lint0 = |chips: &mut VirtualChips, entry| _ = chips.lapic_write(BOOT, 0x350, 4, entry, 0);
    for (entry, open) in [(0x1_0700, false), (0x400, false), (0, false), (0x51, false), (0x700, true)] {
        lint0(chips, entry);
        assert_eq!(!chips.drive_irq(4, true).is_empty(), open, "{entry:#x}");
        assert_eq!(chips.rest(BOOT, true) == Rest::Wakes, open);
        let found = external(chips, OPEN);
        assert_eq!(found, if open { (Some(Event::External(0x0c)), false) } else { (None, false) });
        let _ = chips.drive_irq(4, false);
    }
    lint0(chips, 0x1_0000);
    let _ = chips.pic_write(0x20, 0x20);
    assert!(chips.drive_irq(4, true).is_empty());
    let _ = chips.write_msr(BOOT, 0x1b, 0xfee0_0100, 0).unwrap();
    assert_eq!(external(chips, OPEN), (Some(Event::External(0x0c)), false));
}

#[test]
fn an_8259_pair_waits_for_a_cpu_that_waits_to_be_started() {
    let mut machine = Machine::<1>::new(only_eoi);
    let chips = &mut machine.chips;
    chips.add_pics();
    let _ = chips.lapic_write(BOOT, 0x300, 4, 0x500, 0);
    assert!(chips.take_init(BOOT));
    let _ = chips.lapic_write(BOOT, 0x350, 4, 0x700, 0);
    let _ = chips.drive_irq(4, true);
    assert_eq!(external(chips, OPEN), (None, false));
    let _ = chips.lapic_write(BOOT, 0x300, 4, 0x605, 0);
    assert_eq!(chips.take_startup(BOOT), Some(5));
    // INIT has masked LINT0, and start-up leaves it so.
    let _ = chips.lapic_write(BOOT, 0xf0, 4, 0x1ff, 0);
    let _ = chips.lapic_write(BOOT, 0x350, 4, 0x700, 0);
    assert_eq!(external(chips, OPEN), (Some(Event::External(0x0c)), false));
}
