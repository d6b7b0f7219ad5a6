//! A linked program as machine code: its functions, what each leads to, and which source stands behind an instruction.
//!
//! The code is read by a linear sweep through each function, so nothing in it is missed for want of a way there. What
//! cannot be followed, a call through a pointer above all, is reported as such and never skipped.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

use addr2line::{Context, demangle_auto};
use anyhow::{Context as _, Result, anyhow, ensure};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use object::read::elf::{ElfFile64, ProgramHeader as _};
use object::{Endianness, Object as _, ObjectSegment as _, ObjectSymbol as _, elf};

use crate::symbols::{Section, debug, plain};

/// How far before a jump through a register its table is looked for, in instructions.
const TABLE_REACH: usize = 24;

/// A program and its functions by address.
pub struct Image {
    segments: Vec<Segment>,
    /// Parts of writable segments that are read-only while the program runs.
    sealed: Vec<Range<u64>>,
    functions: BTreeMap<u64, Function>,
    lines: Context<Section>,
}

struct Segment {
    address: u64,
    bytes: Vec<u8>,
    executable: bool,
    writable: bool,
}

struct Function {
    name: String,
    bytes: u64,
}

/// Where an instruction leads that is not in its own function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lead {
    /// To the function that begins at this address.
    Function(u64),
    /// To an address that belongs to no function.
    Nowhere(u64),
    /// Through a pointer whose value is not in the image.
    Pointer,
    /// Into a trap.
    Trap,
    /// These bytes are no instruction.
    Unreadable,
}

/// A function of the source that an instruction stems from, and the line in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The function's name as [`plain`] gives it.
    pub function: String,
    /// The file and the line, where known.
    pub line: Option<(String, u32)>,
}

