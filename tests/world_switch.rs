//! The world switch, `src/arch/svm/vmrun.S`, run on a model that knows to whom each register belongs.
//!
//! Under TCG most mistakes in its order pass unseen. Here they do not: the model refuses VMRUN while GIF is set, IF is clear
//! or any register is still the host's, and STGI while any is still the guest's.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;

use levelhead::vcpu::Gpr;

/// What a register or a slot of memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    /// What the caller had in this register.
    Host(&'static str),
    /// What the frame holds for the guest at this offset.
    Guest(usize),
    /// What the guest left in the register of this offset.
    Left(usize),
    Frame,
    /// The control block, by its address in the direct map.
    Block,
    GuestBlock,
    HostBlock,
}

/// To whom a set of state belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Host,
    Guest,
    /// Nobody's: as compiled code expects it.
    Clean,
}

const REGISTERS: [(&str, Gpr); 15] = [
    ("rax", Gpr::Rax),
    ("rcx", Gpr::Rcx),
    ("rdx", Gpr::Rdx),
    ("rbx", Gpr::Rbx),
    ("rbp", Gpr::Rbp),
    ("rsi", Gpr::Rsi),
    ("rdi", Gpr::Rdi),
    ("r8", Gpr::R8),
    ("r9", Gpr::R9),
    ("r10", Gpr::R10),
    ("r11", Gpr::R11),
    ("r12", Gpr::R12),
    ("r13", Gpr::R13),
    ("r14", Gpr::R14),
    ("r15", Gpr::R15),
];
/// What the call leaves as it was. Everything else is among what `World::enter` says that it changes.
const PRESERVED: [&str; 2] = ["rbx", "rbp"];
/// Where the frame's FXSAVE image is.
const FX: usize = 0x80;
/// Where the frame says which physical blocks are the guest's and the host's.
const BLOCKS: [(usize, Value); 2] = [(0x280, Value::GuestBlock), (0x288, Value::HostBlock)];

struct Model {
    registers: BTreeMap<&'static str, Value>,
    stack: Vec<Value>,
    frame: BTreeMap<usize, Value>,
    /// FPU and SSE registers.
    fpu: Owner,
    /// The control word of SSE.
    mxcsr: Owner,
    /// FS, GS, TR, LDTR and the system-call MSRs.
    loaded: Owner,
    fpu_saved: bool,
    loaded_saved: bool,
    gif: bool,
    interrupts: bool,
    /// Whether the host is in the shadow of an STI that set IF.
    host_shadow: bool,
    /// Whether the guest is in an interrupt shadow.
    shadow: bool,
    /// None after an instruction that leaves it unpredictable here.
    zero_flag: Option<bool>,
    entered: bool,
}

fn name(text: &str) -> &'static str {
    REGISTERS
        .iter()
        .map(|(name, _)| *name)
        .find(|name| *name == text)
        .unwrap_or_else(|| panic!("register {text}"))
}

impl Model {
    fn new(shadow: bool) -> Self {
        let mut registers: BTreeMap<_, _> =
            REGISTERS.iter().map(|(name, _)| (*name, Value::Host(name))).collect();
        registers.extend([("rdi", Value::Frame), ("rsi", Value::Block)]);
        Self {
            registers,
            stack: Vec::new(),
            frame: (0..16).map(|n| (8 * n, Value::Guest(8 * n))).chain(BLOCKS).collect(),
            fpu: Owner::Host,
            mxcsr: Owner::Host,
            loaded: Owner::Host,
            fpu_saved: false,
            loaded_saved: false,
            gif: true,
            interrupts: false,
            host_shadow: false,
            shadow,
            zero_flag: None,
            entered: false,
        }
    }

    fn get(&self, register: &str) -> Value {
        self.registers[name(register)]
    }

    /// The memory of the frame behind `[base + offset]`.
    fn place(&mut self, operand: &str) -> &mut Value {
        let inside = operand.trim_start_matches('[').trim_end_matches(']');
        let (base, offset) = inside.split_once(" + ").unwrap_or((inside, "0"));
        let offset = match offset.strip_prefix("0x") {
            Some(digits) => usize::from_str_radix(digits, 16).unwrap(),
            None => offset.parse().unwrap(),
        };
        assert_eq!(self.get(base), Value::Frame, "{operand} is not the frame");
        self.frame.get_mut(&offset).unwrap_or_else(|| panic!("{operand} is outside the registers"))
    }

    fn frame_area(&self, operand: &str) {
        let base = operand.trim_start_matches('[').split(' ').next().unwrap();
        assert_eq!(self.get(base), Value::Frame, "{operand}");
        assert!(operand.ends_with(&format!("{FX:#x}]")), "{operand} is not the FXSAVE image");
    }

    fn vmrun(&mut self) {
        assert!(!self.gif, "VMRUN with GIF set: an NMI would run on the guest's GS");
        assert!(self.interrupts, "VMRUN with IF clear: no physical interrupt would end it");
        assert_eq!(self.host_shadow, self.shadow, "the host's STI shadow is the guest's on some CPUs");
        assert_eq!((self.fpu, self.loaded), (Owner::Guest, Owner::Guest));
        assert_eq!(self.get("rax"), Value::GuestBlock);
        for (register, gpr) in REGISTERS.iter().filter(|(register, _)| *register != "rax") {
            assert_eq!(self.get(register), Value::Guest(gpr.offset()), "{register} at VMRUN");
            self.registers.insert(register, Value::Left(gpr.offset()));
        }
        self.entered = true;
        self.zero_flag = None;
    }

