//! What the next entry into a guest carries, and what the exit after it tells.
//!
//! Two channels lead into a virtual CPU. An *event* is forced on it at entry. An *offer* is a vector the CPU
//! takes by itself at the first instruction boundary at which it takes interrupts; until then the guest runs
//! on with it. On AMD they are EVENTINJ and the virtual interrupt V_IRQ with V_IGN_TPR (APM2 15.20, 15.21.4).
//! A vendor without the second channel makes an offer an event when the guest is interruptible, and asks for
//! an exit when it becomes so otherwise.
//!
//! An offer commits to nothing. While it stands the vector is in neither IRR nor ISR, since only the next exit tells whether the CPU
//! has taken it: if so it goes to ISR, and otherwise back to IRR, so that a higher one simply replaces it at the next entry, and a
//! raised task priority withdraws it: a guest cannot change its priority without an exit. What arrives for the vector meanwhile waits
//! in IRR, as it does in a CPU that has acknowledged the one before.

use bitflags::bitflags;

use crate::irq::Vector;

/// What an exit tells about the two channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exited {
    /// The offer still stands: the CPU has not taken it.
    pub offer_stands: bool,
    /// The exit struck while the CPU was delivering this external interrupt, and the guest has not seen it.
    pub interrupted: Option<Vector>,
}

/// What the caller knows of the virtual CPU before an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interruptibility {
    /// The CPU services a non-maskable interrupt: since its delivery, no IRET.
    pub nmi_blocked: bool,
    /// The CPU is in the shadow of STI or of a load of SS, in which nothing is delivered (APM2 15.21.5).
    pub shadow: bool,
    /// RFLAGS.IF is set.
    pub interrupts_enabled: bool,
    /// The caller itself forces an event at this entry (an exception, or one that an exit interrupted).
    pub event_taken: bool,
}

/// An event to be forced on the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An external interrupt whose delivery an exit had interrupted.
    Interrupt(Vector),
    /// A non-maskable interrupt.
    Nmi,
    /// An interrupt that the 8259 pair gave the vector of: any there is, and nothing that ends it is the local APIC's.
    External(u8),
}

bitflags! {
    /// What is to cause an exit, for the sake of something that cannot go in now. At most one of the first three, all of which a
    /// non-maskable interrupt waits for.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Windows: u8 {
        /// The end of the present handler of a non-maskable interrupt: the next IRET.
        const IRET = 1 << 0;
        /// Another event that goes first: the first instruction of its handler, not yet executed.
        const DELIVERY = 1 << 1;
        /// A shadow: the next instruction boundary.
        const INSTRUCTION = 1 << 2;
        /// Interrupts that are off: the first boundary at which the CPU takes one, as that of an 8259 pair waits for.
        const INTERRUPTS = 1 << 3;
    }
}

/// What the next entry carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Injection {
    /// Taken by the CPU when it can.
    pub offer: Option<Vector>,
    /// What few entries have to do beside it.
    pub special: Option<Special>,
}

/// What few entries have to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Special {
    /// Forced on the CPU.
    pub event: Option<Event>,
    /// Wanted exits.
    pub windows: Windows,
    /// An INIT arrived: there is to be no entry before a start-up message.
    pub reset: bool,
}

/// What one virtual CPU's channels leave from an exit to the next entry: a vector that is in service already, but was interrupted
/// before the guest saw it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Undelivered(Option<Vector>);

impl Undelivered {
    /// Nothing.
    pub const NONE: Self = Self(None);

    /// Evaluates an exit, after an entry that offered `offered`.
    #[inline]
    pub fn exited(&mut self, exited: Exited, offered: Option<Vector>) {
        let Exited { offer_stands, interrupted } = exited;
        // An offer that stands was not taken, even if it is reported as interrupted in delivery: it will be
        // offered again, and forcing it too would deliver it twice. Some implementations report both.
        let interrupted = interrupted.filter(|&vector| !(offer_stands && offered == Some(vector)));
        self.0 = self.0.or(interrupted);
    }

