//! Who called whom, and how many instructions each took: a tree from nothing but the addresses that ran.
//!
//! No list says which functions there are. Calls follow from the symbol table: an instruction in another function than the
//! one before is a call if it is that function's first, a return if that function is under way, and else an entry from
//! outside, as by an interrupt. What was inlined is told by the debug information, and stands in the tree as if it were
//! called.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use serde::Serialize;

use crate::bench::row::Spread;
use crate::symbols::{Frame, Image, Place, plain};

/// What is known of an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Site {
    /// Where the function of the image begins that it belongs to.
    pub(super) start: Option<u64>,
    /// That function, and what is inlined into it up to here: those of ours, or the outermost alone.
    pub(super) chain: Vec<String>,
}

/// What is known of the instructions at these addresses of the image.
pub(super) fn sites(image: &Image, addresses: BTreeSet<u64>, root: &Path) -> HashMap<u64, Site> {
    let chains = addresses.into_iter().map(|address| (address, image.frames(address, root)));
    let mut chains: BTreeMap<u64, Vec<Frame>> = chains.collect();
    mend(&mut chains);
    let sites = chains.into_iter().map(|(address, frames)| {
        let function = image.function(address);
        let path = function.as_ref().map_or_else(|| "unknown".to_owned(), |(path, _)| plain(path));
        (address, Site { start: function.map(|(_, start)| start), chain: chain(path, &frames) })
    });
    sites.collect()
}

/// Puts right in which file the innermost functions are. For some instructions the compiler forgets that another function
/// was inlined, but not its line, and the file is that one's. Where functions are inlined into the same one without this
/// loss, its file is that of the call.
fn mend(chains: &mut BTreeMap<u64, Vec<Frame>>) {
    let key = |frames: &[Frame]| {
        let [frame, rest @ ..] = frames else { return None };
        Some((frame.function.clone(), rest.first().map(|caller| caller.function.clone())))
    };
    let file = |frame: &Frame| match &frame.place {
        Place::Source(file, _) => Some(file.clone()),
        Place::Offset(_) | Place::Unknown => None,
    };
    let mut known: HashMap<_, BTreeSet<String>> = HashMap::new();
    for frames in chains.values() {
        for (at, frame) in frames.iter().enumerate().skip(1) {
            let Some(key) = frames.get(at..).and_then(key) else { continue };
            known.entry(key).or_default().extend(file(frame));
        }
    }
    for frames in chains.values_mut() {
        let Some(files) = key(frames).and_then(|key| known.get(&key)) else { continue };
        if let Some(innermost) = frames.first_mut()
            && file(innermost).is_none_or(|file| !files.contains(&file))
            && let Some(file) = files.first()
        {
            innermost.place = Place::Source(file.clone(), None);
        }
    }
}

/// The functions of these frames, the outermost first, which has that path.
fn chain(path: String, frames: &[Frame]) -> Vec<String> {
    let inlined = frames.split_last().map_or(&[][..], |(_, inlined)| inlined);
    let chain = own(&path).into_iter().chain(inlined.iter().rev().filter_map(inlined_own));
    let chain: Vec<String> = chain.collect();
    if chain.is_empty() { vec![path] } else { chain }
}

/// A function of ours by its module and name; assembly has the name alone.
fn own(path: &str) -> Option<String> {
    // `<levelhead::machine::Wires as levelhead::intx::LineIo>::mask_rte`
    let whole = path.strip_prefix('<').map(|path| {
        let (own, rest) = path.split_once(" as ").unwrap_or((path, ""));
        format!("{own}::{}", rest.rsplit("::").next().unwrap_or_default())
    });
    let path = whole.as_deref().unwrap_or(path);
    if !path.contains("::") {
        return Some(path.to_owned());
    }
    let path = path.strip_prefix("levelhead::")?;
    // Types and closures are in no name of an inlined function either.
    let parts =
        path.split("::").filter(|part| part.starts_with(|c: char| c.is_ascii_lowercase() || c == '_'));
    Some(parts.collect::<Vec<_>>().join("::"))
}

/// The same for a function that was inlined, of which the file and the name are known. Nothing for a closure, which is part
/// of who calls it.
fn inlined_own(frame: &Frame) -> Option<String> {
    let Place::Source(file, _) = &frame.place else { return None };
    let module =
        file.strip_prefix("src/")?.trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::");
    let name = plain(&frame.function);
    let name = name.rsplit("::").next().filter(|name| !name.starts_with('{'))?;
    Some(format!("{module}::{name}"))
}

