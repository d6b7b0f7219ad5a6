//! `selftest=smp-vmrun` or `selftest=smp-vmrun:ROUNDS`: the ground under several CPUs.
//!
//! Every CPU runs a small guest that is busy in VMRUN and then halts, all at once, and tokens go round the ring of CPUs by
//! IPI, half of them clockwise and half the other way. Each token has a vector of its own, so no two kicks can merge: a
//! CPU must be interrupted exactly once for every token that is sent to it. A timer looks for tokens that lie unnoticed:
//! late ones are counted, and one that never arrives ends the test with a number instead of a hang.

use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use levelhead::addr::{GuestPhys, HostPhys, PAGE_BYTES};
use levelhead::frames::Frames;
use levelhead::irq::{ApicId, CpuId, Vector};
use levelhead::message::Refusal;
use levelhead::svm::{ExitCode, Memory, NestedTables, Setup};
use levelhead::sync::Lock;
use log::{error, info};

use crate::arch::svm::nested::TablePool;
use crate::arch::svm::vmrun::{World, io_permissions};
use crate::arch::x86::cpu::{ThisCpu, halt_for_ever};
use crate::arch::x86::lapic::{LocalApic, TIMER_VECTOR, TimerRate};
use crate::arch::x86::paging::{AddressSpace, OutOfMemory, direct};
use crate::boot::smp::{self, StartError};
use crate::console;
use crate::rt::exit::Verdict;
use crate::setup::option_value;

/// How often each token goes round when nobody says. With 4 CPUs there are 8 tokens: 104,000 kicks for each CPU.
const ROUNDS: u32 = 13_000;
/// The most that may be asked for: the kicks of [`MAX_CPUS`] CPUs can be counted.
const MOST_ROUNDS: u32 = 1_000_000;
/// Token `n` is vector `FIRST_TOKEN + n`; it starts at CPU `n / 2`.
const FIRST_TOKEN: u8 = 0xd0;
const MAX_CPUS: usize = 8;
const MAX_TOKENS: usize = 2 * MAX_CPUS;
/// TSC ticks between two looks for unnoticed tokens.
const LOOK_TICKS: u64 = 50_000_000;
/// Looks at an unnoticed token before it counts as late. An emulator may hold up a CPU's thread for this long.
const LATE: u32 = 8;
/// Looks at an unnoticed token before it counts as lost.
const LOST: u32 = 1000;
/// Where the host's addresses begin; the tiny guest has none there.
const HOST_HALF: u64 = 0xffff_8000_0000_0000;
/// Guest-physical address of the code; the counter is at the next page.
const CODE: u64 = 0x1000;
/// `1: mov ecx, 1000; 2: inc dword ptr [0x2000]; dec ecx; jnz 2b; hlt; jmp 1b` in 32-bit code: busy for a while after each
/// entry, then its CPU sleeps, so that kicks meet both.
const GUEST: [u8; 17] =
    [0xb9, 0xe8, 0x03, 0x00, 0x00, 0xff, 0x05, 0x00, 0x20, 0x00, 0x00, 0x49, 0x75, 0xf7, 0xf4, 0xeb, 0xef];

/// What one CPU counted.
struct Station {
    /// Interrupts taken for tokens.
    interrupts: AtomicU32,
    /// Tokens that lay here for [`LATE`] looks before their interrupt came.
    late: AtomicU32,
    /// Tokens whose interrupt never came.
    lost: AtomicU32,
    /// Exits that show the host's own state in the control block.
    torn: AtomicU32,
    /// The guest did what it cannot do.
    broken: AtomicU32,
    /// World switches.
    entries: AtomicU32,
    /// How far the guest counted.
    loops: AtomicU32,
}

static STATIONS: [Station; MAX_CPUS] = [const {
    Station {
        interrupts: AtomicU32::new(0),
        late: AtomicU32::new(0),
        lost: AtomicU32::new(0),
        torn: AtomicU32::new(0),
        broken: AtomicU32::new(0),
        entries: AtomicU32::new(0),
        loops: AtomicU32::new(0),
    }
}; MAX_CPUS];

/// How many times each token was sent. The CPU it lies at is the only one to write.
static HOPS: [AtomicU32; MAX_TOKENS] = [const { AtomicU32::new(0) }; MAX_TOKENS];

/// How many CPUs are in Rust and ready to start.
static READY: AtomicU32 = AtomicU32::new(0);

/// What a CPU needs to play; taken once by its owner.
struct Seat {
    world: World,
    /// Where the guest's loop counts.
    counter: HostPhys,
    ring: &'static Ring,
}

struct Ring {
    apics: Vec<ApicId>,
    apic: LocalApic,
    rate: TimerRate,
    /// How often each token goes round, at most [`MOST_ROUNDS`].
    rounds: u32,
}

impl Ring {
    /// How many CPUs sit in it, at most [`MAX_CPUS`].
    fn count(&self) -> usize {
        self.apics.len()
    }

    /// Kicks that each CPU receives.
    fn kicks(&self) -> u32 {
        2 * self.count() as u32 * self.rounds
    }