    /// One instruction. The label to go to, if it jumps.
    fn step<'a>(&mut self, instruction: &'a str) -> Option<&'a str> {
        let (mnemonic, operands) = instruction.split_once(char::is_whitespace).unwrap_or((instruction, ""));
        let operands: Vec<&str> = operands.split(',').map(str::trim).collect();
        match (mnemonic, operands.as_slice()) {
            ("push", [register]) => self.stack.push(self.get(register)),
            ("pop", [register]) => {
                let value = self.stack.pop().expect("something was pushed");
                self.registers.insert(name(register), value);
            }
            ("ldmxcsr", ["[rip + lh_host_mxcsr]"]) => self.mxcsr = Owner::Host,
            ("fninit", _) => {
                assert!(self.fpu_saved, "the guest's FPU state is lost");
                self.fpu = Owner::Clean;
            }
            ("fxrstor64", [place]) => {
                self.frame_area(place);
                self.fpu = Owner::Guest;
                self.mxcsr = Owner::Guest;
            }
            ("fxsave64", [place]) => {
                self.frame_area(place);
                assert!(self.entered && self.fpu == Owner::Guest);
                self.fpu_saved = true;
            }
            ("clgi", _) => self.gif = false,
            ("stgi", _) => {
                assert!(!self.interrupts, "STGI with IF set: an interrupt outside the window");
                assert_eq!(self.loaded, Owner::Host, "STGI: an NMI may follow at once");
                self.gif = true;
            }
            ("sti", _) => {
                assert!(!self.gif, "interrupts would be taken here");
                self.host_shadow = !core::mem::replace(&mut self.interrupts, true);
                return None;
            }
            ("cli", _) => self.interrupts = false,
            ("test", ["byte ptr [rsi + 0x68]", "1"]) => {
                assert_eq!(self.get("rsi"), Value::Block);
                self.zero_flag = Some(!self.shadow);
            }
            ("jnz", [label]) => {
                let zero = self.zero_flag.expect("nothing changed ZF since the test");
                return (!zero).then_some(*label);
            }
            ("jmp", [label]) => return Some(*label),
            ("vmload", ["rax"]) => {
                assert!(!self.gif, "VMLOAD with GIF set");
                self.loaded = match self.get("rax") {
                    Value::GuestBlock => Owner::Guest,
                    Value::HostBlock => {
                        assert!(self.loaded_saved, "the guest's segments are lost");
                        Owner::Host
                    }
                    other => panic!("VMLOAD from {other:?}"),
                };
            }
            ("vmsave", ["rax"]) => {
                assert_eq!((self.get("rax"), self.loaded), (Value::GuestBlock, Owner::Guest));
                self.loaded_saved = self.entered;
            }
            ("vmrun", ["rax"]) => self.vmrun(),
            ("mov", [to, from]) if to.starts_with('[') => *self.place(to) = self.get(from),
            ("mov", [to, from]) => {
                let value = if from.starts_with('[') { *self.place(from) } else { self.get(from) };
                let to = name(to);
                assert!(
                    !matches!(self.registers[to], Value::Left(at) if self.frame[&at] != Value::Left(at)),
                    "{to} lost"
                );
                self.registers.insert(to, value);
            }
            _ => panic!("the model does not know `{instruction}`"),
        }
        self.host_shadow = false;
        None
    }

    /// What must hold when the function returns.
    fn returned(&self) {
        assert!(self.entered && self.gif && !self.interrupts && self.stack.is_empty());
        assert_eq!((self.fpu, self.mxcsr, self.loaded), (Owner::Clean, Owner::Host, Owner::Host));
        for register in PRESERVED {
            assert_eq!(self.get(register), Value::Host(register), "{register} at the return");
        }
        for (register, gpr) in REGISTERS.iter().filter(|(register, _)| *register != "rax") {
            assert_eq!(self.frame[&gpr.offset()], Value::Left(gpr.offset()), "the guest's {register}");
        }
    }
}

/// The function's lines: labels and instructions.
fn code() -> Vec<(Option<&'static str>, &'static str)> {
    let source = include_str!("../src/arch/svm/vmrun.S");
    let body =
        source.split_once("lh_vmrun:\n").expect("the function").1.split_once(".size").expect("its end").0;
    let mut code = Vec::new();
    for line in
        body.lines().map(|line| line.split('#').next().unwrap_or("").trim()).filter(|line| !line.is_empty())
    {
        match line.split_once(':') {
            Some((label, rest)) => code.push((Some(label), rest.trim())),
            None => code.push((None, line)),
        }
    }
    code
}

fn run(code: &[(Option<&str>, &str)], shadow: bool) {
    let mut model = Model::new(shadow);
    let mut at = 0;
    loop {
        let (_, instruction) = code[at];
        if instruction == "ret" {
            return model.returned();
        }
        at = match model.step(instruction) {
            // Every label is there once.
            Some(label) => {
                let label = label.trim_end_matches(['b', 'f']);
                code.iter().position(|(here, _)| *here == Some(label)).expect("the label")
            }
            None => at + 1,
        };
    }
}

#[test]
fn at_every_step_of_the_world_switch_each_register_is_whose_it_must_be() {
    for shadow in [false, true] {
        run(&code(), shadow);
    }
}

#[test]
fn no_step_of_the_world_switch_can_be_left_out() {
    let code = code();
    for left_out in 0..code.len() {
        // The label stays where it was.
        let mut shorter = code.clone();
        let (label, instruction) = shorter.remove(left_out);
        if let (Some(label), Some((here, _))) = (label, shorter.get_mut(left_out)) {
            *here = Some(label);
        }
        let noticed = [false, true].iter().any(|shadow| {
            let shorter = shorter.clone();
            std::panic::catch_unwind(|| run(&shorter, *shadow)).is_err()
        });
        assert!(noticed, "nobody misses `{instruction}`");
    }
}