/// A function as it was called by that one.
#[derive(Debug)]
struct Node {
    name: String,
    children: Vec<usize>,
}

/// A function that has not returned.
#[derive(Debug)]
struct Activation {
    start: Option<u64>,
    /// What it was called from.
    caller: usize,
    /// Where it is.
    at: usize,
}

/// The calls of a run.
#[derive(Debug)]
pub(super) struct Calls {
    /// The first one stands for whoever called what ran first.
    nodes: Vec<Node>,
    stack: Vec<Activation>,
}

const ROOT: usize = 0;

impl Calls {
    pub(super) fn new() -> Self {
        let name = "levelhead".to_owned();
        Self { nodes: vec![Node { name, children: Vec::new() }], stack: Vec::new() }
    }

    /// Takes the next instruction; the node that it belongs to.
    pub(super) fn step(&mut self, address: u64, site: &Site) -> usize {
        let same = |activation: &Activation| activation.start == site.start;
        if !self.stack.last().is_some_and(same) {
            let under_way = self.stack.iter().rposition(same).filter(|_| site.start != Some(address));
            match under_way {
                Some(depth) => self.stack.truncate(depth + 1),
                None => {
                    let caller = self.stack.last().map_or(ROOT, |top| top.at);
                    self.stack.push(Activation { start: site.start, caller, at: caller });
                }
            }
        }
        let mut at = self.stack.last().map_or(ROOT, |top| top.caller);
        for name in &site.chain {
            // Of a closure that others' code calls, which the function it stands in gave it to, the two are one.
            if self.nodes.get(at).is_none_or(|node| node.name != *name) {
                at = self.child(at, name);
            }
        }
        if let Some(top) = self.stack.last_mut() {
            top.at = at;
        }
        at
    }

    /// What that node called by that name.
    fn child(&mut self, parent: usize, name: &str) -> usize {
        let children = self.nodes.get(parent).map_or(&[][..], |node| &node.children);
        let named = |at: &&usize| self.nodes.get(**at).is_some_and(|node| node.name == *name);
        if let Some(known) = children.iter().find(named) {
            return *known;
        }
        let new = self.nodes.len();
        self.nodes.push(Node { name: name.to_owned(), children: Vec::new() });
        if let Some(node) = self.nodes.get_mut(parent) {
            node.children.push(new);
        }
        new
    }

    /// The tree of what was counted, from where it does something or branches. Nothing if nothing was.
    pub(super) fn tree(&self, counts: &Counts) -> Option<Called> {
        let mut tree = self.tree_at(ROOT, counts)?;
        while tree.own.iter().all(|own| *own == 0) && tree.children.len() == 1 {
            tree = tree.children.pop()?;
        }
        Some(tree)
    }

    fn tree_at(&self, at: usize, counts: &Counts) -> Option<Called> {
        let node = self.nodes.get(at)?;
        let mut children: Vec<Called> =
            node.children.iter().filter_map(|child| self.tree_at(*child, counts)).collect();
        children.sort_by_key(|child| child.first);
        let own = counts.nodes.get(&at);
        let first = own.map(|(first, _)| *first).into_iter().chain(children.iter().map(|child| child.first));
        let first = first.min()?;
        let own = own.map_or_else(|| vec![0; counts.rounds], |(_, own)| own.clone());
        Some(Called { name: node.name.clone(), first, own, children })
    }
}

/// How often instructions of each node ran, round by round.
#[derive(Clone, Debug)]
pub(super) struct Counts {
    rounds: usize,
    /// By node: which instruction its first one was, and how many they were in each round.
    nodes: HashMap<usize, (usize, Vec<u64>)>,
}

impl Counts {
    pub(super) fn new(rounds: usize) -> Self {
        Self { rounds, nodes: HashMap::new() }
    }

    /// Counts an instruction of `node`, the `place`th of that round.
    pub(super) fn count(&mut self, node: usize, round: usize, place: usize) {
        let (_, own) = self.nodes.entry(node).or_insert_with(|| (place, vec![0; self.rounds]));
        if let Some(count) = own.get_mut(round) {
            *count += 1;
        }
    }
}

/// A function with what it called, in the order in which they first ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Called {
    name: String,
    first: usize,
    /// Its own instructions, round by round.
    own: Vec<u64>,
    children: Vec<Called>,
}