    /// Whether a vector that was interrupted on its way waits to be delivered.
    #[inline]
    pub const fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// Decides the next entry from the vector that waits, the non-maskable interrupt that waits, and the
    /// state of the CPU.
    pub fn decide(&mut self, pending: Option<Vector>, nmi_waits: bool, cpu: Interruptibility) -> Injection {
        let Interruptibility { nmi_blocked, shadow, event_taken, .. } = cpu;
        // An interrupted delivery goes before everything: the guest's CPU had begun with it. If the caller
        // forces an event of its own, it has to wait here.
        let interrupted = if event_taken { None } else { self.0.take() };
        let windows = match (nmi_waits, nmi_blocked) {
            (false, _) => Windows::empty(),
            (true, true) => Windows::IRET,
            (true, false) if event_taken || interrupted.is_some() => Windows::DELIVERY,
            (true, false) if shadow => Windows::INSTRUCTION,
            (true, false) => Windows::empty(),
        };
        let event = match interrupted {
            Some(vector) => Some(Event::Interrupt(vector)),
            None if nmi_waits && windows.is_empty() => Some(Event::Nmi),
            None => None,
        };
        // While a delivery is held back no other one may begin: there is room to remember one.
        let offer = if self.is_some() { None } else { pending };
        let special = Special { event, windows, reset: false };
        Injection { offer, special: (special != Special::default()).then_some(special) }
    }
}

