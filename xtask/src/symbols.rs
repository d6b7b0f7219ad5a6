//! From addresses to functions, files and lines, in console lines as they pass and in logs of long ago.
//!
//! The hypervisor prints bare addresses when it dies (src/rt/panic.rs) and when a guest has to be ended
//! (src/partition/end.rs): symbols are too big for it, and a board has no room for them. Here the image is at hand.
//!
//! Three lines are known, none of which a guest can print, whose lines come prefixed:
//!
//! * `  at ADDRESS`: a return address of the hypervisor, thus one behind the call that is meant;
//! * `ERROR Bug/...: RIP ADDRESS: ...`: an instruction of the hypervisor's, and `  RIP ADDRESS ...`: one of the guest whose
//!   partition the record before is about;
//! * `... build-id HEX`: the build that prints what follows.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::fmt::{self, Write as _};
use std::fs;
use std::io::{self, BufRead, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use addr2line::{Context, demangle_auto};
use anyhow::{Context as _, Result, anyhow, ensure};
use gimli::{Dwarf, EndianRcSlice, RunTimeEndian, SectionId};
use levelhead::irq::CpuId;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SectionKind, SymbolKind};

use crate::build::Tree;
use crate::{bundle, process};

/// How deep a chain of inlined functions is shown.
const MOST_FRAMES: usize = 16;

/// Section contents in memory of their own.
pub type Section = EndianRcSlice<RunTimeEndian>;

/// What an ELF file says about the functions and lines of its code.
///
/// # Errors
/// When that is damaged.
pub fn debug<'data>(file: &impl object::Object<'data>) -> Result<Context<Section>> {
    let endian = if file.is_little_endian() { RunTimeEndian::Little } else { RunTimeEndian::Big };
    let section = |id: SectionId| -> Result<Section> {
        let data = file.section_by_name(id.name()).map_or(Ok(&[][..]), |section| section.data())?;
        Ok(Section::new(Rc::from(data), endian))
    };
    Dwarf::load(section).and_then(|dwarf| Ok(Context::from_dwarf(dwarf)?))
}

/// A function of the source that an instruction stems from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its name, demangled: the whole path if it is a function of its own in the image, the bare name if it was inlined.
    pub function: String,
    /// Where in it.
    pub place: Place,
}

/// A place in a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A source file as a person would name it, and the line if one stands for the code.
    Source(String, Option<u32>),
    /// Bytes from the start of a function that has no debug information, as assembly has none.
    Offset(u64),
    /// Nothing is known.
    Unknown,
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.function)?;
        match &self.place {
            Place::Source(file, Some(line)) => write!(f, " ({file}:{line})"),
            Place::Source(file, None) => write!(f, " ({file})"),
            Place::Offset(bytes) => write!(f, "+{bytes:#x}"),
            Place::Unknown => Ok(()),
        }
    }
}

/// An ELF file and what it says about its code.
pub struct Image {
    debug: Context<Section>,
    code: Vec<Range<u64>>,
    /// Functions by where they are, sorted.
    functions: Vec<(Range<u64>, String)>,
    build_id: Option<String>,
}

impl Image {
    /// Reads the file.
    ///
    /// # Errors
    /// When it cannot be read, is no ELF file, or is damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let file =
            object::File::parse(&*bytes).with_context(|| format!("{} is no ELF file", path.display()))?;
        let debug = debug(&file).with_context(|| format!("{}: debug information", path.display()))?;