impl Image {
    /// Reads a linked ELF program.
    ///
    /// # Errors
    /// When it cannot be read, or has no functions.
    pub fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let bytes = fs::read(path).with_context(|| format!("cannot read {shown}"))?;
        let file =
            ElfFile64::<Endianness>::parse(&*bytes).with_context(|| format!("{shown} is no program"))?;
        let mut segments = Vec::new();
        for segment in file.segments() {
            let rights = segment.permissions();
            segments.push(Segment {
                address: segment.address(),
                bytes: segment.data()?.to_vec(),
                executable: rights.executable(),
                writable: rights.writable(),
            });
        }
        // What a loader makes read-only before the program begins.
        let headers = file.elf_program_headers().iter();
        let sealed = headers.filter(|header| header.p_type(Endianness::Little) == elf::PT_GNU_RELRO);
        let sealed = sealed.map(|header| {
            let start = header.p_vaddr(Endianness::Little);
            start..start.saturating_add(header.p_memsz(Endianness::Little))
        });
        let sealed = sealed.collect();
        let mut functions: BTreeMap<u64, Function> = BTreeMap::new();
        for symbol in file.symbols() {
            let name = symbol.name().unwrap_or_default();
            let code = segments.iter().any(|segment| segment.executable && segment.holds(symbol.address()));
            if !code || name.is_empty() {
                continue;
            }
            let name = plain(&demangle_auto(name.into(), None));
            let function = Function { name, bytes: symbol.size() };
            // Of several names for one address the one with a length counts; assembly may give none.
            if functions.get(&symbol.address()).is_none_or(|known| known.bytes < function.bytes) {
                functions.insert(symbol.address(), function);
            }
        }
        ensure!(!functions.is_empty(), "{shown} has no symbols");
        let mut behind = None;
        for (start, function) in functions.iter_mut().rev() {
            let end = behind.or_else(|| segments.iter().find_map(|segment| segment.end_if_holding(*start)));
            if function.bytes == 0 {
                function.bytes = end.unwrap_or(*start) - start;
            }
            behind = Some(*start);
        }
        let lines = debug(&file).with_context(|| format!("{shown}: debug information"))?;
        Ok(Self { segments, sealed, functions, lines })
    }

    /// The functions of that name; generic ones may be there several times.
    pub fn find(&self, name: &str) -> impl Iterator<Item = u64> {
        self.functions.iter().filter(move |(_, function)| function.name == name).map(|(start, _)| *start)
    }

    /// The name of the function that begins at `start`.
    pub fn name(&self, start: u64) -> &str {
        self.functions.get(&start).map_or("?", |function| &function.name)
    }

    /// The source functions that the instruction at `address` stems from, the innermost first.
    ///
    /// # Errors
    /// When the line table is damaged.
    pub fn places(&self, address: u64) -> Result<Vec<Place>> {
        let broken = |error| anyhow!("the line table at {address:#x}: {error}");
        let mut frames = self.lines.find_frames(address).skip_all_loads().map_err(broken)?;
        let mut places = Vec::new();
        while let Some(frame) = frames.next().map_err(|error| anyhow!("the line table: {error}"))? {
            let Some(function) = &frame.function else { continue };
            let name = function.demangle().context("the name of a function")?;
            let line =
                frame.location.and_then(|at| Some((at.file?.to_owned(), at.line.filter(|line| *line > 0)?)));
            places.push(Place { function: plain(&name), line });
        }
        Ok(places)
    }

    /// The addresses of the instructions of the function at `start`, and where those lead that leave it.
    pub fn leads(&self, start: u64) -> (Vec<u64>, Vec<(u64, Lead)>) {
        let Some(function) = self.functions.get(&start) else {
            return (Vec::new(), vec![(start, Lead::Nowhere(start))]);
        };
        let end = start + function.bytes;
        let Some(bytes) = self.bytes(start, function.bytes) else {
            return (Vec::new(), vec![(start, Lead::Unreadable)]);
        };
        let code: Vec<Instruction> =
            Decoder::with_ip(64, bytes, start, DecoderOptions::NONE).iter().collect();
        let mut leads = Vec::new();
        for (at, instruction) in code.iter().enumerate() {
            let lead = match instruction.mnemonic() {
                Mnemonic::INVALID => Some(Lead::Unreadable),
                Mnemonic::Ud2
                | Mnemonic::Ud1
                | Mnemonic::Ud0
                | Mnemonic::Int
                | Mnemonic::Int1
                | Mnemonic::Int3 => Some(Lead::Trap),
                _ if instruction.op0_kind() == OpKind::NearBranch64 => {
                    Some(self.lead_to(instruction.near_branch_target()))
                }
                Mnemonic::Jmp if self.is_table(code.get(..=at).unwrap_or_default(), start..end) => None,
                Mnemonic::Jmp | Mnemonic::Call => {
                    Some(self.constant(instruction).map_or(Lead::Pointer, |to| self.lead_to(to)))
                }
                _ => None,
            };
            // Round and round in one function is no way out.
            if let Some(lead) = lead.filter(|lead| *lead != Lead::Function(start)) {
                leads.push((instruction.ip(), lead));
            }
        }
        // Assembly may run on into what stands behind it.
        if let Some(last) = code.last()
            && !matches!(
                last.mnemonic(),
                Mnemonic::Jmp | Mnemonic::Call | Mnemonic::Ret | Mnemonic::Iretq | Mnemonic::Ud2
            )
        {
            leads.push((last.ip(), self.lead_to(end)));
        }
        (code.iter().map(Instruction::ip).collect(), leads)
    }

    fn lead_to(&self, address: u64) -> Lead {
        match self.functions.range(..=address).next_back() {
            Some((start, function)) if address - start < function.bytes => Lead::Function(*start),
            _ => Lead::Nowhere(address),
        }
    }

    /// The target of a branch through memory that nobody can change, such as the entry of a linkage table.
    fn constant(&self, branch: &Instruction) -> Option<u64> {
        if branch.op0_kind() != OpKind::Memory || branch.memory_index() != Register::None {
            return None;
        }
        let address = match branch.memory_base() {
            Register::RIP => branch.ip_rel_memory_address(),
            Register::None => branch.memory_displacement64(),
            _ => return None,
        };
        self.constant_u64(address)
    }

    /// Whether the jump that ends `code` goes through a table of places in its own function, which is what a `match`
    /// becomes: `movsxd r, [b + i*4]; add r, b; jmp r`, with `lea b, [rip + table]` before; `r` may have been put
    /// aside on the stack.
    fn is_table(&self, code: &[Instruction], own: Range<u64>) -> bool {
        let Some((jump, mut before)) = code.split_last() else { return false };
        let Some(mut target) = Spot::of(jump, 0) else { return false };
        let add = loop {
            match setter(&mut before, target) {
                Some(copy) if copy.mnemonic() == Mnemonic::Mov => match Spot::of(copy, 1) {
                    Some(from) => target = from,
                    None => return false,
                },
                Some(add) if add.mnemonic() == Mnemonic::Add && add.op1_kind() == OpKind::Register => {
                    break add;
                }
                _ => return false,
            }
        };
        let base = add.op1_register();
        let loads = |load: &Instruction| {
            load.mnemonic() == Mnemonic::Movsxd
                && load.memory_base() == base
                && load.memory_index_scale() == 4
        };
        if !setter(&mut before, target).is_some_and(loads) {
            return false;
        }
        let table =
            before.iter().rev().find(|instruction| Spot::of(instruction, 0) == Some(Spot::Register(base)));
        let first = table
            .filter(|lea| lea.mnemonic() == Mnemonic::Lea && lea.is_ip_rel_memory_operand())
            .and_then(|lea| {
                let table = lea.ip_rel_memory_address();
                let entry = self.bytes(table, 4)?.first_chunk().map(|bytes| i32::from_le_bytes(*bytes))?;
                table.checked_add_signed(entry.into())
            });
        first.is_some_and(|first| own.contains(&first))
    }

    /// The word at `address`, if it is constant.
    fn constant_u64(&self, address: u64) -> Option<u64> {
        self.bytes(address, 8)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
    }

    /// Bytes that nobody can write.
    fn bytes(&self, address: u64, count: u64) -> Option<&[u8]> {
        let segment = self.segments.iter().find(|segment| segment.holds(address))?;
        if segment.writable && !self.sealed.iter().any(|range| range.contains(&address)) {
            return None;
        }
        let from = usize::try_from(address - segment.address).ok()?;
        segment.bytes.get(from..)?.get(..usize::try_from(count).ok()?)
    }
}

