//! The map of the modules (`docs/concepts/architecture.md`) against what the files import.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn page() -> String {
    fs::read_to_string(root().join("docs/concepts/architecture.md")).unwrap()
}

/// The layer of each module by the table.
fn layers(page: &str) -> BTreeMap<String, usize> {
    let row = Regex::new(r"(?m)^\| (\d+) \| `(\w+)` \|").unwrap();
    let rows = row.captures_iter(page);
    rows.map(|row| (row[2].to_owned(), row[1].parse().unwrap()))
        .collect()
}

/// All files of the library, and the module that each belongs to.
fn files() -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => walk(&path, found),
                false if path.extension().is_some_and(|e| e == "rs") => found.push(path),
                false => {}
            }
        }
    }
    let source = root().join("src");
    let mut found = Vec::new();
    walk(&source, &mut found);
    let module = |path: &PathBuf| {
        let first = path.strip_prefix(&source).unwrap().iter().next().unwrap();
        let name = first.to_str().unwrap();
        name.strip_suffix(".rs").unwrap_or(name).to_owned()
    };
    let mut files: Vec<_> = found
        .into_iter()
        .map(|path| (path.clone(), module(&path)))
        .collect();
    files.retain(|(_, module)| !["lib", "main"].contains(&module.as_str()));
    files
}

/// The code of a file: without comments, and without the tests at its end, which may import anything.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let comments = Regex::new(r"//[^\n]*").unwrap();
    let text = comments.replace_all(&text, "");
    let tests = Regex::new(r"#\[cfg\([^\]]*\btest\b[^\]]*\)\]\s*mod \w+ \{").unwrap();
    match tests.find(&text) {
        Some(found) => text[..found.start()].to_owned(),
        None => text.into_owned(),
    }
}

/// The first names of all paths that begin with `crate::`, braces opened.
fn imports(code: &str) -> BTreeSet<String> {
    let name = Regex::new(r"^\s*(\w+)").unwrap();
    let mut found = BTreeSet::new();
    for (at, start) in code.match_indices("crate::") {
        let rest = &code[at + start.len()..];
        let Some(list) = rest.strip_prefix('{') else {
            found.extend(name.captures(rest).map(|first| first[1].to_owned()));
            continue;
        };
        let (mut depth, mut item) = (0, String::new());
        for c in list.chars() {
            match c {
                '}' if depth == 0 => break,
                ',' if depth == 0 => {
                    found.extend(name.captures(&item).map(|first| first[1].to_owned()));
                    item.clear();
                    continue;
                }
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            item.push(c);
        }
        found.extend(name.captures(&item).map(|first| first[1].to_owned()));
    }
    found
}

/// What the library hands on at its root, and the module that it comes from.
fn at_the_root() -> BTreeMap<String, String> {
    let text = code(&root().join("src/lib.rs"));
    let line = Regex::new(r"pub use (\w+)::([^;]+);").unwrap();
    let name = Regex::new(r"\w+").unwrap();
    let mut found = BTreeMap::new();
    for used in line.captures_iter(&text) {
        for item in name.find_iter(&used[2]) {
            found.insert(item.as_str().to_owned(), used[1].to_owned());
        }
    }
    found
}

#[test]
fn modules_import_from_lower_layers_only() {
    let (layers, root_names) = (layers(&page()), at_the_root());
    let files = files();
    let modules: BTreeSet<&String> = files.iter().map(|(_, module)| module).collect();
    let listed: BTreeSet<&String> = layers.keys().collect();
    assert_eq!(modules, listed, "the table has other modules than src/");
    let mut arrows = 0;
    for (path, module) in &files {
        for name in imports(&code(path)) {
            let Some(to) = modules.get(&name).copied().or(root_names.get(&name)) else {
                continue;
            };
            arrows += usize::from(to != module);
            assert!(
                to == module || layers[to] < layers[module],
                "{}: {module} (layer {}) imports {name} of {to} (layer {})",
                path.display(),
                layers[module],
                layers[to]
            );
        }
    }
    assert!(arrows > 300, "{arrows} imports were found");
}

#[test]
fn an_import_upwards_would_be_found() {
    let text =
        "use crate::{error::Error, cli::{self, x}, Engine};\nfn f() { crate::serve::run() }\n";
    let found: Vec<String> = imports(text).into_iter().collect();
    assert_eq!(found, ["Engine", "cli", "error", "serve"]);
    assert_eq!(at_the_root()["Engine"], "engine");
}

#[test]
fn every_step_of_a_way_is_a_file() {
    let page = page();
    let step = Regex::new(r"`((?:src|kernels)/[\w/.]+)`").unwrap();
    let steps: Vec<&str> = step
        .captures_iter(&page)
        .map(|c| c.get(1).unwrap().as_str())
        .collect();
    assert!(steps.len() > 20);
    for file in steps {
        assert!(root().join(file).is_file(), "{file}");
    }
}