    /// Every CPU was interrupted as often as it should be, or somebody lost a token for good.
    fn finished(&self) -> bool {
        let done = |station: &Station| station.interrupts.load(Ordering::Acquire) >= self.kicks();
        let failed = |station: &Station| {
            station.lost.load(Ordering::Acquire) + station.broken.load(Ordering::Acquire) > 0
        };
        STATIONS.iter().take(self.count()).all(done) || STATIONS.iter().any(failed)
    }
}

static SEATS: Lock<[Option<Box<Seat>>; MAX_CPUS]> = Lock::new([const { None }; MAX_CPUS]);

/// How many rounds the self-test called `name` is to play; none if it is another one.
///
/// # Errors
/// When it is this one, and the number of rounds is none that it can play.
pub(crate) fn rounds(name: &str) -> Result<Option<u32>, Refusal> {
    let Some(rest) = name.strip_prefix("smp-vmrun") else { return Ok(None) };
    if rest.is_empty() {
        return Ok(Some(ROUNDS));
    }
    let Some(number) = rest.strip_prefix(':') else { return Ok(None) };
    match number.parse() {
        Ok(rounds @ 1..=MOST_ROUNDS) => Ok(Some(rounds)),
        _ => Err(option_value("selftest", name, &format!("write smp-vmrun:1 to smp-vmrun:{MOST_ROUNDS}"))),
    }
}

/// Runs the test on all CPUs, at most [`MAX_CPUS`].
pub(crate) fn run(
    rounds: u32,
    cpu: &mut ThisCpu,
    cpus: Vec<(CpuId, ApicId)>,
    apic: LocalApic,
    space: &mut AddressSpace,
    frames: &mut Frames,
) -> Result<Verdict, StartError> {
    let rate = apic.measure_timer(10_000_000);
    let apics: Vec<ApicId> = cpus.iter().map(|(_, apic)| *apic).take(MAX_CPUS).collect();
    let count = apics.len();
    let ring: &'static Ring = Box::leak(Box::new(Ring { apics, apic, rate, rounds }));
    for index in 0..count {
        let seat = Box::new(seat(ring, frames)?);
        SEATS.with(|seats| {
            if let Some(slot) = seats.get_mut(index) {
                *slot = Some(seat);
            }
        });
    }
    // Awake, and with interrupts held back: those who play already send tokens.
    let pass = |_| core::hint::spin_loop();
    smp::start(cpus.into_iter().take(MAX_CPUS).skip(1), &ring.apic, space, frames, play_for_ever, pass)?;
    play(cpu);
    Ok(report(ring))
}

fn seat(ring: &'static Ring, frames: &mut Frames) -> Result<Seat, OutOfMemory> {
    let (io, _) = io_permissions(frames)?;
    let world = World::allocate(io, frames)?;
    let mut pool = TablePool::allocate(8, frames)?;
    let memory = frames.allocate(2 * PAGE_BYTES, PAGE_BYTES, u64::MAX).ok_or(OutOfMemory)?;
    let tables = NestedTables::new(&mut pool).ok_or(OutOfMemory)?;
    tables
        .map(&mut pool, GuestPhys::new(CODE), memory, 2 * PAGE_BYTES, Memory::Ram)
        .map_err(|_| OutOfMemory)?;
    write(memory, &[0; 2 * PAGE_BYTES as usize]);
    write(memory, &GUEST);
    let (io_permissions, msr_permissions) = world.permission_maps();
    world.vmcb.configure(&Setup { asid: 1, io_permissions, msr_permissions, nested_root: tables.root() });
    world.vmcb.start_protected32(GuestPhys::new(CODE));
    let counter = memory.checked_add(PAGE_BYTES).ok_or(OutOfMemory)?;
    Ok(Seat { world, counter, ring })
}

