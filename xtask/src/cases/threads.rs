//! Cases that run in one thread of the emulator and then with a thread for each CPU, and must come to the same.
//!
//! One thread makes every run like the one before; with several, CPUs meet as they happen to. What a case counts exactly must not
//! depend on that.

use super::{Ready, complain};
use crate::qemu::Machine;

const ONE: &str = "tcg,thread=single";
const SEVERAL: &str = "tcg,thread=multi";
/// What the hypervisor says of a guest that it ends because the emulator lost its state, which QEMU 7.2 does once in
/// millions of world switches on several threads, and which says nothing about the guest (docs/adr/0001).
const LOST_STATE: &str = "this is the hypervisor's own state, not the guest's";
/// How often such a run is repeated.
const TRIES: u32 = 3;

/// Runs the case both ways.
///
/// # Errors
/// What went wrong in either of them, or what differs.
pub fn run(ready: &Ready<'_>, machine: &Machine) -> Result<(), Vec<String>> {
    let single = play(ready, machine, ONE)?;
    let multi = play(ready, machine, SEVERAL)?;
    compare(&ready.case.expect.alike, &single, &multi).map_err(|why| vec![why])
}

/// One way: its console.
fn play(ready: &Ready<'_>, machine: &Machine, accel: &str) -> Result<Vec<String>, Vec<String>> {
    let machine = Machine { accel: Some(accel.to_owned()), ..machine.clone() };
    let mut tries = if accel == SEVERAL { TRIES } else { 1 };
    loop {
        let outcome = machine.run(ready.case.limit(), |_| {}).map_err(complain)?;
        tries -= 1;
        if tries > 0 && outcome.console.iter().any(|line| line.contains(LOST_STATE)) {
            continue;
        }
        ready.tell(ready.judge(&outcome), Some(format!("with {accel}")), &machine, &outcome)?;
        return Ok(outcome.console);
    }
}

/// Compares, for each text of `alike`, the lines that hold it. Where partitions' lines stand among each other's is chance.
fn compare(alike: &[String], single: &[String], multi: &[String]) -> Result<(), String> {
    for text in alike {
        let lines = |console: &[String]| -> Vec<String> {
            console.iter().filter(|line| line.contains(text.as_str())).cloned().collect()
        };
        let (one, several) = (lines(single), lines(multi));
        if one.is_empty() {
            return Err(format!("no line holds {text:?}, which is to be compared"));
        }
        if one != several {
            let (one, several) = (one.join("\n"), several.join("\n"));
            return Err(format!("with {ONE}:\n{one}\nand with {SEVERAL}:\n{several}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn named_lines_must_be_the_same_and_be_there() {
        let alike = ["served".to_owned()];
        let single = lines("a\n5 served\nb\n6 served");
        compare(&alike, &single, &lines("5 served\nc\n6 served")).unwrap();
        for other in ["5 served", "6 served\n5 served", "5 served\n6 served\n7 served", "5 served\n7 served"]
        {
            assert!(compare(&alike, &single, &lines(other)).is_err(), "{other}");
        }
        assert!(compare(&alike, &lines("a"), &lines("b")).is_err(), "nothing is nothing to compare");
    }

    #[test]
    fn lines_of_several_are_each_in_their_own_order() {
        let alike = ["[a]".to_owned(), "[b]".to_owned()];
        let single = lines("[a] 1\n[a] 2\n[b] 1");
        compare(&alike, &single, &lines("[b] 1\n[a] 1\n[a] 2")).unwrap();
        for other in ["[a] 2\n[a] 1\n[b] 1", "[a] 1\n[a] 2", "[a] 1\n[b] 1", "[a] 1\n[a] 2\n[b] 1\n[b] 1"] {
            assert!(compare(&alike, &single, &lines(other)).is_err(), "{other}");
        }
        assert!(compare(&alike, &lines("[a] 1"), &lines("[a] 1")).is_err(), "each of them must be there");
    }
}
