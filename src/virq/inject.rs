//! What the next entry into a guest carries, and what the exit after it tells.
//!
//! Two channels lead into a virtual CPU. An *event* is forced on it at entry. An *offer* is a vector the CPU
//! takes by itself at the first instruction boundary at which it takes interrupts; until then the guest runs
//! on with it. On AMD they are EVENTINJ and the virtual interrupt V_IRQ with V_IGN_TPR (APM2 15.20, 15.21.4).
//! A vendor without the second channel makes an offer an event when the guest is interruptible, and asks for
//! an exit when it becomes so otherwise.
//!
//! An offer commits to nothing. The vector stays in IRR while it stands, so that a higher one simply replaces
//! it at the next entry, and a raised task priority withdraws it: a guest cannot change its priority without
//! an exit. Only when an exit shows that the offer was taken does the vector move from IRR to ISR.

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

/// The memory of one virtual CPU's channels from an entry to the exit after it, and on to the next entry.
#[derive(Clone, Copy, Debug, Default)]
pub struct Offer {
    offered: Option<Vector>,
    /// In service already, but interrupted before the guest saw it.
    undelivered: Option<Vector>,
}

impl Offer {
    /// Nothing offered.
    pub const fn new() -> Self {
        Self { offered: None, undelivered: None }
    }

    /// Evaluates an exit. Returns the vector the CPU has taken, which moves from IRR to ISR now.
    #[inline]
    pub fn exited(&mut self, exited: Exited) -> Option<Vector> {
        let Exited { offer_stands, interrupted } = exited;
        let offered = self.offered.take();
        // An offer that stands was not taken, even if it is reported as interrupted in delivery: it will be
        // offered again, and forcing it too would deliver it twice. Some implementations report both.
        let interrupted = interrupted.filter(|&vector| !(offer_stands && offered == Some(vector)));
        self.undelivered = self.undelivered.or(interrupted);
        if offer_stands { None } else { offered }
    }

    /// Whether a vector that was interrupted on its way waits to be delivered.
    #[inline]
    pub(super) const fn holds_undelivered(&self) -> bool {
        self.undelivered.is_some()
    }

    /// The next entry from the vector that waits, if that decides it: nothing was interrupted, and no non-maskable interrupt
    /// waits. Nearly every entry.
    #[inline(always)]
    pub(super) fn propose(&mut self, pending: Option<Vector>) -> Option<Injection> {
        if self.undelivered.is_some() {
            return None;
        }
        self.offered = pending;
        Some(Injection { offer: pending, special: None })
    }

    /// Decides the next entry from the vector that waits, the non-maskable interrupt that waits, and the
    /// state of the CPU.
    pub fn decide(&mut self, pending: Option<Vector>, nmi_waits: bool, cpu: Interruptibility) -> Injection {
        let Interruptibility { nmi_blocked, shadow, event_taken, .. } = cpu;
        // An interrupted delivery goes before everything: the guest's CPU had begun with it. If the caller
        // forces an event of its own, it has to wait here.
        let interrupted = if event_taken { None } else { self.undelivered.take() };
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
        self.offered = if self.undelivered.is_some() { None } else { pending };
        let special = Special { event, windows, reset: false };
        Injection { offer: self.offered, special: (special != Special::default()).then_some(special) }
    }