        let code = file.sections().filter(|section| section.kind() == SectionKind::Text);
        let code = code.map(|section| section.address()..section.address().saturating_add(section.size()));
        let functions =
            file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0);
        let mut functions: Vec<_> = functions
            .filter_map(|symbol| {
                let range = symbol.address()..symbol.address().checked_add(symbol.size())?;
                Some((range, symbol.name().ok()?.to_owned()))
            })
            .collect();
        functions.sort_by_key(|(range, _)| range.start);
        let build_id = file.build_id().ok().flatten().map(hexadecimal);
        Ok(Self { debug, code: code.collect(), functions, build_id })
    }

    /// The function of the symbol table at `address`, with where it starts.
    pub fn function(&self, address: u64) -> Option<(Cow<'_, str>, u64)> {
        let behind = self.functions.partition_point(|(range, _)| range.start <= address);
        let (range, name) = self.functions.get(behind.checked_sub(1)?)?;
        range.contains(&address).then(|| (demangle_auto(name.into(), None), range.start))
    }

    /// Whether there is code at `address`.
    pub fn has_code(&self, address: u64) -> bool {
        self.code.iter().any(|range| range.contains(&address))
    }

    /// The functions at `address`, the innermost first: each further one has the one before inlined. None outside the
    /// image's code. Sources are named from `root`.
    pub fn frames(&self, address: u64, root: &Path) -> Vec<Frame> {
        if !self.has_code(address) {
            return Vec::new();
        }
        let outermost = self.function(address);
        let mut shown: Vec<Frame> = Vec::new();
        if let Ok(mut frames) = self.debug.find_frames(address).skip_all_loads() {
            while let Ok(Some(frame)) = frames.next() {
                let Some(name) = frame.function.as_ref().and_then(|name| name.raw_name().ok()) else {
                    continue;
                };
                // Line 0 is the compiler's word for code that no line stands for.
                let place = frame.location.and_then(|at| {
                    let file = shorten(at.file?, root).to_owned();
                    Some(Place::Source(file, at.line.filter(|line| *line != 0)))
                });
                let function = demangle_auto(name, None).into_owned();
                shown.push(Frame { function, place: place.unwrap_or(Place::Unknown) });
            }
        }
        match (shown.last_mut(), outermost) {
            // The symbol table knows the whole path of the function, these debug information's names are bare.
            (Some(frame), Some((path, _))) if path.ends_with(frame.function.as_str()) => {
                frame.function = path.into_owned();
            }
            (Some(_), _) => {}
            // Assembly has no debug information, but names.
            (None, Some((name, start))) => {
                let place = Place::Offset(address.saturating_sub(start));
                shown.push(Frame { function: name.into_owned(), place });
            }
            (None, None) => {}
        }
        shown
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A demangled name without generic arguments: `<a::B<C>>::f::<D>` is `a::B::f`, `<a::B<C> as d::E>::f` is `<a::B as
/// d::E>::f`.
pub fn plain(name: &str) -> String {
    let mut whole = String::new();
    let mut rest = name;
    if let Some(inner) = name.strip_prefix('<') {
        let end = closing(inner);
        let head = without_arguments(inner.get(..end).unwrap_or_default());
        whole = if head.contains(" as ") { format!("<{head}>") } else { head };
        rest = inner.get(end + 1..).unwrap_or_default();
    }
    whole.push_str(&without_arguments(rest));
    whole
}

/// Where the bracket closes that was opened before `text`.
fn closing(text: &str) -> usize {
    let mut depth = 0_u32;
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        match c {
            '<' => depth += 1,
            '>' if before == '-' => {}
            '>' if depth == 0 => return at,
            '>' => depth -= 1,
            _ => {}
        }
        before = c;
    }
    text.len()
}

fn without_arguments(path: &str) -> String {
    let mut kept = String::new();
    let mut rest = path;
    while let Some((before, inner)) = rest.split_once('<') {
        kept.push_str(before.strip_suffix("::").unwrap_or(before));
        rest = inner.get(closing(inner) + 1..).unwrap_or_default();
    }
    kept.push_str(rest);
    kept
}

/// A source file as a person would name it: from the tree's root, from a crate's own folder, from the standard library's.
fn shorten<'a>(file: &'a str, root: &Path) -> &'a str {
    if let Ok(inside) = Path::new(file).strip_prefix(root) {
        return inside.to_str().unwrap_or(file);
    }
    // `/rustc/HASH/library/...` and `.../registry/src/INDEX/crate-1.0.0/...`
    for marker in ["/rustc/", "/registry/src/"] {
        if let Some((_, after)) = file.split_once(marker)
            && let Some((_, rest)) = after.split_once('/')
        {
            return rest;
        }
    }
    file
}