#[expect(unsafe_code, reason = "fills the tiny guest's memory")]
fn write(at: HostPhys, bytes: &[u8]) {
    // SAFETY: `at` was just allocated with room for `bytes`, in the direct map, and no guest runs yet.
    unsafe { direct(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
}

#[expect(unsafe_code, reason = "reads the tiny guest's counter")]
fn read_counter(at: HostPhys) -> u32 {
    // SAFETY: allocated for the guest and in the direct map; this CPU alone runs that guest, and it is not in it now.
    unsafe { direct(at).cast::<u32>().read() }
}

fn play_for_ever(mut cpu: ThisCpu) -> ! {
    play(&mut cpu);
    halt_for_ever()
}

fn play(cpu: &mut ThisCpu) {
    let me = usize::from(cpu.id().0);
    let Some(mut seat) = SEATS.with(|seats| seats.get_mut(me).and_then(Option::take)) else { return };
    let ring = seat.ring;
    let count = ring.apics.len();
    let Some(own) = STATIONS.get(me) else { return };
    ring.apic.enable();
    // SAFETY: enable::probe succeeded before the test began, and each CPU takes one seat.
    #[expect(unsafe_code, reason = "switches SVM on")]
    unsafe {
        seat.world.activate(cpu);
    }
    READY.fetch_add(1, Ordering::AcqRel);
    while READY.load(Ordering::Acquire) < count as u32 {
        core::hint::spin_loop();
    }
    let mut player = Player { me, ring, taken: [0; MAX_TOKENS], looks: [0; MAX_TOKENS] };
    ring.apic.arm_timer(ring.rate, LOOK_TICKS);
    for token in [2 * me, 2 * me + 1] {
        player.send(token);
    }
    while !ring.finished() {
        seat.world.enter(cpu);
        own.entries.fetch_add(1, Ordering::Relaxed);
        let exit = ExitCode::new(seat.world.vmcb.exit_code());
        if exit == ExitCode::HLT {
            // Halted by the host, as every guest's HLT is.
            seat.world.vmcb.retire(1);
        } else if exit != ExitCode::INTR {
            let vmcb = &mut seat.world.vmcb;
            if vmcb.rip() < HOST_HALF {
                error!(
                    "CPU {me}: unexpected exit {exit}: info {:#x} {:#x}, RIP {:#x}",
                    vmcb.exit_info1(),
                    vmcb.exit_info2(),
                    vmcb.rip(),
                );
                own.broken.store(1, Ordering::Release);
                break;
            }
            // The emulator's fault, not the guest's (ADR 1): the guest's state is gone, and a new start is as good.
            own.torn.fetch_add(1, Ordering::Relaxed);
            vmcb.start_protected32(GuestPhys::new(CODE));
        }
        let arrived = if exit == ExitCode::HLT { cpu.idle() } else { cpu.window() };
        if let Some(vector) = arrived {
            ring.apic.eoi();
            if let Some(token) =
                vector.get().checked_sub(FIRST_TOKEN).map(usize::from).filter(|n| *n < 2 * count)
            {
                own.interrupts.fetch_add(1, Ordering::Release);
                player.take(token);
            } else if vector.get() == TIMER_VECTOR {
                player.look(own);
                ring.apic.arm_timer(ring.rate, LOOK_TICKS);
            }
        }
        own.loops.store(read_counter(seat.counter), Ordering::Release);
    }
    ring.apic.disarm_timer();
}

/// One CPU's part in the ring.
struct Player {
    me: usize,
    ring: &'static Ring,
    /// For each token, the hop at which this CPU was interrupted for it last.
    taken: [u32; MAX_TOKENS],
    /// For each token, how many looks found it here with no interrupt for it.
    looks: [u32; MAX_TOKENS],
}

impl Player {
    /// Sends a token on to the neighbour, unless it has gone round often enough.
    fn send(&mut self, token: usize) {
        let count = self.ring.apics.len();
        let neighbour = (self.me + if token.is_multiple_of(2) { 1 } else { count - 1 }) % count;
        let (Some(hops), Some(apic), Some(vector)) =
            (HOPS.get(token), self.ring.apics.get(neighbour), Vector::new(FIRST_TOKEN + token as u8))
        else {
            return;
        };
        if hops.load(Ordering::Acquire) < count as u32 * self.ring.rounds {
            hops.fetch_add(1, Ordering::AcqRel);
            self.ring.apic.send(*apic, vector);
        }
    }

    /// Notes that the token arrived and sends it on.
    fn take(&mut self, token: usize) {
        if let (Some(taken), Some(hops)) = (self.taken.get_mut(token), HOPS.get(token)) {
            *taken = hops.load(Ordering::Acquire);
        }
        self.send(token);
    }

    /// Looks for tokens that lie here and that no interrupt told of.
    fn look(&mut self, own: &Station) {
        let count = self.ring.apics.len();
        for token in 0..2 * count {
            let hops = HOPS.get(token).map_or(0, |hops| hops.load(Ordering::Acquire));
            let away = hops as usize % count;
            let here =
                (token / 2 + if token.is_multiple_of(2) { away } else { count - away }) % count == self.me;
            let noticed = self.taken.get(token).is_none_or(|taken| *taken == hops);
            let Some(looks) = self.looks.get_mut(token) else { continue };
            *looks = if here && !noticed { *looks + 1 } else { 0 };
            own.late.fetch_add(u32::from(*looks == LATE), Ordering::Release);
            own.lost.fetch_add(u32::from(*looks == LOST), Ordering::Release);
        }
    }
}

/// Prints one row per CPU and judges.
fn report(ring: &Ring) -> Verdict {
    let (count, kicks) = (ring.count(), ring.kicks());
    let mut good = count > 1;
    for (cpu, station) in STATIONS.iter().take(count).enumerate() {
        let read = |counter: &AtomicU32| counter.load(Ordering::Acquire);
        let (interrupts, lost, loops) =
            (read(&station.interrupts), read(&station.lost), read(&station.loops));
        info!(
            "smp-vmrun cpu={cpu} kicks={kicks} interrupts={interrupts} late={} lost={lost} torn={} entries={} loops={loops}",
            read(&station.late),
            read(&station.torn),
            read(&station.entries),
        );
        good &= interrupts == kicks && lost == 0 && loops > 0 && read(&station.broken) == 0;
    }
    console::print(format_args!("levelhead: verdict {}\n", if good { "PASS" } else { "BUG" }));
    if good { Verdict::Pass } else { Verdict::Bug }
}