/// Where a value is kept inside a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spot {
    /// In a register, named by its whole.
    Register(Register),
    /// On the stack, so far from the frame or stack pointer.
    Stack(Register, u64),
}

impl Spot {
    /// What an operand names, if it is one of the two.
    fn of(instruction: &Instruction, operand: u32) -> Option<Self> {
        match instruction.try_op_kind(operand).ok()? {
            OpKind::Register => {
                Some(Self::Register(instruction.try_op_register(operand).ok()?.full_register()))
            }
            OpKind::Memory if instruction.memory_index() == Register::None => match instruction.memory_base()
            {
                base @ (Register::RBP | Register::RSP) => {
                    Some(Self::Stack(base, instruction.memory_displacement64()))
                }
                _ => None,
            },
            _ => None,
        }
    }
}

/// The last instruction of `code` that gives a spot its value; `code` is then what stands before it.
fn setter<'c>(code: &mut &'c [Instruction], spot: Spot) -> Option<&'c Instruction> {
    let whole = *code;
    let reach = whole.len().saturating_sub(TABLE_REACH);
    let sets = |at: &usize| whole.get(*at).and_then(|instruction| Spot::of(instruction, 0)) == Some(spot);
    let at = (reach..whole.len()).rev().find(sets)?;
    *code = whole.get(..at)?;
    whole.get(at)
}

impl Segment {
    fn holds(&self, address: u64) -> bool {
        self.end_if_holding(address).is_some()
    }

    fn end_if_holding(&self, address: u64) -> Option<u64> {
        let end = self.address + self.bytes.len() as u64;
        (self.address..end).contains(&address).then_some(end)
    }
}