/// An image that is opened when it is first needed: most runs need none.
struct Lazy {
    path: PathBuf,
    image: OnceCell<Option<Image>>,
}

impl Lazy {
    fn new(path: PathBuf) -> Self {
        Self { path, image: OnceCell::new() }
    }

    /// The image; nothing for a file that is no ELF file, as a guest's kernel need not be.
    fn get(&self) -> Option<&Image> {
        self.image.get_or_init(|| Image::open(&self.path).ok()).as_ref()
    }
}

/// A partition's name and its kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// The partition.
    pub name: String,
    /// The CPU it starts on.
    pub cpu: CpuId,
    /// The file that was packed for it.
    pub kernel: PathBuf,
}

/// Names the addresses in the lines of one console.
pub struct Symbols {
    root: PathBuf,
    /// Images of the hypervisor, of which the log says which one it is about.
    images: Vec<Lazy>,
    guests: Vec<(String, Lazy)>,
    /// Which of `images` is speaking; none when the log is about a build that is not among them.
    speaker: Option<usize>,
    /// Builds that no image is of.
    strangers: Vec<String>,
    /// The guest whose end is being reported.
    ended: Option<usize>,
}

impl Symbols {
    /// Symbols of the hypervisor's possible `images`, of which the first counts until the log says otherwise, and of the
    /// `guests`. Paths of sources are shown from `root`.
    pub fn new(root: &Path, images: impl IntoIterator<Item = PathBuf>, guests: &[Guest]) -> Self {
        let guests = guests.iter().map(|guest| (guest.name.clone(), Lazy::new(guest.kernel.clone())));
        Self {
            root: root.to_owned(),
            images: images.into_iter().map(Lazy::new).collect(),
            guests: guests.collect(),
            speaker: Some(0),
            strangers: Vec::new(),
            ended: None,
        }
    }

    /// The line with what its addresses mean, on one line or several. A line without addresses comes back as it is.
    pub fn lines(&mut self, line: &str) -> Vec<String> {
        let mut lines = vec![line.to_owned()];
        if line.starts_with('[') {
            return lines;
        }
        if let Some(id) = word_behind(line, "build-id ") {
            self.build(id);
        }
        if let Some(address) = line.strip_prefix("  at ").and_then(address) {
            let frames = self
                .speaker()
                .map_or_else(Vec::new, |image| image.frames(address.wrapping_sub(1), &self.root));
            append(&mut lines, "  ", &frames);
            return lines;
        }
        if let Some(ended) =
            self.guests.iter().position(|(name, _)| line.contains(&format!(": partition {name}: ")))
        {
            self.ended = Some(ended);
        }
        let Some(address) = word_behind(line, " RIP ").and_then(address) else { return lines };
        let (what, image) = if line.contains(" Bug/") {
            ("  RIP is in ".to_owned(), self.speaker())
        } else {
            let guest = self.ended.take().and_then(|index| self.guests.get(index));
            let Some((name, image)) = guest else { return lines };
            (format!("  RIP is in {name}'s "), image.get())
        };
        let frames = image.map_or_else(Vec::new, |image| image.frames(address, &self.root));
        if !frames.is_empty() {
            lines.push(String::new());
            append(&mut lines, &what, &frames);
        }
        lines
    }

    fn speaker(&self) -> Option<&Image> {
        self.images.get(self.speaker?)?.get()
    }

    /// What follows is about build `id`.
    fn build(&mut self, id: &str) {
        let of = |lazy: &Lazy| lazy.get().is_some_and(|image| image.build_id.as_deref() == Some(id));
        self.speaker = self.images.iter().position(of);
        if self.speaker.is_none() && !self.strangers.iter().any(|other| other == id) {
            self.strangers.push(id.to_owned());
        }
    }
}