/// A function as it is shown: with its callees as far as they count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Stage {
    /// With its module.
    pub(super) function: String,
    /// Its instructions and its callees'.
    pub(super) instructions: Spread,
    /// Its own, and those of callees that are not shown.
    pub(super) own: Spread,
    /// The callees that are shown.
    pub(super) stages: Vec<Stage>,
}

impl Called {
    /// The instructions of each round.
    pub(super) fn totals(&self) -> Vec<u64> {
        self.children.iter().fold(self.own.clone(), |sum, child| add(sum, &child.totals()))
    }

    /// What is to be shown: functions that take at least `least` instructions in some round.
    pub(super) fn stage(&self, least: u64) -> Stage {
        let mut own = self.own.clone();
        let mut stages = Vec::new();
        for child in &self.children {
            let totals = child.totals();
            if totals.iter().any(|total| *total >= least) {
                stages.push(child.stage(least));
            } else {
                own = add(own, &totals);
            }
        }
        Stage {
            function: self.name.clone(),
            instructions: Spread::of(self.totals()),
            own: Spread::of(own),
            stages,
        }
    }
}

impl Stage {
    /// Hands on what is to be shown in a line each, with depth and name: this stage and those below. Those that do nothing
    /// themselves are in the line of the one that they lead to.
    pub(super) fn walk(&self, depth: usize, visit: &mut impl FnMut(usize, String, &Self)) {
        let mut name = self.function.clone();
        let mut stage = self;
        while let [only] = &stage.stages[..]
            && stage.own.max == 0
        {
            name = format!("{name} > {}", only.function);
            stage = only;
        }
        visit(depth, name, stage);
        for stage in &stage.stages {
            stage.walk(depth + 1, visit);
        }
    }
}

