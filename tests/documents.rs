//! The documents that claim something about the code, against the code; and the rules of `docs/hardware-checklist.md` that
//! only the text of the binary can show.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every file below `folder` whose name ends so, relative to the root.
fn files(folder: &str, ends: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = folder.join(entry.file_name());
            let name = path.to_str().unwrap().to_string();
            if entry.file_type().unwrap().is_dir() {
                folders.push(path);
            } else if ends.iter().any(|end| name.ends_with(end)) {
                found.push(name);
            }
        }
    }
    found.sort();
    found
}

/// The cells of every row of every table, without the heads.
fn rows(document: &str) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut lines = document.lines().peekable();
    while let Some(line) = lines.next() {
        let is_head = lines.peek().is_some_and(|next| next.starts_with("| ---"));
        if line.starts_with("| ") && !line.starts_with("| ---") && !is_head {
            rows.push(line.trim_matches('|').split('|').map(|cell| cell.trim().to_string()).collect());
        }
    }
    rows
}

/// What stands in backquotes.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// The names of all host tests, models included.
fn tests() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let sources = ["src", "tests", "xtask/src"].iter().flat_map(|folder| files(folder, &[".rs"]));
    for source in sources {
        let text = text(&source);
        let mut marked = false;
        for line in text.lines().map(str::trim) {
            if line == "#[test]" {
                marked = true;
            } else if let Some(rest) = line.strip_prefix("fn ").filter(|_| marked) {
                names.insert(rest.split('(').next().unwrap().to_string());
                marked = false;
            }
        }
    }
    names
}

fn cases() -> BTreeSet<String> {
    let named = |line: &str| Some(line.strip_prefix("name = \"")?.trim_end_matches('"').to_string());
    text("tests/qemu/cases.toml").lines().filter_map(named).collect()
}

/// What is wrong with a cell of checks: each is a test, a QEMU case, or `const` for an assertion in one of `sources`.
fn judge_checks(
    cell: &str,
    sources: &[String],
    tests: &BTreeSet<String>,
    cases: &BTreeSet<String>,
) -> Vec<String> {
    let checks = quoted(cell);
    let mut wrong: Vec<String> = Vec::new();
    if checks.is_empty() {
        wrong.push("no check".into());
    }
    for check in checks {
        let known = match check.strip_prefix("qemu/") {
            Some(case) => cases.contains(case),
            None if check == "const" => sources.iter().any(|source| source.contains("const _: () =")),
            None => tests.contains(check),
        };
        if !known {
            wrong.push(format!("`{check}` is no test"));
        }
    }
    wrong
}

