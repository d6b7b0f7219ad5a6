//! What a virtual CPU sees: messages from others, what its entries carry, its timer.

use super::*;

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