/// The sums, round by round.
pub(super) fn add(mut sums: Vec<u64>, more: &[u64]) -> Vec<u64> {
    for (sum, more) in sums.iter_mut().zip(more) {
        *sum += more;
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The instruction of the function at `start`, with what is inlined there.
    fn site(start: u64, chain: &[&str]) -> Site {
        Site { start: Some(start), chain: chain.iter().map(|name| (*name).to_owned()).collect() }
    }

    /// Runs these and counts all but the first `before` in one round.
    fn called(before: usize, ran: &[(u64, Site)]) -> Called {
        let mut calls = Calls::new();
        let mut counts = Counts::new(1);
        for (at, (address, site)) in ran.iter().enumerate() {
            let node = calls.step(*address, site);
            if at >= before {
                counts.count(node, 0, at);
            }
        }
        calls.tree(&counts).unwrap()
    }

    /// As text, a line for each: depth, name, all and own instructions.
    fn text(stage: &Stage, depth: usize) -> String {
        let Stage { function, instructions, own, stages } = stage;
        let line = format!("{}{function} {} {}\n", " ".repeat(depth), instructions.median, own.median);
        stages.iter().fold(line, |text, stage| text + &self::text(stage, depth + 1))
    }

    const RUN: u64 = 100;
    const SWITCH: u64 = 200;
    const TAKE: u64 = 300;
    const STUBS: u64 = 400;

    #[test]
    fn calls_returns_and_interrupts_are_known_by_where_functions_begin() {
        let ran = [
            // The first thing that is seen has been called long ago.
            (SWITCH + 5, site(SWITCH, &["switch"])),
            (RUN + 20, site(RUN, &["run"])),
            (SWITCH, site(SWITCH, &["switch"])),
            // From here on it counts.
            (SWITCH + 5, site(SWITCH, &["switch"])),
            (RUN + 20, site(RUN, &["run"])),
            (TAKE, site(TAKE, &["take"])),
            (TAKE + 1, site(TAKE, &["take", "step", "settle"])),
            (STUBS + 32, site(STUBS, &["stubs"])),
            (TAKE + 2, site(TAKE, &["take", "step"])),
            (TAKE, site(TAKE, &["take"])),
            (RUN + 21, site(RUN, &["run", "prepare"])),
            (RUN + 22, site(RUN, &["run"])),
            (SWITCH, site(SWITCH, &["switch"])),
        ];
        let stage = called(3, &ran).stage(1);
        let expected =
            "run 10 2\n switch 2 2\n take 5 2\n  step 3 1\n   settle 2 1\n    stubs 1 1\n prepare 1 1\n";
        assert_eq!(text(&stage, 0), expected);
    }

    #[test]
    fn what_is_called_by_an_inlined_function_is_below_it() {
        let ran = [
            (RUN, site(RUN, &["run"])),
            (RUN + 1, site(RUN, &["run", "chips", "with"])),
            (TAKE, site(TAKE, &["with", "settle"])),
            (RUN + 2, site(RUN, &["run", "chips", "with"])),
            (RUN + 3, site(RUN, &["run"])),
        ];
        let stage = called(0, &ran).stage(1);
        assert_eq!(text(&stage, 0), "run 5 2\n chips 3 0\n  with 3 2\n   settle 1 1\n");
        let mut lines = Vec::new();
        stage.walk(0, &mut |depth, name, stage| lines.push((depth, name, stage.own.median)));
        let lines: Vec<_> = lines.iter().map(|(depth, name, own)| (*depth, name.as_str(), *own)).collect();
        assert_eq!(lines, [(0, "run", 2), (1, "chips > with", 2), (2, "settle", 1)]);
    }

    #[test]
    fn what_is_not_shown_is_its_callers_own() {
        let mut calls = Calls::new();
        let mut counts = Counts::new(3);
        for round in 0..3 {
            let steps = [("a", 9), ("b", if round == 1 { 4 } else { 2 }), ("c", 3)];
            for (place, (name, times)) in steps.into_iter().enumerate() {
                let node = calls.step(RUN, &site(RUN, &["run", name]));
                (0..times).for_each(|_| counts.count(node, round, place));
            }
        }
        let called = calls.tree(&counts).unwrap();
        assert_eq!(called.totals(), [14, 16, 14]);
        for (least, shown, own) in [(1, 3, 0), (4, 2, 3), (5, 1, 5), (9, 1, 5), (10, 0, 14)] {
            let stage = called.stage(least);
            assert_eq!(stage.instructions, Spread { min: 14, median: 14, max: 16 }, "{least}");
            assert_eq!((stage.stages.len(), stage.own.median), (shown, own), "{least}");
            let parts: u64 = stage.stages.iter().map(|stage| stage.instructions.median).sum();
            assert_eq!(parts + stage.own.median, stage.instructions.median, "{least}");
        }
    }

    #[test]
    fn functions_of_ours_have_names_and_others_belong_to_their_caller() {
        for (path, name) in [
            ("levelhead::run::take", Some("run::take")),
            ("levelhead::partition::vcpu::VirtualCpu::complete", Some("partition::vcpu::complete")),
            ("levelhead::machine::Machine::deliver::{{closure}}", Some("machine::deliver")),
            ("<levelhead::machine::Wires as levelhead::intx::LineIo>::mask_rte", Some("machine::mask_rte")),
            ("lh_vmrun", Some("lh_vmrun")),
            ("core::slice::copy", None),
        ] {
            assert_eq!(own(path).as_deref(), name);
        }
        let frame = |function: &str, file: &str| Frame {
            function: function.to_owned(),
            place: Place::Source(file.to_owned(), Some(1)),
        };
        let frames = [
            frame("write_volatile<u32>", "library/core/src/ptr/mod.rs"),
            frame("write", "src/arch/x86/mmio.rs"),
            frame("{closure#0}<machine::Wires>", "src/intx/handler.rs"),
            frame("with<(), f>", "src/sync/mod.rs"),
            frame("take", "src/run.rs"),
        ];
        assert_eq!(
            chain("levelhead::run::take".to_owned(), &frames),
            ["run::take", "sync::with", "arch::x86::mmio::write"]
        );
        assert_eq!(chain("core::slice::copy".to_owned(), &frames[..1]), ["core::slice::copy"]);
    }

    #[test]
    fn a_line_of_a_forgotten_inlined_function_does_not_move_its_caller() {
        let chain = |files: &[(&str, &str)]| {
            let frame = |(function, file): &(&str, &str)| Frame {
                function: (*function).to_owned(),
                place: Place::Source((*file).to_owned(), None),
            };
            files.iter().map(frame).collect::<Vec<_>>()
        };
        let whole = chain(&[("first", "src/sharers.rs"), ("step", "src/line.rs"), ("run", "src/run.rs")]);
        let lost = chain(&[("step", "src/sharers.rs"), ("run", "src/run.rs")]);
        let elsewhere = chain(&[("step", "src/sharers.rs"), ("other", "src/run.rs")]);
        let mut chains = BTreeMap::from([(1, whole.clone()), (2, lost), (3, elsewhere.clone())]);
        mend(&mut chains);
        assert_eq!(chains[&1], whole);
        assert_eq!(chains[&2], whole[1..]);
        assert_eq!(chains[&3], elsewhere, "another caller's may be another function");
    }
}