#[test]
fn every_row_of_the_hardware_checklist_names_code_and_checks_that_exist() {
    let (tests, cases) = (tests(), cases());
    let rows = rows(&text("docs/hardware-checklist.md"));
    assert!(rows.len() > 50, "{} rows were found", rows.len());
    let mut wrong = Vec::new();
    for row in rows {
        let [rule, _, code, checks] = row.as_slice() else { panic!("a row of {} cells: {row:?}", row.len()) };
        let mut sources = Vec::new();
        for name in quoted(code) {
            if name.contains('/') {
                sources.push(text(name));
            } else if !sources.last().is_some_and(|source| source.contains(name)) {
                wrong.push(format!("{rule}: no `{name}` in its file"));
            }
        }
        if sources.is_empty() {
            wrong.push(format!("{rule}: no code"));
        }
        wrong.extend(
            judge_checks(checks, &sources, &tests, &cases).into_iter().map(|what| format!("{rule}: {what}")),
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_with_unsafe_code_is_in_the_inventory_and_no_other() {
    let table = text("tests/unsafe.toml");
    let counted: BTreeSet<&str> =
        table.lines().filter_map(|line| line.strip_prefix('"')?.split('"').next()).collect();
    let document = text("docs/soundness.md");
    let inventory = document.split_once("## Unsafe inventory").expect("the inventory").1;
    let rows = rows(inventory);
    let listed: BTreeSet<&str> = rows.iter().flat_map(|row| quoted(&row[0])).collect();
    assert_eq!(counted, listed, "left: tests/unsafe.toml, right: docs/soundness.md");
}

#[test]
fn every_test_that_a_security_document_names_exists() {
    let (tests, cases) = (tests(), cases());
    for path in ["SECURITY.md", "docs/soundness.md"] {
        let document = text(path);
        for row in rows(document.split("## Unsafe inventory").next().unwrap()) {
            let checks = row.last().unwrap();
            if row.len() == 3 && !quoted(checks).is_empty() {
                assert_eq!(
                    judge_checks(checks, &[], &tests, &cases),
                    Vec::<String>::new(),
                    "{path}: {}",
                    row[0]
                );
            }
        }
    }
}

/// The lines of an assembly source, without comments.
fn assembly(path: &str) -> Vec<String> {
    let bare = |line: &str| line.split('#').next().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    text(path).lines().map(bare).filter(|line| !line.is_empty()).collect()
}

/// The body of a Rust function, up to the brace in the column of its `fn`.
fn function(path: &str, name: &str) -> String {
    let source = text(path);
    let start = source.find(&format!("fn {name}")).unwrap_or_else(|| panic!("{path}: no {name}"));
    let line = source[..start].rfind('\n').map_or(0, |at| at + 1);
    let indent: String = source[line..].chars().take_while(|c| *c == ' ').collect();
    let end = source[start..].find(&format!("\n{indent}}}\n")).expect("its end");
    source[start..start + end].to_string()
}

/// Fails unless all of `words` stand in `text` in this order.
fn in_order(text: &str, words: &[&str]) {
    let mut rest = text;
    for word in words {
        let at = rest
            .find(word)
            .unwrap_or_else(|| panic!("`{word}` is missing, or not in its place, in:\n{text}"));
        rest = &rest[at + word.len()..];
    }
}

#[test]
fn efer_and_control_registers_are_written_whole_on_every_cpu() {
    for path in ["src/boot/entry.S", "src/boot/trampoline.S"] {
        let lines = assembly(path);
        let code = lines.join("\n");
        // LME and NXE; PAE, MCE, OSFXSR and OSXMMEXCPT; PE, MP, NE, WP and PG.
        in_order(
            &code,
            &["mov eax, 0x660\nmov cr4, eax", "mov ecx, 0xc0000080\nmov eax, 0x900\nxor edx, edx\nwrmsr"],
        );
        in_order(&code, &["mov eax, 0x80010023\nmov cr0, eax"]);
        assert!(!code.contains("rdmsr"), "{path}: nothing of what was there is kept");
    }
}

#[test]
fn interrupts_are_opened_in_the_window_and_behind_clgi_alone() {
    for path in files("src", &[".S"]) {
        let opened = assembly(&path).iter().filter(|line| line.ends_with("sti")).count();
        let expected = match path.as_str() {
            "src/arch/x86/window.S" | "src/arch/svm/vmrun.S" => 2,
            _ => 0,
        };
        assert_eq!(opened, expected, "{path}");
    }
    for path in files("src", &[".rs"]) {
        let source = text(&path);
        let opens = source.contains("\"sti\"") || source.contains("interrupts::enable");
        assert!(!opens, "{path} opens interrupts");
    }
}

#[test]
fn sleeping_begins_in_the_shadow_of_sti() {
    let lines = assembly("src/arch/x86/window.S").join("\n");
    in_order(
        &lines,
        &[
            "lh_window_open:\nxor eax, eax\nsti\nnop\ncli\nret",
            "lh_window_idle:\nxor eax, eax\nsti\nhlt\ncli\nret",
        ],
    );
}

#[test]
fn a_vector_that_arrives_closes_the_window() {
    let stubs = assembly("src/arch/x86/stubs.S").join("\n");
    let stub = ".else\nmov eax, vector\nand qword ptr [rsp + 16], ~RFLAGS_IF\niretq\n.endif";
    in_order(&stubs, &[".set RFLAGS_IF, 1 << 9", stub]);
}

#[test]
fn every_gate_has_a_stack() {
    let body = function("src/arch/x86/cpu.rs", "interrupt_table");
    assert!(body.contains(".set_stack_index($stack)"));
    let gates: Vec<&str> = body.lines().map(str::trim).filter(|line| line.starts_with("gate!(")).collect();
    assert_eq!(gates.len(), 24, "23 exceptions and the loop over the rest");
    assert!(gates.iter().all(|gate| gate.ends_with(");") && gate.contains(", IST_")), "{gates:#?}");
    for (own, stack) in
        [("non_maskable", "IST_NMI"), ("double_fault", "IST_DOUBLE"), ("machine_check", "IST_MACHINE")]
    {
        assert_eq!(gates.iter().filter(|gate| gate.contains(stack)).count(), 1);
        assert!(gates.iter().any(|gate| gate.contains(own) && gate.contains(stack)));
    }
}

#[test]
fn svm_is_switched_on_before_anything_needs_it() {
    in_order(
        &function("src/arch/svm/enable.rs", "enable"),
        &["SECURE_VIRTUAL_MACHINE_ENABLE", "VM_HSAVE_PA"],
    );
    in_order(
        &function("src/arch/svm/vmrun.rs", "activate"),
        &["enable::enable(", "vmsave rax", "wipe::wipe("],
    );
    in_order(&function("src/launch.rs", "run_own"), &["activate(", "live("]);
}

#[test]
fn memory_is_cleared_where_it_is_allocated() {
    in_order(&function("src/partition/ram.rs", "allocate"), &["pieces.push", "ram.clear()", "Ok(ram)"]);
    let build = function("src/partition/build.rs", "build(");
    in_order(&build, &["Ram::allocate", "ram.map", "ram.write"]);
}

#[test]
fn a_nested_entry_is_written_in_one_store() {
    let body = function("src/arch/svm/nested.rs", "write");
    assert_eq!(body.matches(".write(").count(), 1);
    in_order(&body, &["cast::<u64>()", ".write(entry)"]);
}

#[test]
fn the_pat_is_settled_on_every_cpu() {
    in_order(
        &function("src/main.rs", "boot"),
        &["AddressSpace::build", "memory::settle()", "tables::discover"],
    );
    in_order(&function("src/boot/smp.rs", "lh_ap_main"), &["memory::settle()", "ThisCpu::initialise"]);
    in_order(
        &function("src/arch/x86/memory.rs", "settle"),
        &["PAT_RESET", "wbinvd", "pat.write(PAT_RESET)", "Cr3::write"],
    );
}

#[test]
fn a_spurious_interrupt_is_not_completed() {
    in_order(&function("src/run.rs", "acknowledge"), &["SPURIOUS_VECTOR", "return;", "apic.eoi()"]);
}

#[test]
fn the_apic_base_is_only_read() {
    let source = text("src/arch/x86/lapic.rs");
    assert_eq!(source.matches("Msr::new(APIC_BASE)").count(), 1);
    assert!(source.contains("Msr::new(APIC_BASE).read()"));
}

#[test]
fn an_ipi_is_sent_whole_and_after_the_stores_it_announces() {
    let body = function("src/arch/x86/lapic.rs", "command");
    in_order(&body, &["Self::X2apic", "fence(", "Msr::new("]);
    in_order(&body, &["Self::Xapic", "write(ICR_HIGH", "write(ICR_LOW", "ICR_PENDING == 0"]);
}

#[test]
fn a_cpu_is_given_its_time_to_start_and_sent_back_after_it() {
    let source = text("src/boot/smp.rs");
    assert!(source.contains("INIT_TICKS: u64 = TICKS_PER_MICROSECOND * 10_000;"));
    assert!(source.contains("SIPI_TICKS: u64 = TICKS_PER_MICROSECOND * 200;"));
    let rest =
        ["send_init", "wait(INIT_TICKS", "send_startup", "wait(SIPI_TICKS", "send_init", "Silent(target)"];
    in_order(&function("src/boot/smp.rs", "start_one"), &rest);
}

#[test]
fn the_configuration_ports_are_used_under_their_lock() {
    for name in ["read<", "write<"] {
        let body = function("src/arch/x86/config_space.rs", name);
        in_order(&body, &["self.ports.with(", "CONFIG_ADDRESS", "CONFIG_DATA"]);
        assert_eq!(body.matches("CONFIG_ADDRESS").count(), 1);
    }
}

#[test]
fn every_test_that_the_intx_document_maps_a_path_to_exists() {
    let (tests, cases) = (tests(), cases());
    let document = text("docs/intx.md");
    let section = document.split_once("## The Linux commit, path by path").expect("the section").1;
    let rows = rows(section.split("\n## ").next().unwrap());
    assert_eq!(rows.len(), 13, "every way into the handler");
    for row in rows {
        assert_eq!(judge_checks(&row[2], &[], &tests, &cases), Vec::<String>::new(), "{}", row[0]);
    }
}

#[test]
fn every_case_of_the_status_table_exists() {
    let cases = cases();
    let document = text("README.md");
    let table = document.split_once("## Status").expect("the table").1;
    let rows = rows(table.split("\n## ").next().unwrap());
    assert!(rows.len() > 20, "{} rows were found", rows.len());
    for row in &rows {
        let named = quoted(&row[1]);
        assert!(!named.is_empty(), "{}: no test", row[0]);
        for name in named {
            // A name that begins with a hyphen is the end of one that begins like its neighbour.
            let known = match name.strip_prefix("host/") {
                Some(check) => root().join("tests").join(check).exists(),
                None if name.starts_with('-') => cases.iter().any(|case| case.ends_with(name)),
                None => cases.contains(name),
            };
            assert!(known, "{}: `{name}` is no test", row[0]);
        }
    }
}

#[test]
fn every_link_between_documents_leads_to_a_file() {
    let mut documents = files("docs", &[".md"]);
    documents.extend(
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"].map(String::from),
    );
    documents.extend(["guests/README.md", "tests/README.md"].map(String::from));
    let mut links = 0;
    for document in documents {
        let folder = Path::new(&document).parent().unwrap();
        for link in text(&document).split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            if !link.is_empty() && !link.contains("://") {
                assert!(root().join(folder).join(link).exists(), "{document}: there is no {link}");
                links += 1;
            }
        }
    }
    assert!(links > 50, "{links} links were found");
}

#[test]
fn every_decision_has_a_number_of_its_own() {
    let decisions = files("docs/adr", &[".md"]);
    let numbers: BTreeSet<usize> = decisions
        .iter()
        .map(|path| {
            let name = path.strip_prefix("docs/adr/").unwrap();
            let number = name.split('-').next().unwrap().parse().unwrap();
            assert!(text(path).starts_with(&format!("# {number}. ")), "{path} is headed by another number");
            number
        })
        .collect();
    assert_eq!(numbers, (1..=decisions.len()).collect(), "one each, without a gap");
}