    /// Adds the interrupt of an 8259 pair that waits to an entry, if it can go in now: after all else that is forced, by the entry or
    /// by the caller. `acknowledge` is asked for its vector then.
    pub fn add_external(
        &mut self,
        entry: Injection,
        cpu: Interruptibility,
        acknowledge: impl FnOnce() -> u8,
    ) -> Injection {
        let Interruptibility { shadow, interrupts_enabled, event_taken, .. } = cpu;
        let Injection { offer, special } = entry;
        let mut special = special.unwrap_or_default();
        if !interrupts_enabled || shadow || event_taken || special.event.is_some() {
            special.windows |= Windows::INTERRUPTS;
            return Injection { offer, special: Some(special) };
        }
        special.event = Some(Event::External(acknowledge()));
        // An exit in the middle of its delivery names the vector, which is not to be mistaken for that of an offer.
        special.windows.set(Windows::INTERRUPTS, self.offered.take().is_some());
        Injection { offer: None, special: Some(special) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: Interruptibility =
        Interruptibility { nmi_blocked: false, shadow: false, interrupts_enabled: true, event_taken: false };
    const STANDS: Exited = Exited { offer_stands: true, interrupted: None };
    const TAKEN: Exited = Exited { offer_stands: false, interrupted: None };

    fn event(injection: Injection) -> Option<Event> {
        injection.special?.event
    }

    fn windows(injection: Injection) -> Windows {
        injection.special.unwrap_or_default().windows
    }

    fn v(raw: u8) -> Vector {
        Vector::new(raw).unwrap()
    }

    #[test]
    fn an_offer_is_acknowledged_once_when_it_was_taken() {
        let mut offer = Offer::new();
        assert_eq!(offer.decide(Some(v(0x51)), false, FREE).offer, Some(v(0x51)));
        assert_eq!(offer.exited(STANDS), None);
        assert_eq!(offer.decide(Some(v(0x51)), false, FREE).offer, Some(v(0x51)));
        assert_eq!(offer.exited(TAKEN), Some(v(0x51)));
        assert_eq!(offer.exited(TAKEN), None);
        assert_eq!(offer.decide(None, false, FREE), Injection::default());
        assert_eq!(offer.exited(TAKEN), None, "nothing offered, nothing taken");
    }

    #[test]
    fn a_higher_vector_supersedes_a_standing_offer() {
        let mut offer = Offer::new();
        offer.decide(Some(v(0x51)), false, FREE);
        assert_eq!(offer.exited(STANDS), None);
        assert_eq!(offer.decide(Some(v(0x61)), false, FREE).offer, Some(v(0x61)));
        assert_eq!(offer.exited(TAKEN), Some(v(0x61)));
        assert_eq!(offer.decide(Some(v(0x51)), false, FREE).offer, Some(v(0x51)));
    }

    #[test]
    fn an_offer_is_withdrawn_when_nothing_is_pending() {
        let mut offer = Offer::new();
        offer.decide(Some(v(0x51)), false, FREE);
        offer.exited(STANDS);
        assert_eq!(offer.decide(None, false, FREE), Injection::default());
        assert_eq!(offer.exited(TAKEN), None);
    }

    #[test]
    fn an_interrupted_delivery_is_acknowledged_once_and_forced_until_it_succeeds() {
        let mut offer = Offer::new();
        offer.decide(Some(v(0x51)), false, FREE);
        let interrupted = Exited { offer_stands: false, interrupted: Some(v(0x51)) };
        assert_eq!(offer.exited(interrupted), Some(v(0x51)));
        for _ in 0..3 {
            let injection = offer.decide(Some(v(0x71)), false, FREE);
            assert_eq!(event(injection), Some(Event::Interrupt(v(0x51))));
            assert_eq!(injection.offer, Some(v(0x71)));
            // The forced event is interrupted again; the higher offer has to wait behind it.
            assert_eq!(offer.exited(Exited { offer_stands: true, interrupted: Some(v(0x51)) }), None);
        }
        offer.decide(Some(v(0x71)), false, FREE);
        assert_eq!(offer.exited(TAKEN), Some(v(0x71)));
        assert_eq!(offer.decide(None, false, FREE), Injection::default());
    }

    #[test]
    fn a_standing_offer_reported_as_interrupted_is_delivered_once() {
        let mut offer = Offer::new();
        offer.decide(Some(v(0x50)), false, FREE);
        assert_eq!(offer.exited(Exited { offer_stands: true, interrupted: Some(v(0x50)) }), None);
        let injection = offer.decide(Some(v(0x50)), false, FREE);
        assert_eq!((event(injection), injection.offer), (None, Some(v(0x50))));
        assert_eq!(offer.exited(TAKEN), Some(v(0x50)));
    }

    #[test]
    fn the_callers_own_event_goes_first_and_nothing_is_lost() {
        let mut offer = Offer::new();
        offer.decide(Some(v(0x51)), false, FREE);
        offer.exited(Exited { offer_stands: false, interrupted: Some(v(0x51)) });
        let own = Interruptibility { event_taken: true, ..FREE };
        let special = Special { windows: Windows::DELIVERY, ..Special::default() };
        let held_back = Injection { offer: None, special: Some(special) };
        assert_eq!(offer.decide(Some(v(0x71)), true, own), held_back);
        assert_eq!(offer.exited(TAKEN), None);
        let injection = offer.decide(None, true, FREE);
        assert_eq!(event(injection), Some(Event::Interrupt(v(0x51))));
        assert_eq!(windows(injection), Windows::DELIVERY);
        assert_eq!(event(offer.decide(None, true, FREE)), Some(Event::Nmi));
    }

    #[test]
    fn a_non_maskable_interrupt_goes_in_or_names_what_it_waits_for() {
        for nmi_blocked in [false, true] {
            for shadow in [false, true] {
                for event_taken in [false, true] {
                    let cpu = Interruptibility { nmi_blocked, shadow, event_taken, ..FREE };
                    assert_eq!(Offer::new().decide(None, false, cpu), Injection::default());
                    let injection = Offer::new().decide(None, true, cpu);
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
        let external = |offer: &mut Offer, pending, nmi, cpu| {
            let entry = offer.decide(pending, nmi, cpu);
            let mut acknowledged = false;
            let entry = offer.add_external(entry, cpu, || {
                acknowledged = true;
                8
            });
            let special = entry.special.unwrap();
            assert_eq!(special.event == Some(Event::External(8)), acknowledged);
            (entry.offer, special.event, special.windows)
        };
        let in_now = (None, Some(Event::External(8)), Windows::empty());
        assert_eq!(external(&mut Offer::new(), None, false, FREE), in_now);
        for cpu in [
            Interruptibility { shadow: true, ..FREE },
            Interruptibility { interrupts_enabled: false, ..FREE },
            Interruptibility { event_taken: true, ..FREE },
        ] {
            assert_eq!(
                external(&mut Offer::new(), Some(v(0x51)), false, cpu),
                (Some(v(0x51)), None, Windows::INTERRUPTS)
            );
        }
        assert_eq!(
            external(&mut Offer::new(), None, true, FREE),
            (None, Some(Event::Nmi), Windows::INTERRUPTS)
        );
    }

    #[test]
    fn an_offer_waits_behind_an_external_interrupt_whose_delivery_may_be_interrupted() {
        let mut offer = Offer::new();
        let entry = offer.decide(Some(v(0x51)), false, FREE);
        let entry = offer.add_external(entry, FREE, || 0x51);
        let special = entry.special.unwrap();
        assert_eq!((entry.offer, special.event), (None, Some(Event::External(0x51))));
        assert_eq!(special.windows, Windows::INTERRUPTS, "what was offered is to be offered again");
        // The window's own virtual interrupt stands.
        assert_eq!(offer.exited(Exited { offer_stands: true, interrupted: Some(v(0x51)) }), None);
        assert_eq!(event(offer.decide(Some(v(0x51)), false, FREE)), Some(Event::Interrupt(v(0x51))));
        assert_eq!(offer.exited(TAKEN), Some(v(0x51)), "the local APIC's own");
    }
}
