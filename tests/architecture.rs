//! The boundaries of the workspace, and the documents that describe it.
//!
//! Boundaries are enforced, taste is not.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Crates that meet in commands and events only.
const SERVICES: [&str; 4] = ["api", "fanout", "gateway", "living"];
/// What every service may build on.
const GROUND: [&str; 4] = ["schema", "runtime", "nats", "presence"];
/// What is not the project's, whoever put it here.
const NOT_OURS: [&str; 2] = ["target", "data"];
const README_LINES_MAX: usize = 200;
/// Words of ARCHITECTURE.md beside its code map.
const ARCHITECTURE_WORDS_MAX: usize = 3500;

#[test]
fn crates_import_only_what_lies_below_them() {
    let mut below: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    below.insert("schema", BTreeSet::new());
    below.insert("runtime", BTreeSet::new());
    below.insert("nats", ["schema", "runtime"].into());
    below.insert("presence", ["schema", "runtime", "nats"].into());
    below.insert("database", ["runtime"].into());
    for service in SERVICES {
        below.insert(service, GROUND.into());
    }
    for with_tables in ["api", "living"] {
        below.entry(with_tables).or_default().insert("database");
    }
    let explain = ["database", "runtime", "fanout", "gateway", "living"];
    below.insert("explain", GROUND.into_iter().chain(explain).collect());
    let members: BTreeSet<String> = folders().into_iter().filter(is_crate).collect();
    assert_eq!(members, below.keys().map(|folder| (*folder).to_owned()).collect());
    for (folder, allowed) in below {
        let manifest = read(&root().join(folder).join("Cargo.toml"));
        let imported: BTreeSet<&str> =
            dependencies(&manifest).filter_map(|(_, name)| name.strip_prefix("qiyu-")).collect();
        let wrong: Vec<_> = imported.difference(&allowed).collect();
        assert!(wrong.is_empty(), "{folder}/ may not import {wrong:?}, only {allowed:?}");
    }
}

#[test]
fn only_nats_speaks_nats() {
    // The examples are programs of integrators, who are no part of this.
    let ours = |path: &str| {
        !["schema/", "nats/", "examples/"].iter().any(|other| path.starts_with(other))
            && path != "tests/architecture.rs"
    };
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        for named in ["async_nats::", "async_nats;", "rmp_serde::", "rmp_serde;"] {
            if ours(&path) && text.contains(named) {
                wrong.push(format!("{path} names {named}"));
            }
        }
    }
    for (path, text) in files() {
        if !path.ends_with("Cargo.toml") || !ours(&path) {
            continue;
        }
        let imported = dependencies(&text).filter(|(section, name)| {
            // The workspace's table only says which version; tests stand outside.
            let uses = !["workspace.dependencies", "dev-dependencies"].contains(section);
            uses && ["async-nats", "rmp-serde"].contains(name)
        });
        wrong.extend(imported.map(|(section, name)| format!("{path} [{section}] names {name}")));
    }
    assert!(wrong.is_empty(), "NATS and its encoding are the business of nats/ alone: {wrong:#?}");
}

#[test]
fn the_schema_needs_no_server_runtime_or_clock() {
    let manifest = read(&root().join("schema/Cargo.toml"));
    for (_, name) in dependencies(&manifest) {
        assert!(!["tokio", "async-nats"].contains(&name), "schema/ depends on {name}");
    }
    for (path, text) in sources().iter().filter(|(path, _)| path.starts_with("schema/src/")) {
        for word in ["tokio", "async_nats", "SystemTime", "Instant"] {
            assert!(!has_word(&code(text), word), "{path} names {word}");
        }
    }
}

#[test]
fn only_the_gateway_knows_a_frame_code() {
    for (path, text) in sources() {
        // Tests are clients, and so is the bench, as the page is.
        let client = path.contains("tests/") || path.starts_with("src/bench/");
        if path.starts_with("gateway/") || client {
            continue;
        }
        let text = code(&text);
        for frame_code in 1001..=1006 {
            let frame_code = frame_code.to_string();
            assert!(!has_word(&text, &frame_code), "{path} names {frame_code}, a frame code");
        }
        assert!(!text.contains("qiyu_gateway::frame"), "{path} looks into the gateway's frames");
    }
    let gateway = read(&root().join("gateway/src/lib.rs"));
    assert!(gateway.lines().any(|line| line == "mod frame;"), "frames stay private");
}