impl Injection {
    /// With the interrupt of an 8259 pair that waits, if it can go in now: after all else that is forced, by the entry or
    /// by the caller. `acknowledge` is asked for its vector then.
    #[must_use]
    pub fn with_external(self, cpu: Interruptibility, acknowledge: impl FnOnce() -> u8) -> Self {
        let Interruptibility { shadow, interrupts_enabled, event_taken, .. } = cpu;
        let Self { offer, special } = self;
        let mut special = special.unwrap_or_default();
        if !interrupts_enabled || shadow || event_taken || special.event.is_some() {
            special.windows |= Windows::INTERRUPTS;
            return Self { offer, special: Some(special) };
        }
        special.event = Some(Event::External(acknowledge()));
        // An exit in the middle of its delivery names the vector, which is not to be mistaken for that of an offer.
        special.windows.set(Windows::INTERRUPTS, offer.is_some());
        Self { offer: None, special: Some(special) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: Interruptibility =
        Interruptibility { nmi_blocked: false, shadow: false, interrupts_enabled: true, event_taken: false };

    fn event(injection: Injection) -> Option<Event> {
        injection.special?.event
    }

    fn windows(injection: Injection) -> Windows {
        injection.special.unwrap_or_default().windows
    }

    fn v(raw: u8) -> Vector {
        Vector::new(raw).unwrap()
    }

    /// The exit struck while the CPU was delivering the vector, and perhaps before it took what it was offered.
    fn struck(vector: u8, offer_stands: bool) -> Exited {
        Exited { offer_stands, interrupted: Some(v(vector)) }
    }

    #[test]
    fn an_interrupted_delivery_is_forced_until_it_succeeds() {
        let mut undelivered = Undelivered::NONE;
        undelivered.exited(struck(0x51, false), Some(v(0x51)));
        for _ in 0..3 {
            assert!(undelivered.is_some());
            let injection = undelivered.decide(Some(v(0x71)), false, FREE);
            assert_eq!(event(injection), Some(Event::Interrupt(v(0x51))));
            assert_eq!(injection.offer, Some(v(0x71)));
            // The forced event is interrupted again; the higher offer has to wait behind it.
            undelivered.exited(struck(0x51, true), Some(v(0x71)));
        }
        undelivered.decide(Some(v(0x71)), false, FREE);
        undelivered.exited(Exited::default(), Some(v(0x71)));
        assert_eq!(undelivered.decide(None, false, FREE), Injection::default());
    }

    #[test]
    fn a_standing_offer_reported_as_interrupted_is_not_forced_too() {
        let mut undelivered = Undelivered::NONE;
        undelivered.exited(struck(0x50, true), Some(v(0x50)));
        let injection = undelivered.decide(Some(v(0x50)), false, FREE);
        assert_eq!((event(injection), injection.offer), (None, Some(v(0x50))));
    }

    #[test]
    fn the_callers_own_event_goes_first_and_nothing_is_lost() {
        let mut undelivered = Undelivered::NONE;
        undelivered.exited(struck(0x51, false), Some(v(0x51)));
        let own = Interruptibility { event_taken: true, ..FREE };
        let special = Special { windows: Windows::DELIVERY, ..Special::default() };
        let held_back = Injection { offer: None, special: Some(special) };
        assert_eq!(undelivered.decide(Some(v(0x71)), true, own), held_back);
        undelivered.exited(Exited::default(), None);
        let injection = undelivered.decide(None, true, FREE);
        assert_eq!(event(injection), Some(Event::Interrupt(v(0x51))));
        assert_eq!(windows(injection), Windows::DELIVERY);
        assert_eq!(event(undelivered.decide(None, true, FREE)), Some(Event::Nmi));
    }

    #[test]
    fn a_non_maskable_interrupt_goes_in_or_names_what_it_waits_for() {
        for nmi_blocked in [false, true] {
            for shadow in [false, true] {
                for event_taken in [false, true] {
                    let cpu = Interruptibility { nmi_blocked, shadow, event_taken, ..FREE };
                    assert_eq!(Undelivered::default().decide(None, false, cpu), Injection::default());
                    let injection = Undelivered::default().decide(None, true, cpu);
                    let expected = match (nmi_blocked, event_taken, shadow) {
                        (true, _, _) => (None, Windows::IRET),
                        (false, true, _) => (None, Windows::DELIVERY),
                        (false, false, true) => (None, Windows::INSTRUCTION),
                        (false, false, false) => (Some(Event::Nmi), Windows::empty()),
                    };
                    assert_eq!((event(injection), windows(injection)), expected);
                }
            }
        }
    }

    #[test]
    fn an_external_interrupt_goes_in_last_and_only_when_the_cpu_takes_interrupts() {
        let external = |pending, nmi, cpu| {
            let entry = Undelivered::default().decide(pending, nmi, cpu);
            let mut acknowledged = false;
            let entry = entry.with_external(cpu, || {
                acknowledged = true;
                8
            });
            let special = entry.special.unwrap();
            assert_eq!(special.event == Some(Event::External(8)), acknowledged);
            (entry.offer, special.event, special.windows)
        };
        let in_now = (None, Some(Event::External(8)), Windows::empty());
        assert_eq!(external(None, false, FREE), in_now);
        for cpu in [
            Interruptibility { shadow: true, ..FREE },
            Interruptibility { interrupts_enabled: false, ..FREE },
            Interruptibility { event_taken: true, ..FREE },
        ] {
            assert_eq!(external(Some(v(0x51)), false, cpu), (Some(v(0x51)), None, Windows::INTERRUPTS));
        }
        assert_eq!(external(None, true, FREE), (None, Some(Event::Nmi), Windows::INTERRUPTS));
    }

    #[test]
    fn an_offer_waits_behind_an_external_interrupt_whose_delivery_may_be_interrupted() {
        let mut undelivered = Undelivered::NONE;
        let entry = undelivered.decide(Some(v(0x51)), false, FREE).with_external(FREE, || 0x51);
        let special = entry.special.unwrap();
        assert_eq!((entry.offer, special.event), (None, Some(Event::External(0x51))));
        assert_eq!(special.windows, Windows::INTERRUPTS, "what was offered is to be offered again");
        // The window's own virtual interrupt stands.
        undelivered.exited(struck(0x51, true), entry.offer);
        assert_eq!(event(undelivered.decide(Some(v(0x51)), false, FREE)), Some(Event::Interrupt(v(0x51))));
    }
}