/// Adds the frames to the last line, the first behind `lead`, the others below it.
fn append(lines: &mut Vec<String>, lead: &str, frames: &[Frame]) {
    let Some(last) = lines.last_mut() else { return };
    let mut frames = frames.iter().take(MOST_FRAMES);
    if let Some(first) = frames.next() {
        let _ = write!(last, "{lead}{first}");
    }
    lines.extend(frames.map(|frame| format!("      inlined into {frame}")));
}

/// The word that follows `mark`, up to a space, comma or colon.
fn word_behind<'a>(line: &'a str, mark: &str) -> Option<&'a str> {
    let (_, after) = line.split_once(mark)?;
    after.split([' ', ',', ':']).next()
}

/// Reads `0x1f`, and nothing else.
fn address(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// What `symbolise` was asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The log; standard input when absent.
    pub log: Option<PathBuf>,
    /// The hypervisor's image, if not one that was built here.
    pub image: Option<PathBuf>,
    /// The configuration whose guests ran.
    pub config: Option<String>,
}

/// Prints a log with what its addresses mean.
///
/// # Errors
/// When a file cannot be read, or the log is of a build that is not at hand; it has been printed then all the same.
pub fn symbolise(tree: &Tree, options: &Options) -> Result<()> {
    let images = match &options.image {
        Some(path) => {
            Image::open(path)?;
            vec![path.clone()]
        }
        None => tree.hypervisors().into_iter().filter(|path| path.is_file()).collect(),
    };
    ensure!(
        !images.is_empty(),
        "no hypervisor has been built here; give --image PATH or run `cargo xtask build`"
    );
    let guests = match &options.config {
        Some(name) => bundle::guests(tree, &bundle::config_path(tree, name))?,
        None => Vec::new(),
    };
    let mut symbols = Symbols::new(&tree.root, images.iter().cloned(), &guests);
    let log: Box<dyn BufRead> = match &options.log {
        Some(path) => {
            let file = fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
            Box::new(io::BufReader::new(file))
        }
        None => Box::new(io::stdin().lock()),
    };
    let mut out = io::stdout().lock();
    for line in log.split(b'\n') {
        let line = process::clean(&line.context("cannot read the log")?);
        for line in symbols.lines(&line) {
            writeln!(out, "{line}").context("cannot write")?;
        }
    }
    out.flush().context("cannot write")?;
    let Some(stranger) = symbols.strangers.first() else { return Ok(()) };
    let known =
        symbols.images.iter().map(|lazy| match lazy.get().and_then(|image| image.build_id.as_deref()) {
            Some(id) => format!("{} is build {id}", tree.shown(&lazy.path)),
            None => format!("{} has no build-id", tree.shown(&lazy.path)),
        });
    let known = known.collect::<Vec<_>>().join(", ");
    Err(anyhow!(
        "the log is of build {stranger}, whose addresses were left as they are: {known}; give that build's own image by --image"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A function of this very program, whose address the symbol table tells.
    #[inline(never)]
    fn levelhead_landmark() -> u32 {
        std::hint::black_box(line!())
    }

    fn this_program() -> (Symbols, u64) {
        assert!(levelhead_landmark() > 0);
        let path = std::env::current_exe().unwrap();
        let bytes = fs::read(&path).unwrap();
        let file = object::File::parse(&*bytes).unwrap();
        let landmark = file
            .symbols()
            .find(|symbol| symbol.name().is_ok_and(|name| name.contains("levelhead_landmark")))
            .unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let guests = [Guest { name: "left".to_owned(), cpu: CpuId(0), kernel: path.clone() }];
        (Symbols::new(root, [path], &guests), landmark.address())
    }

    #[test]
    fn a_return_address_means_the_call_before_it() {
        let (mut symbols, start) = this_program();
        let [line] = &symbols.lines(&format!("  at {:#x}", start + 1))[..] else {
            panic!("more than one line")
        };
        assert!(
            line.contains("  xtask::symbols::tests::levelhead_landmark (xtask/src/symbols.rs:"),
            "{line}"
        );
        let before = symbols.lines(&format!("  at {start:#x}")).concat();
        assert!(!before.contains("landmark"), "{before}");
    }

    #[test]
    fn the_instruction_pointer_is_meant_exactly() {
        let (mut symbols, start) = this_program();
        let line =
            format!("ERROR Bug/exception: RIP {start:#x}: exception 6 (#UD) in the hypervisor; to do: no");
        let lines = symbols.lines(&line);
        assert_eq!(lines[0], line);
        assert!(
            lines[1]
                .starts_with("  RIP is in xtask::symbols::tests::levelhead_landmark (xtask/src/symbols.rs:"),
            "{lines:?}"
        );
    }

    #[test]
    fn a_guests_address_is_looked_up_in_that_guests_kernel() {
        let (mut symbols, start) = this_program();
        let registers = format!("  RIP {start:#x} RSP 0x0");
        assert_eq!(symbols.lines(&registers), [registers.as_str()], "nobody's");
        symbols.lines("ERROR Guest/triple-fault: partition right: it did wrong");
        assert_eq!(symbols.lines(&registers), [registers.as_str()], "not known");
        symbols.lines("ERROR Guest/triple-fault: partition left: it did wrong");
        let lines = symbols.lines(&registers);
        assert!(
            lines[1].starts_with("  RIP is in left's xtask::symbols::tests::levelhead_landmark"),
            "{lines:?}"
        );
        assert_eq!(symbols.lines(&registers), [registers.as_str()], "said already");
    }

    #[test]
    fn addresses_of_another_build_stay_as_they_are() {
        let (mut symbols, start) = this_program();
        let line = format!("  at {:#x}", start + 1);
        symbols.lines("INFO  levelhead: Levelhead 0.1.0 at 0x200000, build-id 00ff");
        assert_eq!(symbols.lines(&line), [line.as_str()]);
        assert_eq!(symbols.strangers, ["00ff"]);
    }

    #[test]
    fn everything_else_stays_as_it_is() {
        let (mut symbols, start) = this_program();
        for line in [
            String::new(),
            "  at".to_owned(),
            "  at 0x".to_owned(),
            "  at 0x0".to_owned(),
            "  at 0xffffffffffffffff".to_owned(),
            "  at 0x1ffffffffffffffff".to_owned(),
            format!("[guest]   at {:#x}", start + 1),
            format!("[guest] ERROR Bug/exception: RIP {start:#x}: build-id 00"),
        ] {
            assert_eq!(symbols.lines(&line), [line.as_str()]);
        }
        assert!(symbols.strangers.is_empty());
    }

    #[test]
    fn sources_are_named_from_where_they_belong() {
        let root = Path::new("/home/me/levelhead");
        let hash = "59807616e0000000000000000000000000000000";
        for (file, short) in [
            ("/home/me/levelhead/src/main.rs".to_owned(), "src/main.rs"),
            (format!("/rustc/{hash}/library/core/src/panicking.rs"), "library/core/src/panicking.rs"),
            ("/home/me/.cargo/registry/src/index-1/log-0.4.1/src/lib.rs".to_owned(), "log-0.4.1/src/lib.rs"),
            ("/usr/include/stdio.h".to_owned(), "/usr/include/stdio.h"),
        ] {
            assert_eq!(shorten(&file, root), short);
        }
    }

    #[test]
    fn names_lose_their_arguments_and_nothing_else() {
        for (demangled, expected) in [
            ("levelhead::run::take", "levelhead::run::take"),
            ("<levelhead::partition::Partition>::handle", "levelhead::partition::Partition::handle"),
            ("<a::Chips<1>>::assert_pin::<fn(u8) -> b::C<d>>", "a::Chips::assert_pin"),
            ("<a::Wires as b::LineIo<c>>::mask_rte", "<a::Wires as b::LineIo>::mask_rte"),
            ("core::ptr::drop_in_place::<alloc::vec::Vec<a::B>>", "core::ptr::drop_in_place"),
            ("<a::Lock<b>>::with::<(), <c as d>::f::{closure#0}>::{closure#1}", "a::Lock::with::{closure#1}"),
            ("lh_vmrun", "lh_vmrun"),
        ] {
            assert_eq!(plain(demangled), expected);
        }
    }
}