#[test]
fn every_folder_has_its_paragraph_and_every_paragraph_its_folder() {
    let text = read(&root().join("ARCHITECTURE.md"));
    let told: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("**`")?.split_once("/`**"))
        .map(|(folder, _)| folder.to_owned())
        .collect();
    assert_eq!(told, folders(), "left: ARCHITECTURE.md, right: the folders there are");
}

#[test]
fn every_file_a_document_names_is_there() {
    for document in ["README.md", "ARCHITECTURE.md"] {
        let text = read(&root().join(document));
        for named in quoted(&text).filter(|name| is_path(name)) {
            assert!(root().join(named).exists(), "{document} names `{named}`, which is not there");
        }
    }
}

#[test]
fn every_invariant_names_a_test_that_exists() {
    let text = read(&root().join("ARCHITECTURE.md"));
    let tests: BTreeSet<String> = sources().iter().flat_map(|(_, text)| tests_in(text)).collect();
    let invariants: Vec<&str> = text.split("**Invariant: ").skip(1).collect();
    assert!(!invariants.is_empty(), "ARCHITECTURE.md states no invariant");
    for invariant in invariants {
        let invariant = invariant.split("\n\n").next().unwrap();
        let (said, _) = invariant.split_once("**").unwrap();
        let (_, held_by) = invariant
            .split_once("(test: ")
            .or_else(|| invariant.split_once("(tests: "))
            .unwrap_or_else(|| panic!("no test holds the invariant {said:?}"));
        let held_by = held_by.split(')').next().unwrap();
        let named: Vec<&str> = quoted(held_by).collect();
        assert!(!named.is_empty(), "no test holds the invariant {said:?}");
        for name in named {
            assert!(tests.contains(name), "{said:?} is held by {name}, and there is no such test");
        }
    }
}

#[test]
fn every_metric_is_touched() {
    let touches =
        ["inc(", "inc_by(", "dec(", "set(", "observe(", "observe_since(", "get_or_create(", "add("];
    let sources = sources();
    let mut untouched = Vec::new();
    for (path, text) in sources.iter().filter(|(path, _)| path.ends_with("src/metrics.rs")) {
        let (folder, _) = path.split_once('/').unwrap();
        // runtime/ holds the macro that declares metrics, and none of its own.
        let Some((_, after)) = text.split_once("struct Metrics {") else { continue };
        let (fields, _) = after.split_once("\n}").unwrap();
        let name = |line: &str| {
            let line = line.trim().trim_start_matches("pub(crate) ");
            Some(line.split_once(':')?.0.to_owned()).filter(|_| !line.starts_with("//"))
        };
        let fields: Vec<String> = fields.lines().filter_map(name).collect();
        assert!(!fields.is_empty(), "no metrics found in {path}");
        let crate_text: String = sources
            .iter()
            .filter(|(path, _)| path.starts_with(&format!("{folder}/src/")))
            .flat_map(|(_, text)| {
                code(text).split_whitespace().map(str::to_owned).collect::<Vec<_>>()
            })
            .collect();
        for field in fields {
            let touched = touches.iter().any(|touch| {
                crate_text.contains(&format!(".{field}.{touch}"))
                    || crate_text.contains(&format!(".{field}.0.{touch}"))
            });
            if !touched {
                untouched.push(format!("{path}: {field}"));
            }
        }
    }
    assert!(untouched.is_empty(), "metrics nobody touches: {untouched:#?}");
}

#[test]
fn documents_stay_short() {
    let lines = read(&root().join("README.md")).lines().count();
    assert!(lines <= README_LINES_MAX, "README.md has {lines} lines, over {README_LINES_MAX}");
    let text = read(&root().join("ARCHITECTURE.md"));
    let (before, map) = text.split_once("## Code map").unwrap();
    let (_, after) = map.split_once("\n## ").unwrap();
    let words = before.split_whitespace().chain(after.split_whitespace()).count();
    assert!(
        words <= ARCHITECTURE_WORDS_MAX,
        "ARCHITECTURE.md has {words} words beside its code map, over {ARCHITECTURE_WORDS_MAX}"
    );
}

#[test]
fn every_source_file_has_a_row_in_the_code_map() {
    let text = read(&root().join("ARCHITECTURE.md"));
    let (_, map) = text.split_once("## Code map").unwrap();
    let (map, _) = map.split_once("\n## ").unwrap();
    let rows: BTreeSet<String> = map
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"))
        .map(|(path, _)| path.to_owned())
        .collect();
    let files: BTreeSet<String> = sources()
        .into_iter()
        .map(|(path, _)| path)
        .filter(|path| !path.starts_with("tests/"))
        .collect();
    let missing: Vec<_> = files.difference(&rows).collect();
    let stale: Vec<_> = rows.difference(&files).collect();
    assert!(missing.is_empty(), "source files without a row in the code map: {missing:#?}");
    assert!(stale.is_empty(), "rows of the code map without a file: {stale:#?}");
}

#[test]
fn nothing_depends_on_the_machine_it_was_written_on() {
    // In pieces, so that this file passes too.
    let paths = ["work", "root", "tmp"].map(|top| format!("/{top}/"));
    let registry = "registry+https://github.com/rust-lang/crates.io-index";
    let mut wrong = Vec::new();
    for (path, text) in files() {
        for (line, number) in text.lines().zip(1..) {
            let foreign = line.starts_with("source = ") && !line.contains(registry);
            if foreign || paths.iter().any(|machine| line.contains(machine)) {
                wrong.push(format!("{path}:{number}: {line}"));
            }
            let mirror = ["index-url", "extra-index", "find-links", "replace-with"];
            if path != "tests/architecture.rs" && mirror.iter().any(|word| line.contains(word)) {
                wrong.push(format!("{path}:{number}: {line}"));
            }
        }
    }
    assert!(wrong.is_empty(), "paths or registries of one machine: {wrong:#?}");
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The folders one sees with `ls`.
fn folders() -> BTreeSet<String> {
    let entries = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap());
    let folders = entries.filter(|entry| entry.file_type().unwrap().is_dir());
    folders.map(|folder| folder.file_name().into_string().unwrap()).filter(|f| is_ours(f)).collect()
}

fn is_ours(name: &str) -> bool {
    !name.starts_with('.') && !NOT_OURS.contains(&name)
}

fn is_crate(folder: &String) -> bool {
    root().join(folder).join("Cargo.toml").exists()
}

/// Every text file of the project, with its path from the root.
fn files() -> Vec<(String, String)> {
    let (mut found, mut open) = (Vec::new(), vec![root()]);
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            let skipped = [".git"].iter().chain(&NOT_OURS).any(|skipped| name == *skipped);
            if skipped {
                continue;
            }
            if path.is_dir() {
                open.push(path);
            } else if let Ok(text) = fs::read_to_string(&path) {
                found.push((name, text));
            }
        }
    }
    found
}

fn sources() -> Vec<(String, String)> {
    files().into_iter().filter(|(path, _)| path.ends_with(".rs")).collect()
}

/// (section, name) of every dependency of a manifest.
fn dependencies(manifest: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut section = "";
    manifest.lines().filter_map(move |line| {
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_end_matches(']');
            // [dependencies.x] is one of [dependencies], too.
            let (table, name) = section.rsplit_once('.')?;
            return table.ends_with("dependencies").then_some((table, name));
        }
        let name = line.split(['=', '.', ' ']).next().filter(|name| !name.is_empty())?;
        section.ends_with("dependencies").then_some((section, name))
    })
}

/// A source without its comments.
fn code(text: &str) -> String {
    let line = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Whether `word` occurs, and not as a part of a longer one.
fn has_word(text: &str, word: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + word.len()..]);
        !before.ends_with(part) && !after.starts_with(part)
    })
}

/// What stands between single backticks on one line.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// A file or folder of this workspace, and nothing with a gap to be filled in.
fn is_path(name: &str) -> bool {
    let kind = [".rs", ".md", ".toml", ".sql", "/"].iter().any(|ending| name.ends_with(ending));
    kind && name.contains('/')
        && !name.starts_with('/')
        && !name.contains([' ', '<', '*', ':', '…'])
}

/// The names of the tests of a source.
fn tests_in(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let name = |line: &str| {
        let (before, after) = line.split_once("fn ")?;
        let name = after.split('(').next()?;
        (before.is_empty() || before == "async ").then(|| name.to_owned())
    };
    let is_test = |line: &&str| line.starts_with("#[test") || line.starts_with("#[tokio::test");
    let tests = lines.iter().enumerate().filter(|(_, line)| is_test(line));
    // Attributes may stand between.
    tests.filter_map(|(at, _)| lines[at..].iter().take(4).find_map(|line| name(line))).collect()
}
